// An encrypted layer before anybody may decipher it: digest and MAC of its ciphertext, and the digest of what it deciphers to.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/byte_range.h"
#include "core/ctr.h"
#include "core/layer_stream.h"
#include "core/secret_buffer.h"

namespace sifcrypt {

/// How a layer was encrypted: AES-256-CTR, and HMAC-SHA-256 of the ciphertext, under one key.
struct LayerSecrets {
  SecretBuffer key;
  CtrSource::Block iv;
};

struct CheckedCiphertext {
  bool is_authentic = false;
  /// What the digest says; true where none is expected.
  bool matches = true;
  /// SHA-256.
  std::array<uint8_t, 32> plain_digest;
};

/// Reads all of it once; what can be computed at the same time is, in threads of its own. Of the plaintext nothing is left.
CheckedCiphertext CheckCiphertext(const ByteSource& ciphertext, const LayerSecrets& secrets,
                                  const std::vector<uint8_t>& mac, const std::optional<ExpectedDigest>& digest,
                                  const ReadProgress& progress);

}  // namespace sifcrypt
