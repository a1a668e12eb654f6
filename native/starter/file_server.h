// Serves byte ranges as the files of one folder, to their owner.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "core/byte_range.h"
#include "starter/fuse_session.h"
#include "starter/options.h"

namespace sifcrypt::starter {

struct ServedFile {
  std::string name;
  /// Permission bits.
  mode_t mode = 0;
  std::shared_ptr<const ByteSource> bytes;
};

/// `time`, seconds since 1970, is that of everything. `device` is as a FuseSession takes it.
std::unique_ptr<FuseSession> ServeFiles(std::vector<ServedFile> files, Owner owner, time_t time, UniqueFd device);

}  // namespace sifcrypt::starter
