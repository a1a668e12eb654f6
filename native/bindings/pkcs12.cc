
#include "bindings/exports.h"
#include "bindings/run_async.h"
#include "core/pkcs12_kdf.h"

namespace sifcrypt {

Napi::Value DerivePkcs12Key(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  Pkcs12KdfRequest request;
  request.hash = ReadString(options, "hash");
  request.password = ReadSecret(options, "password");
  request.salt = ReadBytes(options, "salt");
  request.purpose = ReadInt(options, "purpose");
  request.iterations = ReadInt(options, "iterations");
  request.size = ReadUnsigned(options, "size");
  return RunAsync(info.Env(), [request = std::move(request)] { return DerivePkcs12(request); });
}

}  // namespace sifcrypt
