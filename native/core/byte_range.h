// The two interfaces everything native composes from: bytes to read and bytes to write, addressed from 0.
// See docs/architecture.md; implementations: FileSource/FileSink (file_range.h), XtsSource/XtsSink (xts.h).
#pragma once

#include <string.h>

#include <cstddef>
#include <cstdint>

namespace sifcrypt {

/// `size + offset` without overflow and within `limit`?
inline bool RangeFits(uint64_t offset, uint64_t size, uint64_t limit) {
  return offset <= limit && size <= limit - offset;
}

inline bool IsZero(const uint8_t* data, size_t size) {
  return size == 0 || (data[0] == 0 && memcmp(data, data + 1, size - 1) == 0);
}

/// A part of a file, or of another part. Bytes.
struct Extent {
  uint64_t offset = 0;
  uint64_t size = 0;
};

/// Immutable random-access bytes. Every method may be called from several threads at once.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  virtual uint64_t Size() const = 0;
  /// Reads exactly `size` bytes at `offset`. Throws SystemError: EOVERFLOW when the range is not inside Size(), EIO when
  /// the file is shorter than promised, otherwise what the system said.
  virtual void ReadAt(uint64_t offset, void* out, size_t size) const = 0;
};

/// Bytes under construction. One thread at a time. What is written may be read back (libsquashfs compares duplicates).
class ByteSink {
 public:
  virtual ~ByteSink() = default;
  /// Highest byte written so far (or kept by Truncate).
  virtual uint64_t Size() const = 0;
  /// Writes `size` bytes at `offset` <= Size(); extends it if need be. ENOSPC/EFBIG when it leaves the room given.
  virtual void WriteAt(uint64_t offset, const void* data, size_t size) = 0;
  virtual void ReadAt(uint64_t offset, void* out, size_t size) = 0;
  virtual void Truncate(uint64_t size) = 0;
  /// Completes what is buffered (a last partial sector is padded with zeros). To be called once, after the last write.
  virtual void Finish() = 0;
};

}  // namespace sifcrypt
