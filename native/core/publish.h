// Gives a finished unnamed file its name, locks a file, and takes a mount away: the small things Node's fs cannot do.
#pragma once

#include <string>

namespace sifcrypt::publish {

/// Syncs `fd` (opened with O_TMPFILE), links it to `path` and syncs the folder, if that may be read. An existing `path` is EEXIST, or with
/// `replace` is exchanged in one step: at any moment the name holds the old file or the new one.
void LinkInto(int fd, const std::string& path, bool replace);

/// The exclusive flock(2) of an open file, which all its descriptors share; false: somebody else has it.
bool Lock(int fd);

/// umount2 with UMOUNT_NOFOLLOW, and MNT_DETACH when `lazy`.
void Unmount(const std::string& path, bool lazy);

}  // namespace sifcrypt::publish
