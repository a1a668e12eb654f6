#include "core/cipher_contexts.h"

#include <utility>

#include "core/system_error.h"

namespace sifcrypt {

CipherContexts::Context CipherContexts::Take(bool encrypt) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto& idle = idle_[encrypt ? 1 : 0];
    if (!idle.empty()) {
      Context context = std::move(idle.back());
      idle.pop_back();
      return context;
    }
  }
  Context context(EVP_CIPHER_CTX_new());
  const int direction = encrypt ? 1 : 0;
  // OpenSSL refuses two equal halves of an XTS key when encrypting, as FIPS 140 demands; a random one never has them.
  if (!context || EVP_CipherInit_ex(context.get(), cipher_, nullptr, nullptr, nullptr, direction) != 1 ||
      (iv_size_ > 0 && EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_SET_IVLEN, iv_size_, nullptr) != 1) ||
      EVP_CipherInit_ex(context.get(), nullptr, nullptr, key_.data(), nullptr, direction) != 1)
    throw SystemError(EINVAL, "EVP_CipherInit_ex", "the key was refused");
  EVP_CIPHER_CTX_set_padding(context.get(), 0);
  return context;
}

void CipherContexts::Give(bool encrypt, Context context) {
  const std::lock_guard<std::mutex> lock(mutex_);
  idle_[encrypt ? 1 : 0].push_back(std::move(context));
}

}  // namespace sifcrypt
