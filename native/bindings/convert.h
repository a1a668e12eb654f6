// Reads option objects and builds plain ones. TypeScript has validated before; a wrong type here is a TypeError.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bindings/napi_setup.h"
#include "core/image_range.h"
#include "core/secret_buffer.h"
#include "core/system_error.h"
#include "core/unique_fd.h"

namespace sifcrypt {

Napi::Object ReadObject(const Napi::Value& value, const char* what);
std::string ReadString(const Napi::Object& object, const char* name);
bool ReadBoolean(const Napi::Object& object, const char* name);
/// A non-negative integer up to 2^53 - 1.
uint64_t ReadUnsigned(const Napi::Object& object, const char* name);
/// The same of an argument.
uint64_t UnsignedArgument(const Napi::CallbackInfo& info, size_t index, const char* name);
int ReadInt(const Napi::Object& object, const char* name);
/// Copies a Uint8Array; JS may change its own afterwards.
SecretBuffer ReadSecret(const Napi::Object& object, const char* name);
/// The same for bytes that are no secret.
std::vector<uint8_t> ReadBytes(const Napi::Object& object, const char* name);

/// { offset, size }.
Extent ReadExtent(const Napi::Object& object);
void ReadDigest(const Napi::Object& object, const char* name, std::array<uint8_t, 32>& into);

/// `cipher` of an object: NativeCipher | NativeBuildCipher | undefined, see lib/native/binding.ts. Returns its key.
SecretBuffer ReadCipher(const Napi::Object& object, Cipher& cipher);

/// NativeRange, see lib/native/binding.ts; not read from yet.
struct Range {
  UniqueFd file;
  /// Of that file.
  ImageRange image;
  SecretBuffer key;
  /// Once, and not on the event loop.
  std::shared_ptr<const ByteSource> Open() { return sifcrypt::Open(image, std::move(key)); }
};
/// The descriptor is duplicated.
Range ReadRange(const Napi::Object& range);

/// Sets errno (negative, as Node does), code ("EIO") and syscall on an Error.
void DescribeSystemError(Napi::Object error, const SystemError& cause);

}  // namespace sifcrypt
