// AES-256-CTR as layers of OCI images are encrypted: the IV is the first counter block, counted as one big-endian number of
// 128 bits. It authenticates nothing: whoever reads has verified a MAC before.
#pragma once

#include <array>
#include <memory>

#include "core/byte_range.h"
#include "core/cipher_contexts.h"
#include "core/secret_buffer.h"

namespace sifcrypt {

/// The plaintext, as long as the ciphertext.
class CtrSource final : public ByteSource {
 public:
  using Block = std::array<uint8_t, 16>;
  /// EINVAL: the key has not 32 bytes.
  CtrSource(std::shared_ptr<const ByteSource> ciphertext, SecretBuffer key, const Block& iv);
  uint64_t Size() const override { return ciphertext_->Size(); }
  void ReadAt(uint64_t offset, void* out, size_t size) const override;

 private:
  std::shared_ptr<const ByteSource> ciphertext_;
  mutable CipherContexts contexts_;
  Block iv_;
};

}  // namespace sifcrypt
