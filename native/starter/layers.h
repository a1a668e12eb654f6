// What lies between the image and its overlay's top: directories and images that the caller names, and what the image itself
// brings to lie over its root.
#pragma once

#include <string>
#include <vector>

#include "starter/channel.h"
#include "starter/options.h"
#include "starter/source_mounts.h"

namespace sifcrypt::starter {

/// That of MountFuse to what lies below them. A server without capabilities, which writes over it for all of the payload's
/// users, has to be let in; nobody else sees what lies below.
const char* AccessBelow(const std::vector<LayerOptions>& layers);

class Layers {
 public:
  /// Mounts each in a new folder of `folder`. `servers`: one for each squashfs of the userspace engine, in their order.
  /// SystemError "overlay" and those of SourceMounts::Add.
  Layers(const std::vector<LayerOptions>& layers, const std::string& folder, const std::vector<Channel>& servers);
  Layers(const Layers&) = delete;
  Layers& operator=(const Layers&) = delete;
  /// Writes what is left.
  ~Layers();

  /// The folders to put over the image, lowest first.
  const std::vector<std::string>& read_only() const { return read_only_; }
  /// With "upper" and "work" in it; empty: nothing is kept.
  const std::string& writable() const { return writable_; }
  /// What the kernel does not take as an upper layer: another FUSE file system.
  bool writable_is_fuse() const { return writable_is_fuse_; }
  /// As the caller knows it.
  const std::string& writable_name() const { return writable_name_; }
  const std::vector<FuseHelper>& helpers() const { return mounts_.helpers(); }

 private:
  SourceMounts mounts_;
  std::vector<std::string> read_only_;
  std::string writable_;
  std::string writable_name_;
  bool writable_is_fuse_ = false;
};

}  // namespace sifcrypt::starter
