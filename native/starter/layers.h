// What lies between the image and its overlay's top: directories and images that the caller names. All of it is mounted
// in the session's own mount namespace.
#pragma once

#include <string>
#include <vector>

#include "core/unique_fd.h"
#include "starter/channel.h"
#include "starter/fuse_helper.h"
#include "starter/options.h"

namespace sifcrypt::starter {

class Layers {
 public:
  /// Mounts each in a new folder of `folder`. `servers`: one for each squashfs of the userspace engine, in their order.
  /// SystemError "overlay" (EBUSY: another container writes it), "mount", "fuse", "server" and KernelMount's.
  Layers(const std::vector<LayerOptions>& layers, std::string folder, const std::vector<Channel>& servers);
  Layers(const Layers&) = delete;
  Layers& operator=(const Layers&) = delete;
  /// Writes what is left and unmounts, last first.
  ~Layers();

  /// The folders to put over the image, lowest first.
  const std::vector<std::string>& read_only() const { return read_only_; }
  /// With "upper" and "work" in it; empty: nothing is kept.
  const std::string& writable() const { return writable_; }
  /// What the kernel does not take as an upper layer: another FUSE file system.
  bool writable_is_fuse() const { return writable_is_fuse_; }
  /// As the caller knows it.
  const std::string& writable_name() const { return writable_name_; }
  const std::vector<FuseHelper>& helpers() const { return helpers_; }

 private:
  void Mount(const LayerOptions& layer, const std::string& target, const Channel* server);
  void Hold(int fd, bool writable, const std::string& name);

  std::vector<std::string> mounts_;
  std::vector<FuseHelper> helpers_;
  /// Open and locked for as long as they are mounted.
  std::vector<UniqueFd> locks_;
  std::vector<std::string> read_only_;
  std::string writable_;
  std::string writable_name_;
  bool writable_is_fuse_ = false;
};

/// Does a server process of ours serve it?
bool NeedsServer(const LayerOptions& layer);

}  // namespace sifcrypt::starter
