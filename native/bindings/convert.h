// Reads option objects and builds plain ones. TypeScript has validated before; a wrong type here is a TypeError.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "bindings/napi_setup.h"
#include "core/byte_range.h"
#include "core/secret_buffer.h"
#include "core/system_error.h"
#include "core/xts.h"

namespace sifcrypt {

Napi::Object ReadObject(const Napi::Value& value, const char* what);
std::string ReadString(const Napi::Object& object, const char* name);
bool ReadBoolean(const Napi::Object& object, const char* name);
/// A non-negative integer up to 2^53 - 1.
uint64_t ReadUnsigned(const Napi::Object& object, const char* name);
int ReadInt(const Napi::Object& object, const char* name);
/// Copies a Uint8Array; JS may change its own afterwards.
SecretBuffer ReadSecret(const Napi::Object& object, const char* name);
/// The same for bytes that are no secret.
std::vector<uint8_t> ReadBytes(const Napi::Object& object, const char* name);

/// A gocryptfs file in the root of a squashfs.
struct GocryptfsParameters {
  /// 32 bytes.
  SecretBuffer content_key;
  std::string file;
};
/// How a part of a file is encrypted; without a value it is not.
using Cipher = std::variant<std::monostate, XtsParameters, GocryptfsParameters>;
/// NativeCipher | undefined, see lib/native/binding.ts.
Cipher ReadCipher(const Napi::Object& object, const char* name);

/// A part of a file that is not read from yet.
struct Range {
  std::shared_ptr<const ByteSource> file;
  Cipher cipher;
  /// Its plaintext. Once, and not on the event loop: a file in a squashfs has to be looked for.
  std::shared_ptr<const ByteSource> Open();
};
/// { fd, offset, size, cipher? }. The descriptor is duplicated.
Range ReadRange(const Napi::Object& range);

/// Sets errno (negative, as Node does), code ("EIO") and syscall on an Error.
void DescribeSystemError(Napi::Object error, const SystemError& cause);

}  // namespace sifcrypt
