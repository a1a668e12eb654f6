// The key derivation of PKCS#12 (RFC 7292, B.2), as libcrypto does it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/secret_buffer.h"

namespace sifcrypt {

struct Pkcs12KdfRequest {
  /// As libcrypto names it: "sha1", "sha256".
  std::string hash;
  /// UTF-16, big endian, with its end; empty: none.
  SecretBuffer password;
  std::vector<uint8_t> salt;
  /// What the derived bytes are for: 1 a key, 2 an IV, 3 a MAC's key.
  int purpose = 0;
  int iterations = 0;
  /// Bytes to derive, at most kMaxPkcs12Derived.
  size_t size = 0;
};

constexpr size_t kMaxPkcs12Derived = 1024;

/// Throws SystemError EINVAL. Cannot be interrupted.
SecretBuffer DerivePkcs12(const Pkcs12KdfRequest& request);

}  // namespace sifcrypt
