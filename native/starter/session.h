// The session of one run: private namespaces, a folder in memory over an existing one, the image and an overlay in it,
// the bundle. All of it exists only for the process that makes it and its children, and goes when they go.
#pragma once

#include <string>

#include "core/unique_fd.h"
#include "starter/channel.h"
#include "starter/options.h"

namespace sifcrypt::starter {

class Session {
 public:
  /// `directory`: absolute, without symbolic links.
  explicit Session(std::string directory) : directory_(std::move(directory)) {}

  /// Enters the namespaces. SystemError "userns".
  void Enter();
  /// Mounts the folder in memory and makes what is in it. "mount".
  void MountScratch() const;
  /// Fills it with what the parent sends. "bundle".
  void ReadBundle(UniqueFd pipe) const;
  /// Mounts the image: by the kernel, or by FUSE with the device given to `server`. "fuse", "mount" and KernelMount's.
  void MountImage(const ImageOptions& image, const Channel& server) const;
  /// Puts the overlay on top. "overlay".
  void MountOverlay() const;

  std::string Path(const char* name) const { return directory_ + "/" + name; }
  const std::string& directory() const { return directory_; }

 private:
  std::string directory_;
  bool in_user_namespace_ = false;
};

}  // namespace sifcrypt::starter
