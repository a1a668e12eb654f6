// Folders and images that the caller names, mounted in the session's own mount namespace.
#pragma once

#include <string>
#include <vector>

#include "core/unique_fd.h"
#include "starter/channel.h"
#include "starter/fuse_helper.h"
#include "starter/options.h"

namespace sifcrypt::starter {

class SourceMounts {
 public:
  /// `operation`: of a SystemError, "overlay" or "bind". `access`: that of MountFuse to squashfs images.
  SourceMounts(const char* operation, const char* access) : operation_(operation), access_(access) {}
  SourceMounts(const SourceMounts&) = delete;
  SourceMounts& operator=(const SourceMounts&) = delete;
  /// Writes what is left and unmounts, last first.
  ~SourceMounts();

  /// Mounts one on an existing folder. `server`: of a squashfs of the userspace engine. SystemError of the operation,
  /// "mount", "fuse", "server" and KernelMount's.
  void Add(const LayerOptions& source, const std::string& target, const Channel* server);
  /// Keeps a folder for us until all is unmounted. SystemError of the operation, EBUSY: another container has it.
  void LockFolder(const std::string& path, const std::string& name);
  const std::vector<FuseHelper>& helpers() const { return helpers_; }

 private:
  const char* operation_;
  const char* access_;
  std::vector<std::string> mounts_;
  std::vector<FuseHelper> helpers_;
  /// Open, and what was locked stays so, for as long as they are mounted.
  std::vector<UniqueFd> locks_;
};

/// Does a server process of ours serve it?
bool NeedsServer(const LayerOptions& source);
/// As the caller knows it.
std::string NameOf(const LayerOptions& source);

}  // namespace sifcrypt::starter
