// A part of a file, as a ByteSource and as a ByteSink.
#pragma once

#include <memory>

#include "core/byte_range.h"
#include "core/unique_fd.h"

namespace sifcrypt {

/// Exactly `size` bytes from `at` on. SystemError "pread": EIO when the file ends before.
void ReadFully(int fd, uint64_t at, void* out, size_t size);

/// All of it, from `at` on. SystemError "pwrite".
void WriteFully(int fd, uint64_t at, const void* data, size_t size);

/// Overwrites what is there of [offset, offset + size) with zeros, on the disk when it returns, then gives the room back
/// where the file system can. Never makes the file longer. SystemError.
void WipeRange(int fd, uint64_t offset, uint64_t size);

/// What a descriptor gives, which is what all that is read of an image is made of: the one place that knows what kinds of descriptors there
/// are. Duplicates it. SystemError.
std::shared_ptr<const ByteSource> OpenDescriptor(int fd, Extent extent);

class FileSource final : public ByteSource {
 public:
  /// `offset + size` must lie inside the file (checked here: EOVERFLOW); `fd` is duplicated.
  FileSource(int fd, uint64_t offset, uint64_t size);
  uint64_t Size() const override { return size_; }
  void ReadAt(uint64_t offset, void* out, size_t size) const override;

 private:
  UniqueFd fd_;
  uint64_t offset_;
  uint64_t size_;
};

class FileSink final : public ByteSink {
 public:
  /// Writes to `fd` (opened for reading and writing, duplicated) from `offset` on, at most `limit` bytes.
  FileSink(int fd, uint64_t offset, uint64_t limit = INT64_MAX);
  uint64_t Size() const override { return size_; }
  void WriteAt(uint64_t offset, const void* data, size_t size) override;
  void ReadAt(uint64_t offset, void* out, size_t size) override;
  void Truncate(uint64_t size) override;
  void Finish() override {}

 private:
  UniqueFd fd_;
  uint64_t offset_;
  uint64_t limit_;
  uint64_t size_ = 0;
};

}  // namespace sifcrypt
