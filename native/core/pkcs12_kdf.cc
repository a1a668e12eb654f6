#include "core/pkcs12_kdf.h"

#include <openssl/evp.h>
#include <openssl/pkcs12.h>

#include "core/system_error.h"

namespace sifcrypt {

SecretBuffer DerivePkcs12(const Pkcs12KdfRequest& request) {
  const EVP_MD* hash = EVP_get_digestbyname(request.hash.c_str());
  if (hash == nullptr || request.size == 0 || request.size > kMaxPkcs12Derived || request.iterations < 1)
    throw SystemError(EINVAL, "PKCS12_key_gen");
  SecretBuffer derived(request.size);
  // Neither is written to.
  auto* password = const_cast<unsigned char*>(request.password.data());
  auto* salt = const_cast<unsigned char*>(request.salt.data());
  if (PKCS12_key_gen_uni(password, static_cast<int>(request.password.size()), salt,
                         static_cast<int>(request.salt.size()), request.purpose, request.iterations,
                         static_cast<int>(request.size), derived.data(), hash) != 1)
    throw SystemError(EINVAL, "PKCS12_key_gen");
  return derived;
}

}  // namespace sifcrypt
