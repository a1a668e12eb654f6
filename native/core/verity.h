// dm-verity's hash tree, on-disk format version 1 with SHA-256 and blocks of 4096 bytes, without superblock: made, compared, and used
// while reading. (Linux, admin-guide/device-mapper/verity; docs/format.md says how an image carries it.)
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "core/byte_range.h"
#include "core/shared_cache.h"

namespace sifcrypt {

constexpr size_t kVerityBlock = 4096;
constexpr size_t kVerityDigestSize = 32;
constexpr size_t kVerityDigestsPerBlock = kVerityBlock / kVerityDigestSize;

using VerityDigest = std::array<uint8_t, kVerityDigestSize>;
using VeritySalt = std::array<uint8_t, 32>;

struct VerityParameters {
  VerityDigest root{};
  VeritySalt salt{};
};

/// Where the blocks of a hash tree lie. Level 0 holds the digests of data.
class VerityLayout {
 public:
  struct Level {
    /// Its first block in the hash tree, and how many there are.
    uint64_t first = 0;
    uint64_t count = 0;
  };

  /// EINVAL "verity": not whole blocks, fewer than two, or more than a file can have.
  explicit VerityLayout(uint64_t data_size);
  uint64_t data_blocks() const { return data_blocks_; }
  /// At least one; the last has one block, which is the hash tree's first.
  const std::vector<Level>& levels() const { return levels_; }
  uint64_t blocks() const { return blocks_; }
  uint64_t size() const { return blocks_ * kVerityBlock; }

 private:
  uint64_t data_blocks_;
  uint64_t blocks_ = 0;
  std::vector<Level> levels_;
};

/// Data whose every block is checked against a hash tree, and so against its root, each time that it is read from below; that is before anybody
/// sees a byte of it.
class VerifiedSource final : public ByteSource {
 public:
  /// Called once for a block that fails, and not for more than kMaxReported of them.
  using OnFailure = std::function<void(uint64_t block, const char* reason)>;
  static constexpr size_t kMaxReported = 16;

  /// EINVAL, FormatError "verity_open": the hash tree is not of the size that belongs to the data's. EIO "verity_read": its first block has
  /// another digest than the root's.
  VerifiedSource(std::shared_ptr<const ByteSource> data, std::shared_ptr<const ByteSource> hashes,
                 const VerityParameters& parameters, OnFailure on_failure = {});
  uint64_t Size() const override { return data_->Size(); }
  /// Also EIO "verity_read" when a block is not what the hash tree says; `out` holds nothing of it then.
  void ReadAt(uint64_t offset, void* out, size_t size) const override;

 private:
  using HashBlock = std::array<uint8_t, kVerityBlock>;
  using HashBlockPtr = std::shared_ptr<const HashBlock>;
  class Hasher;

  HashBlockPtr VerifiedHashBlock(Hasher& hasher, size_t level, uint64_t index) const;
  void CheckBlocks(Hasher& hasher, uint64_t first, uint8_t* blocks, size_t count) const;
  [[noreturn]] void Fail(uint64_t block, const char* reason) const;

  std::shared_ptr<const ByteSource> data_;
  std::shared_ptr<const ByteSource> hashes_;
  VerityParameters parameters_;
  VerityLayout layout_;
  OnFailure on_failure_;
  /// By block of the hash tree; only what was verified.
  mutable SharedCache<uint64_t, HashBlock> hash_blocks_;
  mutable std::mutex mutex_;
  mutable std::vector<uint64_t> reported_;
};

/// Bytes of data hashed so far; false stops.
using VerityProgress = std::function<bool(uint64_t bytes)>;

/// Gets each block of a hash tree once, in any order, from several threads at a time.
using StoreVerityBlock = std::function<void(uint64_t block, const uint8_t* bytes)>;

/// Hashes `data`, on several processors (0: as many as there are), and returns the root. Memory is a 4096th part of a hash tree's, and what the
/// threads read. ECANCELED "verity_hash" when progress says so.
VerityDigest HashVerity(const ByteSource& data, const VeritySalt& salt, const StoreVerityBlock& store,
                        unsigned threads = 0, const VerityProgress& progress = {});

/// Does the hash tree belong to the data, every block of both? EINVAL, FormatError as VerifiedSource.
bool IsVerityOf(const ByteSource& data, const ByteSource& hashes, const VerityParameters& parameters,
                unsigned threads = 0, const VerityProgress& progress = {});

}  // namespace sifcrypt
