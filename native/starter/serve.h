// The squashfs reader and the FUSE server of one image, as both commands use them.
#pragma once

#include <memory>

#include "core/squashfs_reader.h"
#include "core/unique_fd.h"
#include "starter/fuse_server.h"
#include "starter/options.h"

namespace sifcrypt::starter {

/// A squashfs that is open: what is needed to serve it once there is a device.
class OpenSquashfs {
 public:
  explicit OpenSquashfs(const ImageOptions& options);
  std::unique_ptr<FuseServer> Serve(UniqueFd device) const;

 private:
  FuseServer::Settings settings_;
  std::shared_ptr<const SquashfsReader> reader_;
};

}  // namespace sifcrypt::starter
