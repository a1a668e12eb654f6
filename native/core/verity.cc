#include "core/verity.h"

#include <openssl/evp.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <string>
#include <thread>
#include <utility>

#include "core/system_error.h"

namespace sifcrypt {
namespace {

/// Verified hash blocks in memory: 4 MiB, for half a gigabyte of data.
constexpr size_t kCachedHashBlocks = 1024;
// Data is read and checked in pieces of this many blocks, so that it is still in the processor's cache when it is hashed.
constexpr size_t kPieceBlocks = 64;
constexpr unsigned kMaxThreads = 16;

/// SHA-256 over a salt and a block. One thread at a time.
class SaltedHash {
 public:
  explicit SaltedHash(const VeritySalt& salt) : salt_(salt), context_(EVP_MD_CTX_new()) {
    if (!context_ || EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) != 1)
      throw SystemError(ENOMEM, "EVP_DigestInit_ex");
  }
  VerityDigest Of(const uint8_t* block) {
    VerityDigest digest;
    // Without naming the algorithm again: it would be looked up each time.
    if (EVP_DigestInit_ex(context_.get(), nullptr, nullptr) != 1 ||
        EVP_DigestUpdate(context_.get(), salt_.data(), salt_.size()) != 1 ||
        EVP_DigestUpdate(context_.get(), block, kVerityBlock) != 1 ||
        EVP_DigestFinal_ex(context_.get(), digest.data(), nullptr) != 1)
      throw SystemError(EIO, "EVP_DigestUpdate");
    return digest;
  }

 private:
  struct Free {
    void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
  };
  const VeritySalt& salt_;
  std::unique_ptr<EVP_MD_CTX, Free> context_;
};

bool DigestAt(const uint8_t* hash_block, size_t index, const VerityDigest& digest) {
  return memcmp(hash_block + index * kVerityDigestSize, digest.data(), kVerityDigestSize) == 0;
}

uint64_t DivideUp(uint64_t number, uint64_t by) { return number / by + (number % by != 0 ? 1 : 0); }

const VerityLayout& CheckSize(const VerityLayout& layout, uint64_t size) {
  if (layout.size() != size)
    throw FormatError("verity_open",
                      "the hash tree has " + std::to_string(size) + " bytes and not " + std::to_string(layout.size()));
  return layout;
}

/// Hashes the data blocks under one block of level 0 after the other, on several threads, until there are no more or one fails.
class LeafWork {
 public:
  LeafWork(const ByteSource& data, const VeritySalt& salt, const VerityLayout& layout, const StoreVerityBlock& store,
           const VerityProgress& progress)
      : data_(data),
        salt_(salt),
        layout_(layout),
        store_(store),
        progress_(progress),
        digests_(layout.levels().front().count) {}

  /// The digests of the blocks of level 0, in order.
  std::vector<VerityDigest> Run(unsigned threads) {
    std::vector<std::thread> others;
    others.reserve(threads);
    try {
      while (others.size() + 1 < threads) others.emplace_back([this] { Guarded(); });
    } catch (const std::exception&) {
      // Fewer threads than hoped for.
    }
    Guarded();
    for (std::thread& other : others) other.join();
    if (failure_) std::rethrow_exception(failure_);
    return std::move(digests_);
  }

 private:
  void Guarded() {
    try {
      Work();
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
      stop_ = true;
    }
  }

  void Work() {
    SaltedHash hash(salt_);
    std::vector<uint8_t> blocks(std::min<uint64_t>(kVerityDigestsPerBlock, layout_.data_blocks()) * kVerityBlock);
    std::vector<uint8_t> leaf(kVerityBlock);
    const VerityLayout::Level& level = layout_.levels().front();
    while (!stop_) {
      const uint64_t index = next_++;
      if (index >= level.count) return;
      const uint64_t first = index * kVerityDigestsPerBlock;
      const size_t count = std::min<uint64_t>(kVerityDigestsPerBlock, layout_.data_blocks() - first);
      data_.ReadAt(first * kVerityBlock, blocks.data(), count * kVerityBlock);
      std::fill(leaf.begin(), leaf.end(), 0);
      for (size_t i = 0; i < count; ++i) {
        const VerityDigest digest = hash.Of(blocks.data() + i * kVerityBlock);
        std::copy(digest.begin(), digest.end(), leaf.begin() + static_cast<ptrdiff_t>(i * kVerityDigestSize));
      }
      store_(level.first + index, leaf.data());
      digests_[index] = hash.Of(leaf.data());
      Report(count * kVerityBlock);
    }
  }

  void Report(uint64_t bytes) {
    if (!progress_) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    done_ += bytes;
    if (!progress_(done_)) throw SystemError(ECANCELED, "verity_hash");
  }

  const ByteSource& data_;
  const VeritySalt& salt_;
  const VerityLayout& layout_;
  const StoreVerityBlock& store_;
  const VerityProgress& progress_;
  std::vector<VerityDigest> digests_;
  std::atomic<uint64_t> next_ = 0;
  std::atomic<bool> stop_ = false;
  std::mutex mutex_;
  uint64_t done_ = 0;
  std::exception_ptr failure_;
};

unsigned ThreadCount(unsigned wanted, uint64_t work) {
  const unsigned count = wanted == 0 ? std::clamp(std::thread::hardware_concurrency(), 1U, kMaxThreads) : wanted;
  return static_cast<unsigned>(std::min<uint64_t>(count, work));
}

/// What tells the threads that hash that the rest does not matter.
struct Different {};

}  // namespace

VerityLayout::VerityLayout(uint64_t data_size) : data_blocks_(data_size / kVerityBlock) {
  if (data_size % kVerityBlock != 0 || data_blocks_ < 2 || data_size > static_cast<uint64_t>(INT64_MAX))
    throw SystemError(EINVAL, "verity", std::to_string(data_size) + " bytes have no hash tree");
  uint64_t count = data_blocks_;
  do {
    count = DivideUp(count, kVerityDigestsPerBlock);
    levels_.push_back({0, count});
  } while (count > 1);
  for (auto level = levels_.rbegin(); level != levels_.rend(); ++level) {
    level->first = blocks_;
    blocks_ += level->count;
  }
}

class VerifiedSource::Hasher : public SaltedHash {
 public:
  using SaltedHash::SaltedHash;
};

VerifiedSource::VerifiedSource(std::shared_ptr<const ByteSource> data, std::shared_ptr<const ByteSource> hashes,
                               const VerityParameters& parameters, OnFailure on_failure)
    : data_(std::move(data)),
      hashes_(std::move(hashes)),
      parameters_(parameters),
      layout_(data_->Size()),
      on_failure_(std::move(on_failure)),
      hash_blocks_(kCachedHashBlocks) {
  CheckSize(layout_, hashes_->Size());
  Hasher hasher(parameters_.salt);
  VerifiedHashBlock(hasher, layout_.levels().size() - 1, 0);
}

void VerifiedSource::Fail(uint64_t block, const char* reason) const {
  if (on_failure_) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (reported_.size() < kMaxReported && std::find(reported_.begin(), reported_.end(), block) == reported_.end()) {
      reported_.push_back(block);
      on_failure_(block, reason);
    }
  }
  throw SystemError(EIO, "verity_read", "block " + std::to_string(block) + " " + reason);
}

VerifiedSource::HashBlockPtr VerifiedSource::VerifiedHashBlock(Hasher& hasher, size_t level, uint64_t index) const {
  const std::vector<VerityLayout::Level>& levels = layout_.levels();
  const uint64_t block = levels[level].first + index;
  return hash_blocks_.Get(block, [&]() -> decltype(hash_blocks_)::Loaded {
    auto bytes = std::make_shared<HashBlock>();
    hashes_->ReadAt(block * kVerityBlock, bytes->data(), bytes->size());
    const VerityDigest digest = hasher.Of(bytes->data());
    const bool good = level + 1 == levels.size()
                          ? digest == parameters_.root
                          : DigestAt(VerifiedHashBlock(hasher, level + 1, index / kVerityDigestsPerBlock)->data(),
                                     index % kVerityDigestsPerBlock, digest);
    // The same for everybody who meets it, so it is named by the first data block under it.
    if (!good) {
      uint64_t first = index;
      for (size_t i = 0; i <= level; ++i) first *= kVerityDigestsPerBlock;
      Fail(first, "and others cannot be checked: the hash tree was changed");
    }
    return {std::move(bytes), 1};
  });
}

void VerifiedSource::CheckBlocks(Hasher& hasher, uint64_t first, uint8_t* blocks, size_t count) const {
  HashBlockPtr leaf;
  uint64_t leaf_index = UINT64_MAX;
  for (size_t i = 0; i < count; ++i) {
    const uint64_t block = first + i;
    if (leaf_index != block / kVerityDigestsPerBlock) {
      leaf_index = block / kVerityDigestsPerBlock;
      leaf = VerifiedHashBlock(hasher, 0, leaf_index);
    }
    if (!DigestAt(leaf->data(), block % kVerityDigestsPerBlock, hasher.Of(blocks + i * kVerityBlock)))
      Fail(block, "was changed since it was signed");
  }
}

void VerifiedSource::ReadAt(uint64_t offset, void* out, size_t size) const {
  if (!RangeFits(offset, size, data_->Size()))
    throw SystemError(EOVERFLOW, "verity_read", "the range ends past the end of the source");
  if (size == 0) return;
  Hasher hasher(parameters_.salt);
  auto* to = static_cast<uint8_t*>(out);
  std::vector<uint8_t> edge;
  while (size > 0) {
    const uint64_t first = offset / kVerityBlock;
    const auto skip = static_cast<size_t>(offset % kVerityBlock);
    if (skip != 0 || size < kVerityBlock) {
      const size_t n = std::min(size, kVerityBlock - skip);
      edge.resize(kVerityBlock);
      data_->ReadAt(first * kVerityBlock, edge.data(), kVerityBlock);
      CheckBlocks(hasher, first, edge.data(), 1);
      memcpy(to, edge.data() + skip, n);
      offset += n, to += n, size -= n;
      continue;
    }
    const size_t count = std::min(size / kVerityBlock, kPieceBlocks);
    try {
      data_->ReadAt(offset, to, count * kVerityBlock);
      CheckBlocks(hasher, first, to, count);
    } catch (...) {
      memset(to, 0, count * kVerityBlock);
      throw;
    }
    offset += count * kVerityBlock, to += count * kVerityBlock, size -= count * kVerityBlock;
  }
}

VerityDigest HashVerity(const ByteSource& data, const VeritySalt& salt, const StoreVerityBlock& store, unsigned threads,
                        const VerityProgress& progress) {
  const VerityLayout layout(data.Size());
  const std::vector<VerityLayout::Level>& levels = layout.levels();
  std::vector<VerityDigest> digests =
      LeafWork(data, salt, layout, store, progress).Run(ThreadCount(threads, levels.front().count));
  SaltedHash hash(salt);
  std::vector<uint8_t> block(kVerityBlock);
  for (size_t level = 1; level < levels.size(); ++level) {
    std::vector<VerityDigest> above;
    for (uint64_t index = 0; index < levels[level].count; ++index) {
      const size_t first = index * kVerityDigestsPerBlock;
      const size_t count = std::min(kVerityDigestsPerBlock, digests.size() - first);
      std::fill(block.begin(), block.end(), 0);
      for (size_t i = 0; i < count; ++i)
        memcpy(block.data() + i * kVerityDigestSize, digests[first + i].data(), kVerityDigestSize);
      store(levels[level].first + index, block.data());
      above.push_back(hash.Of(block.data()));
    }
    digests = std::move(above);
  }
  return digests.front();
}

bool IsVerityOf(const ByteSource& data, const ByteSource& hashes, const VerityParameters& parameters, unsigned threads,
                const VerityProgress& progress) {
  CheckSize(VerityLayout(data.Size()), hashes.Size());
  try {
    const auto compare = [&hashes](uint64_t block, const uint8_t* bytes) {
      uint8_t stored[kVerityBlock];
      hashes.ReadAt(block * kVerityBlock, stored, sizeof stored);
      if (memcmp(stored, bytes, sizeof stored) != 0) throw Different();
    };
    return HashVerity(data, parameters.salt, compare, threads, progress) == parameters.root;
  } catch (const Different&) {
    return false;
  }
}

}  // namespace sifcrypt
