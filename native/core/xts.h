// AES-XTS as dm-crypt's "aes-xts-plain64": sectors of 512 to 4096 bytes, the tweak is the number of the sector's first
// 512-byte unit, little endian, plus the segment's iv_tweak (LUKS2 on-disk format, section 3.3 "iv_tweak").
#pragma once

#include <memory>
#include <vector>

#include "core/block_sink.h"
#include "core/byte_range.h"
#include "core/cipher_contexts.h"
#include "core/secret_buffer.h"

namespace sifcrypt {

struct XtsParameters {
  /// 32 bytes: AES-128-XTS, 64 bytes: AES-256-XTS.
  SecretBuffer volume_key;
  /// Bytes; a power of two from 512 to 4096.
  uint32_t sector_size = 4096;
  /// In 512-byte units, added to the sector number.
  uint64_t iv_tweak = 0;
};

/// One key, both directions. Thread-safe: contexts are kept per call in a small pool.
class XtsCipher {
 public:
  explicit XtsCipher(XtsParameters parameters);
  uint32_t sector_size() const { return sector_size_; }
  /// `size` bytes in place, whole sectors, the first of which starts at byte `offset` of the segment.
  void Decrypt(uint64_t offset, uint8_t* data, size_t size) const { Run(false, offset, data, data, size); }
  void Encrypt(uint64_t offset, const uint8_t* in, uint8_t* out, size_t size) const {
    Run(true, offset, in, out, size);
  }

 private:
  void Run(bool encrypt, uint64_t offset, const uint8_t* in, uint8_t* out, size_t size) const;
  uint32_t sector_size_;
  uint64_t iv_tweak_;
  std::unique_ptr<CipherContexts> contexts_;
};

/// The plaintext of an encrypted segment. A last partial sector is not part of it.
class XtsSource final : public ByteSource {
 public:
  XtsSource(std::shared_ptr<const ByteSource> ciphertext, XtsParameters parameters);
  uint64_t Size() const override { return size_; }
  void ReadAt(uint64_t offset, void* out, size_t size) const override;

 private:
  std::shared_ptr<const ByteSource> ciphertext_;
  XtsCipher cipher_;
  uint64_t size_;
};

/// Encrypts what is written, a sector at a time. A last partial sector is padded with zeros.
class XtsSink final : public BlockSink {
 public:
  XtsSink(std::unique_ptr<ByteSink> ciphertext, XtsParameters parameters);
  void Finish() override;

 private:
  void StoreBlocks(uint64_t first, const uint8_t* plain, size_t size) override;
  void LoadBlock(uint64_t block, uint8_t* plain) override;
  void KeepBlocks(uint64_t count) override;
  XtsCipher cipher_;
  std::vector<uint8_t> out_;
};

}  // namespace sifcrypt
