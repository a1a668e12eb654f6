// A FUSE file system at a place: mounted and unmounted here, served by fuse_server.h.
#pragma once

#include <sys/mount.h>

#include <string>

#include "core/unique_fd.h"

namespace sifcrypt::starter {

constexpr unsigned kFuseMaxRead = 1 << 20;
/// Flags of mount(2).
constexpr unsigned long kReadOnly = MS_RDONLY | MS_NOSUID | MS_NODEV;

/// Who may do what in a FUSE file system.
/// All users, what the modes of files say.
constexpr char kByMode[] = "allow_other,default_permissions";
/// All users, what its server allows.
constexpr char kByServer[] = "allow_other";
/// The user who mounts it, what its server allows.
constexpr char kOwnByServer[] = "";

/// What mount tables show as the type, behind "fuse.".
constexpr char kOwnSubtype[] = "sifcrypt";

/// Mounts with mount(2), as needs CAP_SYS_ADMIN in the user namespace. Mount tables show `source`. Gives the device to serve
/// it from. `flags`: those of mount(2). Throws SystemError "fuse" (no /dev/fuse) or "mount".
UniqueFd MountFuse(const std::string& target, const std::string& source, unsigned long flags = kReadOnly,
                   const std::string& access = kByMode, const std::string& subtype = kOwnSubtype);

/// The same for everybody else, by the setuid program fusermount3, which decides who may have which `access`, and lets nobody do without
/// kReadOnly's `flags`. That finishes what it has begun when this process is killed: until it ends it has `kept` open, too. Throws
/// SystemError "fuse".
UniqueFd MountFuseUnprivileged(const std::string& target, const std::string& source, int kept,
                               unsigned long flags = kReadOnly, const std::string& access = kOwnByServer,
                               const std::string& subtype = kOwnSubtype);

/// Absolute and without symbolic links. SystemError "mount".
std::string RealPath(const std::string& path);

/// Tells the file system that one sees at `target` (an absolute path without symbolic links) from any other: its device
/// number and source. Empty when what is there is neither a FUSE file system of ours nor a squashfs of the kernel's.
std::string MountIdentity(const std::string& target);

/// Takes the file system with this identity away from `target`, even while it is in use.
void Unmount(const std::string& target, const std::string& identity);
/// The same unless it is in use.
void UnmountUnused(const std::string& target, const std::string& identity);

}  // namespace sifcrypt::starter
