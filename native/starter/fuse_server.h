// Serves a squashfs as a FUSE file system.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>

#include "core/squashfs_reader.h"
#include "starter/fuse_session.h"

namespace sifcrypt::starter {

struct SquashfsView {
  /// Every file's owner, instead of what the image says.
  std::optional<uid_t> uid;
  std::optional<gid_t> gid;
  /// The directory that is shown, instead of the image's root.
  std::optional<InodeRef> root;
  /// False: the kernel is told never to ask for extended attributes again.
  bool has_xattrs = true;
};

/// `device` is as a FuseSession takes it.
std::unique_ptr<FuseSession> ServeSquashfs(std::shared_ptr<const SquashfsReader> reader, SquashfsView view,
                                           UniqueFd device);

}  // namespace sifcrypt::starter
