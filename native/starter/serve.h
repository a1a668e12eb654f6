// The squashfs reader and the FUSE server of one image, as both commands use them, and what else is served of it.
#pragma once

#include <time.h>

#include <memory>
#include <vector>

#include "core/squashfs_reader.h"
#include "core/unique_fd.h"
#include "starter/file_server.h"
#include "starter/fuse_server.h"
#include "starter/options.h"

namespace sifcrypt::starter {

/// To be called before much is allocated: keeps what blocks are decoded into. Of another C library than glibc the heap is
/// as it is.
void LimitHeap();

/// A squashfs that is open: what is needed to serve it once there is a device.
class OpenSquashfs {
 public:
  explicit OpenSquashfs(const ImageOptions& options);
  std::unique_ptr<FuseSession> Serve(UniqueFd device) const;

 private:
  SquashfsView view_;
  std::shared_ptr<const SquashfsReader> reader_;
};

/// The files of a view, open.
class OpenView {
 public:
  OpenView(const ViewOptions& view, const ImageOptions& image);
  std::unique_ptr<FuseSession> Serve(UniqueFd device) const;

 private:
  std::vector<ServedFile> files_;
  Owner owner_;
  time_t time_ = 0;
};

}  // namespace sifcrypt::starter
