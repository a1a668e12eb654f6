#include "core/block_store.h"

#include <sys/mman.h>
#include <sys/random.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/file_range.h"

namespace sifcrypt {
namespace {

constexpr uint64_t kChunkBlocks = 1024;
constexpr uint64_t kChunk = kChunkBlocks * BlockStore::kBlock;
/// Runs from this on are given back to the system when they are freed; shorter ones are only used again.
constexpr uint32_t kGivenBack = 16;
/// What is encrypted or decrypted at a time.
constexpr size_t kPiece = 256 << 10;
constexpr size_t kKeySize = 64;
/// Numbers of blocks have 32 bits, and the last one stays free so that a run's end has, too.
constexpr uint64_t kMostBlocks = UINT32_MAX - 1;

SecretBuffer RandomKey() {
  SecretBuffer key(kKeySize);
  if (CheckErrno(getrandom(key.data(), key.size(), 0), "getrandom") != static_cast<ssize_t>(key.size()))
    throw SystemError(EIO, "getrandom");
  return key;
}

uint32_t BlocksOf(uint64_t bytes, uint64_t most) {
  return static_cast<uint32_t>(std::min(bytes / BlockStore::kBlock, most));
}

}  // namespace

BlockStore::BlockStore(uint64_t memory, UniqueFd spill, uint64_t disk)
    : memory_blocks_(BlocksOf(memory, kMostBlocks) / kChunkBlocks * kChunkBlocks),
      disk_blocks_(spill ? BlocksOf(disk, kMostBlocks - memory_blocks_) : 0),
      spill_(std::move(spill)),
      cipher_({RandomKey(), kBlock, 0}),
      chunks_(memory_blocks_ / kChunkBlocks) {}

BlockStore::~BlockStore() {
  for (uint8_t* chunk : chunks_)
    if (chunk != nullptr) munmap(chunk, kChunk);
}

uint8_t* BlockStore::InMemory(uint32_t block) const {
  return chunks_[block / kChunkBlocks] + block % kChunkBlocks * kBlock;
}

bool BlockStore::MapChunkOf(uint32_t block) {
  uint8_t*& chunk = chunks_[block / kChunkBlocks];
  if (chunk != nullptr) return true;
  void* pages = mmap(nullptr, kChunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) return false;
  madvise(pages, kChunk, MADV_DONTDUMP);
  chunk = static_cast<uint8_t*>(pages);
  return true;
}

void BlockStore::Mark(Run run, bool used) {
  for (uint64_t block = run.first; block < uint64_t{run.first} + run.count; ++block) {
    const uint64_t bit = uint64_t{1} << (block % 64);
    if (used)
      used_[block / 64] |= bit;
    else
      used_[block / 64] &= ~bit;
  }
  const uint64_t end = uint64_t{run.first} + run.count;
  const uint64_t on_disk = end - std::clamp<uint64_t>(memory_blocks_, run.first, end);
  used_count_ += used ? run.count : -uint64_t{run.count};
  used_on_disk_ += used ? on_disk : -on_disk;
}

BlockStore::Run BlockStore::Allocate(uint32_t most) {
  const std::lock_guard lock(mutex_);
  for (;;) {
    while (first_free_ < used_.size() && used_[first_free_] == UINT64_MAX) ++first_free_;
    if (first_free_ == used_.size()) used_.push_back(0);
    const uint64_t first = first_free_ * 64 + static_cast<unsigned>(std::countr_one(used_[first_free_]));
    if (first >= capacity()) throw SystemError(ENOSPC, "allocate");
    // No further than where its kind, or its piece of memory, ends.
    const bool in_memory = first < memory_blocks_;
    const uint64_t bound = in_memory ? (first / kChunkBlocks + 1) * kChunkBlocks : capacity();
    const uint64_t end = std::min(first + most, bound);
    if (in_memory && !MapChunkOf(static_cast<uint32_t>(first))) {
      // The system gives no more of it: the rest of the chunk counts as in use, for ever.
      Mark({static_cast<uint32_t>(first), static_cast<uint32_t>(bound - first)}, true);
      continue;
    }
    while (used_.size() * 64 < end) used_.push_back(0);
    uint64_t next = first + 1;
    while (next < end && !IsUsed(next)) ++next;
    const Run run{static_cast<uint32_t>(first), static_cast<uint32_t>(next - first)};
    Mark(run, true);
    return run;
  }
}

/// Calls body(block, offset in it, position in the caller's bytes, size): in memory for parts of one chunk, on the disk
/// for whole blocks of one piece or for a part of one block.
template <typename Body>
void BlockStore::EachPiece(uint32_t first, uint64_t at, size_t size, Body body) const {
  for (size_t done = 0; done < size;) {
    const auto block = static_cast<uint32_t>(first + (at + done) / kBlock);
    const auto skip = static_cast<uint32_t>((at + done) % kBlock);
    size_t n = size - done;
    if (block < memory_blocks_)
      n = std::min<size_t>(n, (kChunkBlocks - block % kChunkBlocks) * kBlock - skip);
    else if (skip != 0 || n < kBlock)
      n = std::min<size_t>(n, kBlock - skip);
    else
      n = std::min<size_t>(n / kBlock * kBlock, kPiece);
    body(block, skip, done, n);
    done += n;
  }
}

void BlockStore::Free(Run run) {
  if (run.count == 0) return;
  const uint64_t end = uint64_t{run.first} + run.count;
  if (run.first < memory_blocks_ && end > memory_blocks_) {
    Free({memory_blocks_, static_cast<uint32_t>(end - memory_blocks_)});
    run.count = memory_blocks_ - run.first;
  }
  if (run.count >= kGivenBack) GiveBack(run);
  const std::lock_guard lock(mutex_);
  Mark(run, false);
  first_free_ = std::min<size_t>(first_free_, run.first / 64);
}

void BlockStore::GiveBack(Run run) const {
  if (run.first >= memory_blocks_) {
    // Where the file system cannot, the room is used again by whoever comes next.
    fallocate(spill_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
              static_cast<off_t>(uint64_t{run.first - memory_blocks_} * kBlock),
              static_cast<off_t>(uint64_t{run.count} * kBlock));
    return;
  }
  EachPiece(run.first, 0, uint64_t{run.count} * kBlock,
            [&](uint32_t block, uint32_t, size_t, size_t size) { madvise(InMemory(block), size, MADV_DONTNEED); });
}

uint64_t BlockStore::unused() const {
  const std::lock_guard lock(mutex_);
  return capacity() - used_count_;
}

uint64_t BlockStore::available() const {
  uint64_t free_blocks, disk_free;
  {
    const std::lock_guard lock(mutex_);
    free_blocks = capacity() - used_count_;
    disk_free = disk_blocks_ - used_on_disk_;
  }
  struct statvfs disk {};
  if (disk_blocks_ == 0 || fstatvfs(spill_.get(), &disk) != 0) return free_blocks;
  const uint64_t on_disk = std::min<uint64_t>(disk_free, disk.f_bavail * disk.f_frsize / kBlock);
  return free_blocks - disk_free + on_disk;
}

void BlockStore::Read(uint32_t first, uint64_t at, void* out, size_t size) const {
  auto* to = static_cast<uint8_t*>(out);
  std::vector<uint8_t> edge;
  EachPiece(first, at, size, [&](uint32_t block, uint32_t skip, size_t position, size_t n) {
    if (block < memory_blocks_) {
      memcpy(to + position, InMemory(block) + skip, n);
      return;
    }
    const uint64_t offset = uint64_t{block - memory_blocks_} * kBlock;
    uint8_t* plain = to + position;
    size_t whole = n;
    if (n % kBlock != 0) {
      edge.resize(kBlock);
      plain = edge.data();
      whole = kBlock;
    }
    ReadFully(spill_.get(), offset, plain, whole);
    cipher_.Decrypt(offset, plain, whole);
    if (whole != n) memcpy(to + position, edge.data() + skip, n);
  });
}

void BlockStore::Write(uint32_t first, uint64_t at, const void* data, size_t size, bool fresh) {
  const auto* from = static_cast<const uint8_t*>(data);
  std::vector<uint8_t> out, edge;
  EachPiece(first, at, size, [&](uint32_t block, uint32_t skip, size_t position, size_t n) {
    if (block < memory_blocks_) {
      uint8_t* to = InMemory(block);
      const size_t end = skip + n;
      if (fresh) memset(to, 0, skip);
      memcpy(to + skip, from + position, n);
      if (fresh && end % kBlock != 0) memset(to + end, 0, kBlock - end % kBlock);
      return;
    }
    const uint64_t offset = uint64_t{block - memory_blocks_} * kBlock;
    const uint8_t* plain = from + position;
    size_t whole = n;
    if (n % kBlock != 0) {
      edge.assign(kBlock, 0);
      if (!fresh) {
        ReadFully(spill_.get(), offset, edge.data(), kBlock);
        cipher_.Decrypt(offset, edge.data(), kBlock);
      }
      memcpy(edge.data() + skip, from + position, n);
      plain = edge.data();
      whole = kBlock;
    }
    out.resize(whole);
    cipher_.Encrypt(offset, plain, out.data(), whole);
    WriteFully(spill_.get(), offset, out.data(), whole);
  });
}

}  // namespace sifcrypt
