// Gives a finished unnamed file its name, locks a file, and takes a mount away: the small things Node's fs cannot do.
#pragma once

#include <cstdint>
#include <string>

namespace sifcrypt::publish {

/// Syncs `fd` (opened with O_TMPFILE), links it to `path` and syncs the folder, if that may be read. An existing `path` is EEXIST, or with
/// `replace` is exchanged in one step: at any moment the name holds the old file or the new one.
void LinkInto(int fd, const std::string& path, bool replace);

/// The exclusive flock(2) of an open file, which all its descriptors share; false: somebody else has it.
bool Lock(int fd);

/// Who keeps a lock from us.
enum class Holder {
  /// Nobody: it is ours.
  kNone,
  /// At least one who has the file open for writing.
  kWriter,
  /// Nobody but some who need no more than read permission.
  kReaders,
};

/// The lock (F_OFD_SETLK) of a range of an open file, which all its descriptors share; a `length` of 0 is up to any end. `exclusive`
/// needs a file that is open for writing, so who may only read cannot pose as somebody who writes.
Holder LockRange(int fd, int64_t start, int64_t length, bool exclusive);

/// umount2 with UMOUNT_NOFOLLOW, and MNT_DETACH when `lazy`.
void Unmount(const std::string& path, bool lazy);

}  // namespace sifcrypt::publish
