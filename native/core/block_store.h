// Blocks of 4 KiB for files that no disk may show: as many as fit lie in memory, the others encrypted in a file.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "core/unique_fd.h"
#include "core/xts.h"

namespace sifcrypt {

/// Thread-safe, but for two calls that concern the same block.
class BlockStore {
 public:
  static constexpr uint32_t kBlock = 4096;
  /// Blocks beside each other.
  struct Run {
    uint32_t first = 0;
    uint32_t count = 0;
  };

  /// Bytes. `spill` is a file that is opened for reading and writing, empty and without a name; it gets `disk` bytes at
  /// most. The key is random and never leaves this object.
  BlockStore(uint64_t memory, UniqueFd spill, uint64_t disk);
  ~BlockStore();
  BlockStore(const BlockStore&) = delete;
  BlockStore& operator=(const BlockStore&) = delete;

  /// One block at least, `most` at most; those in memory come first. What they hold is undefined. SystemError ENOSPC.
  Run Allocate(uint32_t most);
  void Free(Run run);

  /// Bytes from `at` on, counted from the start of block `first`. SystemError.
  void Read(uint32_t first, uint64_t at, void* out, size_t size) const;
  /// `fresh`: these blocks were just allocated, so what is around the bytes becomes zero. SystemError ENOSPC, EDQUOT, EIO.
  void Write(uint32_t first, uint64_t at, const void* data, size_t size, bool fresh);

  uint64_t capacity() const { return uint64_t{memory_blocks_} + disk_blocks_; }
  /// Blocks that are not in use, and those of them that the disk has room for.
  uint64_t unused() const;
  uint64_t available() const;

 private:
  /// A block's memory; only for blocks before memory_blocks_ that are allocated.
  uint8_t* InMemory(uint32_t block) const;
  bool MapChunkOf(uint32_t block);
  void Mark(Run run, bool used);
  /// To the system; all of it is either in memory or on the disk.
  void GiveBack(Run run) const;
  bool IsUsed(uint64_t block) const { return (used_[block / 64] >> (block % 64) & 1) != 0; }
  template <typename Body>
  void EachPiece(uint32_t first, uint64_t at, size_t size, Body body) const;

  const uint32_t memory_blocks_;
  const uint32_t disk_blocks_;
  const UniqueFd spill_;
  const XtsCipher cipher_;
  /// Made when they are first needed; null: not yet.
  std::vector<uint8_t*> chunks_;
  mutable std::mutex mutex_;
  /// A bit for each block that was ever in use.
  std::vector<uint64_t> used_;
  uint64_t used_count_ = 0;
  uint64_t used_on_disk_ = 0;
  /// There is none free in the words before this one.
  size_t first_free_ = 0;
};

}  // namespace sifcrypt
