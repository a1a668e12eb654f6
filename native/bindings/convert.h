// Reads option objects and builds plain ones. TypeScript has validated before; a wrong type here is a TypeError.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
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
/// { volumeKey: Uint8Array, sectorSize: number, ivTweak: number } or undefined.
std::optional<XtsParameters> ReadCipher(const Napi::Object& object, const char* name);
/// { fd, offset, size, cipher? }: a part of a file, decrypted if it has a cipher. The descriptor is duplicated.
std::shared_ptr<ByteSource> ReadSource(const Napi::Object& range);

/// Sets errno (negative, as Node does), code ("EIO") and syscall on an Error.
void DescribeSystemError(Napi::Object error, const SystemError& cause);

}  // namespace sifcrypt
