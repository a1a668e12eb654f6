// Writes a squashfs 4.0. The same tree gives the same bytes, whatever the number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "core/byte_range.h"
#include "core/squashfs_compress.h"
#include "core/tree_source.h"

namespace sifcrypt {

struct SquashfsWriteOptions {
  SquashfsCodec codec;
  /// Worker threads; 0: one for each processor.
  unsigned threads = 0;
  /// Whom everything belongs to; default: as the source says.
  std::optional<TreeOwner> owner;
  /// Seconds since 1970 that no time exceeds, and the image's own time; -1: none, and the image has its newest entry's.
  int64_t source_date_epoch = -1;
};

struct SquashfsWritten {
  /// Bytes of the image, padded to 4096.
  uint64_t size = 0;
  /// Bytes of the files in the tree.
  uint64_t input_bytes = 0;
  /// Names in the tree and its root.
  uint64_t entries = 0;
  /// Extended attributes of the source that it could not be given.
  uint64_t skipped_xattrs = 0;
};

/// Gets the bytes of input so far; false stops with SystemError(ECANCELED). On the calling thread, at least per entry.
using SquashfsProgress = std::function<bool(uint64_t)>;

/// Writes the image from offset 0 of `sink`. Finishing it is the caller's: more may follow.
SquashfsWritten WriteSquashfs(TreeSource& tree, ByteSink& sink, const SquashfsWriteOptions& options,
                              const SquashfsProgress& progress);

/// Copies an image as it is: `length` bytes, which are EINVAL if fewer than the image has and EOVERFLOW if more than the
/// source; by default without what follows the image's last byte. Pads and leaves the sink unfinished as WriteSquashfs
/// does. FormatError if it is none.
SquashfsWritten CopySquashfs(const ByteSource& image, std::optional<uint64_t> length, ByteSink& sink,
                             const SquashfsProgress& progress);

/// Writes `bytes` at `at`, then zeros up to a multiple of 4096; returns where they end.
uint64_t WritePadded(ByteSink& sink, uint64_t at, const std::vector<uint8_t>& bytes);

}  // namespace sifcrypt
