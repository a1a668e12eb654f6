#include "core/gocryptfs.h"

#include <openssl/rand.h>
#include <string.h>

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>

#include "core/system_error.h"

namespace sifcrypt {
namespace {

constexpr uint8_t kVersion[2] = {0, 2};
// Ciphertext is read in pieces of this many blocks, so that memory stays bounded whatever the request.
constexpr size_t kPieceBlocks = 64;
/// Number of the block, big endian, and the file's ID.
using AssociatedData = std::array<uint8_t, 8 + sizeof(GocryptfsFileId)>;

AssociatedData AssociatedDataOf(uint64_t block, const GocryptfsFileId& file_id) {
  AssociatedData data;
  for (size_t i = 0; i < 8; ++i) data[i] = static_cast<uint8_t>(block >> (56 - 8 * i));
  std::copy(file_id.begin(), file_id.end(), data.begin() + 8);
  return data;
}

bool AllZero(const uint8_t* bytes, size_t size) {
  return std::all_of(bytes, bytes + size, [](uint8_t byte) { return byte == 0; });
}

SecretBuffer CheckedKey(SecretBuffer key) {
  if (key.size() != kGocryptfsKeySize)
    throw SystemError(EINVAL, "gocryptfs_open", "the content key must have 32 bytes");
  return key;
}

/// Decrypts one stored block into `out`. False: it is not authentic, and `out` holds what must not be used.
bool OpenBlock(EVP_CIPHER_CTX* context, const AssociatedData& data, const uint8_t* stored, size_t stored_size,
               uint8_t* out) {
  const int size = static_cast<int>(stored_size - kGocryptfsOverhead);
  const uint8_t* text = stored + kGocryptfsIvSize;
  uint8_t tag[kGocryptfsTagSize];
  memcpy(tag, text + size, sizeof(tag));
  int n = 0, last = 0;
  if (EVP_DecryptInit_ex(context, nullptr, nullptr, nullptr, stored) != 1 ||
      EVP_DecryptUpdate(context, nullptr, &n, data.data(), static_cast<int>(data.size())) != 1 ||
      EVP_DecryptUpdate(context, out, &n, text, size) != 1 || n != size ||
      EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, static_cast<int>(sizeof(tag)), tag) != 1)
    throw SystemError(EIO, "EVP_DecryptUpdate");
  return EVP_DecryptFinal_ex(context, out + size, &last) == 1;
}

/// Encrypts up to one block into `out`, which has room for the overhead.
void SealBlock(EVP_CIPHER_CTX* context, const AssociatedData& data, const uint8_t* iv, const uint8_t* plain,
               size_t plain_size, uint8_t* out) {
  const int size = static_cast<int>(plain_size);
  uint8_t* text = out + kGocryptfsIvSize;
  memcpy(out, iv, kGocryptfsIvSize);
  int n = 0, last = 0;
  if (EVP_EncryptInit_ex(context, nullptr, nullptr, nullptr, iv) != 1 ||
      EVP_EncryptUpdate(context, nullptr, &n, data.data(), static_cast<int>(data.size())) != 1 ||
      EVP_EncryptUpdate(context, text, &n, plain, size) != 1 || n != size ||
      EVP_EncryptFinal_ex(context, text + size, &last) != 1 ||
      EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, static_cast<int>(kGocryptfsTagSize), text + size) != 1)
    throw SystemError(EIO, "EVP_EncryptUpdate");
}

void FillRandom(uint8_t* out, size_t size) {
  if (RAND_bytes(out, static_cast<int>(size)) != 1) throw SystemError(EIO, "RAND_bytes", "no random bytes");
}

uint64_t StoredOffset(uint64_t block) { return kGocryptfsHeaderSize + block * kGocryptfsStoredBlock; }

}  // namespace

GocryptfsSource::GocryptfsSource(std::shared_ptr<const ByteSource> ciphertext, SecretBuffer content_key,
                                 OnFailure on_failure)
    : ciphertext_(std::move(ciphertext)),
      contexts_(EVP_aes_256_gcm(), CheckedKey(std::move(content_key)), kGocryptfsIvSize),
      on_failure_(std::move(on_failure)),
      stored_size_(ciphertext_->Size()) {
  if (stored_size_ <= kGocryptfsHeaderSize || stored_size_ > static_cast<uint64_t>(INT64_MAX))
    throw FormatError("gocryptfs_open", "the encrypted file is empty or impossibly long");
  const uint64_t blocks_size = stored_size_ - kGocryptfsHeaderSize;
  const uint64_t last = blocks_size % kGocryptfsStoredBlock;
  if (last != 0 && last <= kGocryptfsOverhead)
    throw FormatError("gocryptfs_open", "the encrypted file ends inside a block");
  uint8_t header[kGocryptfsHeaderSize];
  ciphertext_->ReadAt(0, header, sizeof(header));
  if (memcmp(header, kVersion, sizeof(kVersion)) != 0)
    throw FormatError("gocryptfs_open", "the encrypted file is not of version 2");
  std::copy(header + sizeof(kVersion), header + sizeof(header), file_id_.begin());
  if (AllZero(file_id_.data(), file_id_.size())) throw FormatError("gocryptfs_open", "the encrypted file has no ID");
  const uint64_t blocks = blocks_size / kGocryptfsStoredBlock + (last != 0 ? 1 : 0);
  size_ = blocks_size - blocks * kGocryptfsOverhead;
}

void GocryptfsSource::Fail(uint64_t block, const char* reason) const {
  if (on_failure_) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (reported_.size() < kMaxReported && std::find(reported_.begin(), reported_.end(), block) == reported_.end()) {
      reported_.push_back(block);
      on_failure_(block, reason);
    }
  }
  throw SystemError(EIO, "gocryptfs_read", "block " + std::to_string(block) + " " + reason);
}

// Of the blocks from `first` on, all of which are in `stored`, the plaintext from `offset` on.
void GocryptfsSource::OpenBlocks(EVP_CIPHER_CTX* context, uint64_t first, const uint8_t* stored, size_t stored_size,
                                 uint64_t offset, uint8_t* out, size_t size) const {
  std::array<uint8_t, kGocryptfsBlock> edge;
  for (uint64_t block = first; size > 0; ++block) {
    const size_t stored_here = std::min(stored_size, kGocryptfsStoredBlock);
    const size_t plain = stored_here - kGocryptfsOverhead;
    const auto skip = static_cast<size_t>(offset - block * kGocryptfsBlock);
    const size_t n = std::min(size, plain - skip);
    // gocryptfs would take a block of zeros for a hole, and whoever can write to the file could make one.
    if (AllZero(stored, kGocryptfsIvSize)) Fail(block, "is a hole");
    uint8_t* to = n == plain ? out : edge.data();
    if (!OpenBlock(context, AssociatedDataOf(block, file_id_), stored, stored_here, to)) {
      memset(to, 0, plain);
      Fail(block, "is not authentic");
    }
    if (to != out) memcpy(out, to + skip, n);
    stored += stored_here, stored_size -= stored_here;
    offset += n, out += n, size -= n;
  }
}

void GocryptfsSource::ReadAt(uint64_t offset, void* out, size_t size) const {
  if (!RangeFits(offset, size, size_))
    throw SystemError(EOVERFLOW, "gocryptfs_read", "the range ends past the end of the source");
  if (size == 0) return;
  auto* to = static_cast<uint8_t*>(out);
  uint64_t block = offset / kGocryptfsBlock;
  const uint64_t end = (offset + size - 1) / kGocryptfsBlock + 1;
  const std::unique_ptr<uint8_t[]> stored(
      new uint8_t[std::min<uint64_t>(end - block, kPieceBlocks) * kGocryptfsStoredBlock]);
  CipherContexts::Context context = contexts_.Take(false);
  while (size > 0) {
    const uint64_t count = std::min<uint64_t>(end - block, kPieceBlocks);
    const uint64_t start = StoredOffset(block);
    const auto stored_size =
        static_cast<size_t>(std::min<uint64_t>(count * kGocryptfsStoredBlock, stored_size_ - start));
    const auto n = static_cast<size_t>(std::min<uint64_t>(size, (block + count) * kGocryptfsBlock - offset));
    ciphertext_->ReadAt(start, stored.get(), stored_size);
    OpenBlocks(context.get(), block, stored.get(), stored_size, offset, to, n);
    block += count, offset += n, to += n, size -= n;
  }
  contexts_.Give(false, std::move(context));
}

GocryptfsSink::GocryptfsSink(std::unique_ptr<ByteSink> ciphertext, SecretBuffer content_key)
    : BlockSink(std::move(ciphertext), kGocryptfsBlock),
      contexts_(EVP_aes_256_gcm(), CheckedKey(std::move(content_key)), kGocryptfsIvSize) {}

// The last one may be partial.
void GocryptfsSink::StoreBlocks(uint64_t first, const uint8_t* plain, size_t size) {
  if (!std::exchange(started_, true)) {
    FillRandom(file_id_.data(), file_id_.size());
    uint8_t header[kGocryptfsHeaderSize];
    std::copy(std::begin(kVersion), std::end(kVersion), header);
    std::copy(file_id_.begin(), file_id_.end(), header + sizeof(kVersion));
    below().WriteAt(0, header, sizeof(header));
  }
  const size_t count = (size + kGocryptfsBlock - 1) / kGocryptfsBlock;
  ivs_.resize(count * kGocryptfsIvSize);
  FillRandom(ivs_.data(), ivs_.size());
  out_.resize(size + count * kGocryptfsOverhead);
  CipherContexts::Context context = contexts_.Take(true);
  for (size_t i = 0; i < count; ++i) {
    const size_t at = i * kGocryptfsBlock;
    SealBlock(context.get(), AssociatedDataOf(first + i, file_id_), ivs_.data() + i * kGocryptfsIvSize, plain + at,
              std::min(kGocryptfsBlock, size - at), out_.data() + i * kGocryptfsStoredBlock);
  }
  contexts_.Give(true, std::move(context));
  below().WriteAt(StoredOffset(first), out_.data(), out_.size());
}

void GocryptfsSink::LoadBlock(uint64_t block, uint8_t* plain) {
  uint8_t stored[kGocryptfsStoredBlock];
  below().ReadAt(StoredOffset(block), stored, sizeof(stored));
  CipherContexts::Context context = contexts_.Take(false);
  if (!OpenBlock(context.get(), AssociatedDataOf(block, file_id_), stored, sizeof(stored), plain))
    throw SystemError(EIO, "gocryptfs_write", "block " + std::to_string(block) + " is not what was written");
  contexts_.Give(false, std::move(context));
}

void GocryptfsSink::KeepBlocks(uint64_t count) { below().Truncate(StoredOffset(count)); }

void GocryptfsSink::Finish() {
  if (tail_size() > 0) StoreBlocks(Size() / kGocryptfsBlock, tail(), tail_size());
  below().Finish();
}

}  // namespace sifcrypt
