#include "starter/layers.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "core/system_error.h"
#include "core/unique_fd.h"
#include "starter/fuse_mount.h"

namespace sifcrypt::starter {
namespace {

constexpr mode_t kWorkMode = 0700;

bool IsDirectory(const std::string& path) {
  struct stat info {};
  return lstat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

void MakeUnlessThere(const std::string& path, mode_t mode, const std::string& name) {
  if (mkdir(path.c_str(), mode) != 0 && errno != EEXIST)
    throw SystemError(errno, "overlay", name + ": cannot make a folder in it: " + std::strerror(errno));
  // A link would lead to somewhere else.
  if (!IsDirectory(path)) throw SystemError(ENOTDIR, "overlay", name + ": upper or work in it is no folder");
}

/// The kernel does not take it as an upper layer.
bool IsWrittenByFuse(const LayerOptions& layer) {
  return layer.writable && layer.kind == LayerOptions::Kind::kExt && layer.image.engine == Engine::kUserspace;
}

}  // namespace

const char* AccessBelow(const std::vector<LayerOptions>& layers) {
  return std::any_of(layers.begin(), layers.end(), IsWrittenByFuse) ? kByServer : kByMode;
}

Layers::Layers(const std::vector<LayerOptions>& layers, const std::string& folder, const std::vector<Channel>& servers)
    : mounts_("overlay", AccessBelow(layers)) {
  auto server = servers.begin();
  size_t count = 0;
  for (const LayerOptions& layer : layers) {
    const std::string target = folder + "/" + std::to_string(count++);
    CheckErrno(mkdir(target.c_str(), 0755), "mount");
    mounts_.Add(layer, target, NeedsServer(layer) ? &*server++ : nullptr);
    const std::string name = NameOf(layer);
    if (!layer.writable) {
      // What a writable one left behind when it was one.
      const std::string upper = target + "/upper";
      const bool has_upper = layer.kind != LayerOptions::Kind::kSquashfs && IsDirectory(upper);
      read_only_.push_back(has_upper ? upper : target);
      continue;
    }
    MakeUnlessThere(target + "/upper", 0755, name);
    const std::string work = target + "/work";
    MakeUnlessThere(work, kWorkMode, name);
    if (layer.kind == LayerOptions::Kind::kDirectory) {
      // A folder cannot be open for writing, so whoever may read this one could lock it: nobody else has any business in it.
      // One that is somebody else's stays as he has it.
      static_cast<void>(!chmod(work.c_str(), kWorkMode));
      // Read-only ones may be used by several at once, and while they are written: as the peers have it.
      mounts_.LockFolder(work, name);
    }
    struct stat upper {};
    // What is stored as somebody's who is not mapped here cannot be written through a user namespace.
    if (stat((target + "/upper").c_str(), &upper) == 0 && geteuid() == 0 && upper.st_uid != 0 && IsWrittenByFuse(layer))
      throw SystemError(
          EOVERFLOW, "overlay",
          name + ": its folder upper belongs to a user whom the container's user namespace does not know");
    writable_ = target;
    writable_name_ = name;
    writable_is_fuse_ = IsWrittenByFuse(layer);
  }
}

Layers::~Layers() {
  if (writable_.empty()) return;
  const UniqueFd written(open(writable_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (written) syncfs(written.get());
}

}  // namespace sifcrypt::starter
