// The squashfs around a gocryptfs file and its configuration, as Apptainer has it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/byte_range.h"

namespace sifcrypt {

/// What is written becomes the content of a file in the root of a squashfs: stored as it is, at one place, so that it can
/// be written while it grows and rewritten. The rest of the squashfs follows when it is finished.
///
/// ```
/// 0       superblock
/// 4096    gocryptfs.conf, up to a multiple of 4096: in a data block of its own, so that one write replaces it
/// ...     the file
/// ...     inodes, directory, export and id tables, zeros up to a multiple of 4096
/// ```
class EnclosingSquashfs final : public ByteSink {
 public:
  struct Contents {
    /// The file's name: 1 to 255 bytes, no '/', no NUL; not that of the configuration.
    std::string file;
    /// What gocryptfs.conf holds: 1 byte to 64 KiB.
    std::vector<uint8_t> config;
    /// Seconds since 1970, of everything in it and of itself.
    uint32_t time = 0;
  };

  /// Writes from offset 0 of `image`. EINVAL: the contents are not as described.
  EnclosingSquashfs(std::unique_ptr<ByteSink> image, Contents contents);
  /// Of the file.
  uint64_t Size() const override { return size_; }
  void WriteAt(uint64_t offset, const void* data, size_t size) override;
  void ReadAt(uint64_t offset, void* out, size_t size) override;
  void Truncate(uint64_t size) override;
  /// EINVAL when the file is empty: Apptainer refuses that.
  void Finish() override;

 private:
  std::unique_ptr<ByteSink> image_;
  Contents contents_;
  uint64_t file_start_;
  uint64_t size_ = 0;
};

}  // namespace sifcrypt
