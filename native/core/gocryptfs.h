// A file's content as gocryptfs encrypts it: a header with the file's random ID, then blocks of 4096 bytes, each under
// AES-256-GCM with a 128-bit IV of its own and bound to its number and the file. (gocryptfs, "File Contents Encryption";
// version 2, flags GCMIV128 and HKDF. The content key is derived elsewhere.)
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "core/block_sink.h"
#include "core/byte_range.h"
#include "core/cipher_contexts.h"
#include "core/secret_buffer.h"

namespace sifcrypt {

constexpr size_t kGocryptfsKeySize = 32;
constexpr size_t kGocryptfsHeaderSize = 18;
/// A block's plaintext, and what is stored of it: IV, ciphertext, tag.
constexpr size_t kGocryptfsBlock = 4096;
constexpr size_t kGocryptfsIvSize = 16;
constexpr size_t kGocryptfsTagSize = 16;
constexpr size_t kGocryptfsOverhead = kGocryptfsIvSize + kGocryptfsTagSize;
constexpr size_t kGocryptfsStoredBlock = kGocryptfsBlock + kGocryptfsOverhead;

using GocryptfsFileId = std::array<uint8_t, 16>;

/// The plaintext. Every block is authenticated before a byte of it is given away; what gocryptfs takes for a hole is
/// refused, since nothing vouches for one.
class GocryptfsSource final : public ByteSource {
 public:
  /// Called once for a block that fails, and not for more than kMaxReported of them.
  using OnFailure = std::function<void(uint64_t block, const char* reason)>;
  static constexpr size_t kMaxReported = 16;

  /// EINVAL: not a key of 32 bytes. FormatError: the header is none, or no file has this size.
  GocryptfsSource(std::shared_ptr<const ByteSource> ciphertext, SecretBuffer content_key, OnFailure on_failure = {});
  uint64_t Size() const override { return size_; }
  /// Also EIO when a block does not authenticate; `out` holds nothing of it then.
  void ReadAt(uint64_t offset, void* out, size_t size) const override;

 private:
  void OpenBlocks(EVP_CIPHER_CTX* context, uint64_t first, const uint8_t* stored, size_t stored_size, uint64_t offset,
                  uint8_t* out, size_t size) const;
  [[noreturn]] void Fail(uint64_t block, const char* reason) const;

  std::shared_ptr<const ByteSource> ciphertext_;
  mutable CipherContexts contexts_;
  OnFailure on_failure_;
  GocryptfsFileId file_id_{};
  uint64_t stored_size_ = 0;
  uint64_t size_ = 0;
  mutable std::mutex mutex_;
  mutable std::vector<uint64_t> reported_;
};

/// Encrypts what is written: a random file ID, and a fresh random IV each time that a block is stored.
class GocryptfsSink final : public BlockSink {
 public:
  /// EINVAL: not a key of 32 bytes.
  GocryptfsSink(std::unique_ptr<ByteSink> ciphertext, SecretBuffer content_key);
  void Finish() override;

 private:
  void StoreBlocks(uint64_t first, const uint8_t* plain, size_t size) override;
  void LoadBlock(uint64_t block, uint8_t* plain) override;
  void KeepBlocks(uint64_t count) override;
  CipherContexts contexts_;
  GocryptfsFileId file_id_{};
  bool started_ = false;
  std::vector<uint8_t> ivs_;
  std::vector<uint8_t> out_;
};

}  // namespace sifcrypt
