// Writes a part of a squashfs into a folder. The image is hostile and so may be what stands in the folder:
// nothing is followed and nothing that exists is overwritten.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "core/squashfs_reader.h"

namespace sifcrypt {

struct ExtractRequest {
  /// In the image; a symbolic link at its end is followed. A directory's content lands in `target`, anything
  /// else as target/(last part of the path).
  std::string path;
  /// A folder that exists.
  std::string target;
  /// Keep owners, setuid and setgid bits, device nodes and the xattrs that only root may set.
  bool preserve_owner = false;
  /// An owner whom this user namespace does not know is nobody; otherwise EINVAL.
  bool strangers_are_nobody = false;
  /// The target, if it is empty, becomes the folder at `path`, with its attributes.
  bool fill = false;
  /// Keep setuid and setgid bits at least: the target is a root file system under construction.
  bool keep_modes = false;
  /// Threads that decode and write; 0: one for each processor, four at most.
  unsigned threads = 0;
  /// What a few bytes can ask for again and again: attributes, holes, the way to folders. A step takes some ten nanoseconds.
  uint64_t max_steps = uint64_t{1} << 29;
  /// Called now and then, by one thread at a time, with the bytes of content written so far. False: stop.
  std::function<bool(uint64_t bytes)> on_progress;
};

struct Extracted {
  uint64_t entries = 0;
  /// Of file content, holes included.
  uint64_t bytes = 0;
  /// Device nodes left out because owners are not preserved.
  uint64_t skipped_devices = 0;
  /// Xattrs that the file system or the lack of privilege refused.
  uint64_t skipped_xattrs = 0;
  /// Entries with an owner that this user namespace does not know: they are nobody's, if it knows nobody.
  uint64_t unknown_owners = 0;
};

/// Throws SystemError: EEXIST when an entry other than a directory stands in the way, ECANCELED when
/// on_progress says stop, EBADMSG when the image breaks its format, or what the system said. What was written
/// until then stays.
Extracted Extract(const SquashfsReader& reader, const ExtractRequest& request);

}  // namespace sifcrypt
