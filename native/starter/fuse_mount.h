// A FUSE file system at a place: mounted and unmounted here, served by fuse_server.h.
#pragma once

#include <string>

#include "core/unique_fd.h"

namespace sifcrypt::starter {

constexpr unsigned kFuseMaxRead = 1 << 20;

/// Mounts with mount(2), as needs CAP_SYS_ADMIN in the user namespace; all users may look in. Mount tables show
/// `source`. Gives the device to serve it from. Throws SystemError "fuse" (no /dev/fuse) or "mount".
UniqueFd MountFuse(const std::string& target, const std::string& source);

/// The same for everybody else, by the setuid program fusermount3. Throws SystemError "fuse".
UniqueFd MountFuseUnprivileged(const std::string& target, const std::string& source);

/// The device number ("0:43") of our file system when it is what one sees at `target` (an absolute path without
/// symbolic links); empty when something else is there.
std::string FuseMountDevice(const std::string& target);

/// Takes the file system with this device number away from `target`, even while it is in use.
void UnmountFuse(const std::string& target, const std::string& device);

}  // namespace sifcrypt::starter
