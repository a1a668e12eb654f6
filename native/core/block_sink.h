// A sink that encrypts blocks of one size, each on its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/byte_range.h"
#include "core/secret_buffer.h"

namespace sifcrypt {

/// Takes any writes and gives whole blocks to who derives from it. The block being filled at the end stays in (wiped)
/// memory until it is whole, so plaintext never reaches the sink below.
class BlockSink : public ByteSink {
 public:
  uint64_t Size() const final { return size_; }
  void WriteAt(uint64_t offset, const void* data, size_t size) final;
  void ReadAt(uint64_t offset, void* out, size_t size) final;
  void Truncate(uint64_t size) final;

 protected:
  /// Blocks are given in pieces of at most this many bytes, so that memory stays bounded whatever is written.
  static constexpr size_t kPiece = 256 * 1024;

  BlockSink(std::unique_ptr<ByteSink> below, size_t block_size);
  ByteSink& below() { return *below_; }
  /// Of the block that is not whole; nothing behind them is left of earlier content.
  const uint8_t* tail() const { return tail_.data(); }
  size_t tail_size() const { return static_cast<size_t>(size_ % block_size_); }

  /// `size` bytes, whole blocks, from block `first` on; new ones or instead of what was stored there.
  virtual void StoreBlocks(uint64_t first, const uint8_t* plain, size_t size) = 0;
  /// One that was stored.
  virtual void LoadBlock(uint64_t block, uint8_t* plain) = 0;
  /// Forgets all but the first `count` that were stored.
  virtual void KeepBlocks(uint64_t count) = 0;

 private:
  uint64_t tail_start() const { return size_ - tail_size(); }
  /// What was written to one block, whole or the tail.
  void Load(uint64_t start, uint8_t* out);

  std::unique_ptr<ByteSink> below_;
  size_t block_size_;
  uint64_t size_ = 0;
  SecretBuffer tail_;
};

}  // namespace sifcrypt
