// Encodes the blocks of a squashfs: gzip by libdeflate, zstd, lz4 and xz by their own libraries; one by one, or many at
// once with the results in order.
#pragma once

#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "core/squashfs_decompress.h"

namespace sifcrypt {

struct SquashfsCodec {
  SquashfsCompression compression = SquashfsCompression::kZstd;
  /// -1: the default. gzip 1 to 12, zstd 1 to 22, lz4 1 to 12 (its slow encoder), xz 0 to 9.
  int level = -1;
  /// The largest block, bytes.
  uint32_t block_size = 128 * 1024;

  /// With the default level filled in. EINVAL: level or block size out of range; ENOTSUP: a codec that is only read.
  SquashfsCodec Checked() const;
  /// What follows the superblock; empty where readers get along without.
  std::vector<uint8_t> Options() const;
};

/// For one thread.
class SquashfsCompressor {
 public:
  explicit SquashfsCompressor(const SquashfsCodec& codec);
  ~SquashfsCompressor();
  SquashfsCompressor(const SquashfsCompressor&) = delete;
  SquashfsCompressor& operator=(const SquashfsCompressor&) = delete;
  /// Bytes written to `out`, which has room for `size`; 0 when they would not be fewer than `size`.
  size_t Encode(const uint8_t* in, size_t size, uint8_t* out);

 private:
  struct Context;
  SquashfsCodec codec_;
  std::unique_ptr<Context> context_;
};

/// SHA-256.
using SquashfsDigest = std::array<uint8_t, 32>;
SquashfsDigest DigestOf(const uint8_t* data, size_t size);

/// Worker threads and a ring of blocks. Blocks are submitted by one thread and delivered to it, in the same order, while
/// it waits for room; memory is that of the ring, whatever the amount of data.
class SquashfsBlockPipeline {
 public:
  enum class Kind : uint8_t { kFileBlock, kFragmentBlock };
  struct Block {
    Kind kind;
    /// As it was submitted.
    size_t size;
    /// What to store, and its digest; no bytes: all zero (file blocks only).
    const uint8_t* stored;
    size_t stored_size;
    bool compressed;
    SquashfsDigest digest;
  };
  using Deliver = std::function<void(const Block&)>;

  /// `threads` 0: one for each processor.
  SquashfsBlockPipeline(const SquashfsCodec& codec, unsigned threads, Deliver deliver);
  ~SquashfsBlockPipeline();
  SquashfsBlockPipeline(const SquashfsBlockPipeline&) = delete;
  SquashfsBlockPipeline& operator=(const SquashfsBlockPipeline&) = delete;

  using Buffer = std::unique_ptr<uint8_t[]>;
  Buffer NewBuffer() const;
  /// Room for a block, to be filled before it is submitted. What a caller swaps in here takes its place in the ring.
  Buffer& Next();
  /// Submits the first `size` bytes (not 0) of Next().
  void Submit(Kind kind, size_t size);
  /// Submits a file block that is known to be all zero.
  void SubmitHole(size_t size);
  /// Waits for the oldest block and delivers it. False: there is none.
  bool DeliverOldest();

 private:
  struct Slot;
  void Work();
  void Compress(SquashfsCompressor& compressor, Slot& slot);
  void MakeRoom();
  Slot& At(uint64_t number);

  SquashfsCodec codec_;
  Deliver deliver_;
  std::vector<Slot> slots_;
  std::mutex mutex_;
  std::condition_variable work_added_;
  std::condition_variable work_done_;
  // Numbers of blocks: the oldest not delivered, the next for a worker, the next to be submitted.
  uint64_t oldest_ = 0;
  uint64_t next_work_ = 0;
  uint64_t next_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace sifcrypt
