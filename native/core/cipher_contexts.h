// Contexts of libcrypto for one cipher and key, kept from one call to the next: making one costs more than a sector.
#pragma once

#include <openssl/evp.h>

#include <memory>
#include <mutex>
#include <vector>

#include "core/secret_buffer.h"

namespace sifcrypt {

/// Thread-safe; a context that is taken belongs to one thread.
class CipherContexts {
 public:
  struct Free {
    void operator()(EVP_CIPHER_CTX* context) const { EVP_CIPHER_CTX_free(context); }
  };
  using Context = std::unique_ptr<EVP_CIPHER_CTX, Free>;

  /// `iv_size` 0: the cipher's own.
  CipherContexts(const EVP_CIPHER* cipher, SecretBuffer key, int iv_size = 0)
      : cipher_(cipher), key_(std::move(key)), iv_size_(iv_size) {}
  /// Set up but for the IV. EINVAL when the key is refused.
  Context Take(bool encrypt);
  /// Not to be called with one that failed.
  void Give(bool encrypt, Context context);

 private:
  const EVP_CIPHER* cipher_;
  SecretBuffer key_;
  int iv_size_;
  std::mutex mutex_;
  std::vector<Context> idle_[2];
};

}  // namespace sifcrypt
