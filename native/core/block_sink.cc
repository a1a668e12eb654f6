#include "core/block_sink.h"

#include <string.h>

#include <algorithm>
#include <utility>

#include "core/system_error.h"

namespace sifcrypt {

BlockSink::BlockSink(std::unique_ptr<ByteSink> below, size_t block_size)
    : below_(std::move(below)), block_size_(block_size), tail_(block_size) {}

void BlockSink::Load(uint64_t start, uint8_t* out) {
  if (start == tail_start())
    memcpy(out, tail_.data(), block_size_);
  else
    LoadBlock(start / block_size_, out);
}

void BlockSink::WriteAt(uint64_t offset, const void* data, size_t size) {
  if (offset > size_) throw SystemError(EINVAL, "pwrite", "writes must not leave gaps");
  const auto* from = static_cast<const uint8_t*>(data);
  while (size > 0) {
    const uint64_t start = offset / block_size_ * block_size_;
    if (offset == start && size >= block_size_) {
      const size_t whole = std::min(size, kPiece) / block_size_ * block_size_;
      StoreBlocks(start / block_size_, from, whole);
      size_ = std::max(size_, offset + whole);
      offset += whole, from += whole, size -= whole;
      continue;
    }
    const auto skip = static_cast<size_t>(offset - start);
    const size_t n = std::min(size, block_size_ - skip);
    if (start == tail_start()) {
      if (start == size_) memset(tail_.data(), 0, block_size_);  // a new block begins
      memcpy(tail_.data() + skip, from, n);
      if (skip + n == block_size_) StoreBlocks(start / block_size_, tail_.data(), block_size_);
      size_ = std::max(size_, offset + n);
    } else {
      SecretBuffer plain(block_size_);
      LoadBlock(start / block_size_, plain.data());
      memcpy(plain.data() + skip, from, n);
      StoreBlocks(start / block_size_, plain.data(), block_size_);
    }
    offset += n, from += n, size -= n;
  }
}

void BlockSink::ReadAt(uint64_t offset, void* out, size_t size) {
  if (!RangeFits(offset, size, size_)) throw SystemError(EOVERFLOW, "pread");
  auto* to = static_cast<uint8_t*>(out);
  SecretBuffer plain(block_size_);
  while (size > 0) {
    const uint64_t start = offset / block_size_ * block_size_;
    const auto skip = static_cast<size_t>(offset - start);
    const size_t n = std::min(size, block_size_ - skip);
    Load(start, plain.data());
    memcpy(to, plain.data() + skip, n);
    offset += n, to += n, size -= n;
  }
}

void BlockSink::Truncate(uint64_t size) {
  if (size > size_) throw SystemError(EINVAL, "ftruncate");
  const uint64_t start = size / block_size_ * block_size_;
  if (start != tail_start() && size > start) {
    SecretBuffer plain(block_size_);
    LoadBlock(start / block_size_, plain.data());
    memcpy(tail_.data(), plain.data(), block_size_);
  }
  if (start < tail_start()) KeepBlocks(start / block_size_);
  // What follows the cut is no longer content: a padded last block must not carry it.
  if (size > start) memset(tail_.data() + (size - start), 0, block_size_ - (size - start));
  size_ = size;
}

}  // namespace sifcrypt
