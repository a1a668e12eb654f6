#include "starter/source_mounts.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <time.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "core/system_error.h"
#include "starter/fuse_mount.h"
#include "starter/image.h"
#include "starter/memory_mount.h"
#include "starter/processes.h"

namespace sifcrypt::starter {
namespace {

/// The container before may still be letting go of it.
constexpr int64_t kLockMs = 2000;
constexpr long kLockPeriodNs = 10'000'000;

}  // namespace

bool NeedsServer(const LayerOptions& source) {
  return source.kind == LayerOptions::Kind::kSquashfs && source.image.engine == Engine::kUserspace;
}

std::string NameOf(const LayerOptions& source) {
  if (source.kind == LayerOptions::Kind::kDirectory) return source.path;
  char path[4096];
  const std::string link = "/proc/self/fd/" + std::to_string(source.image.range.fd);
  const ssize_t n = readlink(link.c_str(), path, sizeof path);
  return n > 0 ? std::string(path, static_cast<size_t>(n)) : "the image";
}

SourceMounts::~SourceMounts() {
  // Those of helpers are unmounted, and waited for, by them.
  helpers_.clear();
  for (; !mounts_.empty(); mounts_.pop_back())
    if (umount2(mounts_.back().c_str(), UMOUNT_NOFOLLOW) != 0)
      umount2(mounts_.back().c_str(), UMOUNT_NOFOLLOW | MNT_DETACH);
}

void SourceMounts::LockFolder(const std::string& path, const std::string& name) {
  UniqueFd held(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!held) throw SystemError(errno, operation_, name + ": " + std::strerror(errno));
  const int64_t give_up = NowMs() + kLockMs;
  while (flock(held.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) throw SystemError(errno, operation_, name + ": " + std::strerror(errno));
    if (NowMs() >= give_up) throw SystemError(EBUSY, operation_, name + ": another container uses it");
    const timespec pause{0, kLockPeriodNs};
    nanosleep(&pause, nullptr);
  }
  locks_.push_back(std::move(held));
}

void SourceMounts::Add(const LayerOptions& source, const std::string& target, const Channel* server) {
  const std::string name = NameOf(source);
  switch (source.kind) {
    case LayerOptions::Kind::kDirectory:
      if (mount(source.path.c_str(), target.c_str(), nullptr, MS_BIND | MS_REC, nullptr) != 0)
        throw SystemError(errno, operation_, name + ": " + std::strerror(errno));
      mounts_.push_back(target);
      return;
    case LayerOptions::Kind::kSquashfs:
      if (source.image.engine == Engine::kKernel) {
        MountWithKernel(source.image, target);
      } else if (source.image.engine == Engine::kMemory) {
        MountInMemory(source.image, target);
      } else {
        const UniqueFd device = MountFuse(target, "sifcrypt", kReadOnly, access_);
        if (!server->Send({.kind = Message::Kind::kDevice}, device.get()))
          throw SystemError(EPIPE, "server", "the server of " + name + " has ended");
      }
      mounts_.push_back(target);
      return;
    case LayerOptions::Kind::kExt:
      // Locked by the caller: the locks are those of the open files.
      locks_.push_back(UniqueFd::Duplicate(source.image.range.fd));
      if (source.lock_fd >= 0) locks_.push_back(UniqueFd::Duplicate(source.lock_fd));
      if (source.image.engine == Engine::kKernel) {
        MountWithKernel(source.image, target, KernelFileSystem::kExt, source.writable);
        mounts_.push_back(target);
        return;
      }
      // Nothing is mounted twice: the helper's own destructor takes this one away.
      const std::string options = std::string(source.writable ? "rw" : "ro") +
                                  ",fakeroot,offset=" + std::to_string(source.image.range.partition.offset);
      helpers_.emplace_back(HelperProgram{"fuse2fs", {"-f", "-o", options, kHelperImage}, {}, source.image.range.fd},
                            target, MS_NOSUID | MS_NODEV | (source.writable ? 0 : MS_RDONLY), kOwnByServer, operation_);
  }
}

}  // namespace sifcrypt::starter
