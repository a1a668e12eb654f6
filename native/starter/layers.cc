#include "starter/layers.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "core/system_error.h"
#include "starter/fuse_mount.h"
#include "starter/image.h"
#include "starter/processes.h"

namespace sifcrypt::starter {
namespace {

/// The container before may still be letting go of it.
constexpr int64_t kLockMs = 2000;
constexpr long kLockPeriodNs = 10'000'000;

bool IsDirectory(const std::string& path) {
  struct stat info {};
  return lstat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

void MakeUnlessThere(const std::string& path, const std::string& name) {
  if (mkdir(path.c_str(), 0755) != 0 && errno != EEXIST)
    throw SystemError(errno, "overlay", name + ": cannot make a folder in it: " + std::strerror(errno));
  // A link would lead to somewhere else.
  if (!IsDirectory(path)) throw SystemError(ENOTDIR, "overlay", name + ": upper or work in it is no folder");
}

std::string NameOf(const LayerOptions& layer) {
  if (layer.kind == LayerOptions::Kind::kDirectory) return layer.path;
  char path[4096];
  const std::string link = "/proc/self/fd/" + std::to_string(layer.image.image_fd);
  const ssize_t n = readlink(link.c_str(), path, sizeof path);
  return n > 0 ? std::string(path, static_cast<size_t>(n)) : "the overlay";
}

}  // namespace

bool NeedsServer(const LayerOptions& layer) {
  return layer.kind == LayerOptions::Kind::kSquashfs && layer.image.engine == Engine::kUserspace;
}

Layers::Layers(const std::vector<LayerOptions>& layers, std::string folder, const std::vector<Channel>& servers) {
  auto server = servers.begin();
  size_t count = 0;
  for (const LayerOptions& layer : layers) {
    const std::string target = folder + "/" + std::to_string(count++);
    CheckErrno(mkdir(target.c_str(), 0755), "mount");
    const Channel* own = NeedsServer(layer) ? &*server++ : nullptr;
    Mount(layer, target, own);
    const std::string name = NameOf(layer);
    if (!layer.writable) {
      // What a writable one left behind when it was one.
      const std::string upper = target + "/upper";
      const bool has_upper = layer.kind != LayerOptions::Kind::kSquashfs && IsDirectory(upper);
      read_only_.push_back(has_upper ? upper : target);
      continue;
    }
    MakeUnlessThere(target + "/upper", name);
    MakeUnlessThere(target + "/work", name);
    struct stat upper {};
    // What is stored as somebody's who is not mapped here cannot be written through a user namespace.
    if (stat((target + "/upper").c_str(), &upper) == 0 && geteuid() == 0 && upper.st_uid != 0 &&
        layer.kind == LayerOptions::Kind::kExt && layer.image.engine == Engine::kUserspace)
      throw SystemError(
          EOVERFLOW, "overlay",
          name + ": its folder upper belongs to a user whom the container's user namespace does not know");
    writable_ = target;
    writable_name_ = name;
    writable_is_fuse_ = layer.kind == LayerOptions::Kind::kExt && layer.image.engine == Engine::kUserspace;
  }
}

Layers::~Layers() {
  if (!writable_.empty()) {
    const UniqueFd written(open(writable_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (written) syncfs(written.get());
  }
  // Those of helpers are unmounted, and waited for, by them.
  helpers_.clear();
  for (; !mounts_.empty(); mounts_.pop_back())
    if (umount2(mounts_.back().c_str(), UMOUNT_NOFOLLOW) != 0)
      umount2(mounts_.back().c_str(), UMOUNT_NOFOLLOW | MNT_DETACH);
}

void Layers::Hold(int fd, bool writable, const std::string& name) {
  UniqueFd held = UniqueFd::Duplicate(fd);
  const int64_t give_up = NowMs() + kLockMs;
  while (flock(held.get(), (writable ? LOCK_EX : LOCK_SH) | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) throw SystemError(errno, "overlay", name + ": " + std::strerror(errno));
    if (NowMs() >= give_up) throw SystemError(EBUSY, "overlay", name + ": another container uses it");
    const timespec pause{0, kLockPeriodNs};
    nanosleep(&pause, nullptr);
  }
  locks_.push_back(std::move(held));
}

void Layers::Mount(const LayerOptions& layer, const std::string& target, const Channel* server) {
  const std::string name = NameOf(layer);
  switch (layer.kind) {
    case LayerOptions::Kind::kDirectory: {
      if (mount(layer.path.c_str(), target.c_str(), nullptr, MS_BIND | MS_REC, nullptr) != 0)
        throw SystemError(errno, "overlay", name + ": " + std::strerror(errno));
      mounts_.push_back(target);
      // Read-only ones may be used by several at once, and while they are written: as the peers have it.
      if (!layer.writable) return;
      const UniqueFd directory(open(target.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
      if (!directory) throw SystemError(errno, "overlay", name + ": " + std::strerror(errno));
      return Hold(directory.get(), true, name);
    }
    case LayerOptions::Kind::kSquashfs:
      if (layer.image.engine == Engine::kKernel) {
        MountWithKernel(layer.image, target);
      } else {
        const UniqueFd device = MountFuse(target, "sifcrypt");
        if (!server->Send({.kind = Message::Kind::kDevice}, device.get()))
          throw SystemError(EPIPE, "server", "the server of an overlay has ended");
      }
      mounts_.push_back(target);
      return;
    case LayerOptions::Kind::kExt:
      Hold(layer.image.image_fd, layer.writable, name);
      if (layer.image.engine == Engine::kKernel) {
        MountWithKernel(layer.image, target, KernelFileSystem::kExt, layer.writable);
        mounts_.push_back(target);
        return;
      }
      // Nothing is mounted twice: the helper's own destructor takes this one away.
      helpers_.emplace_back(
          "fuse2fs",
          std::vector<std::string>{
              "/proc/self/fd/" + std::to_string(layer.image.image_fd), target, "-f", "-o",
              std::string(layer.writable ? "rw" : "ro") + ",fakeroot,offset=" + std::to_string(layer.image.offset)},
          target, "/", layer.image.image_fd);
  }
}

}  // namespace sifcrypt::starter
