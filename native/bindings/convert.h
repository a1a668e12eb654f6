// Reads option objects and builds plain ones. TypeScript has validated before; a wrong type here is a TypeError.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "bindings/napi_setup.h"
#include "core/byte_range.h"
#include "core/secret_buffer.h"
#include "core/system_error.h"
#include "core/verity.h"
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

/// A part of a file and the hash tree that vouches for it.
struct VerifiedPart {
  uint64_t offset = 0;
  std::shared_ptr<const ByteSource> data;
  std::shared_ptr<const ByteSource> tree;
  VerityParameters parameters;
};
/// NativeVerity, see lib/native/binding.ts. The descriptor is duplicated.
VerifiedPart ReadVerifiedPart(int fd, const Napi::Object& verity);

/// A part of a file that is not read from yet.
struct Range {
  std::shared_ptr<const ByteSource> file;
  /// Where it lies in the file.
  uint64_t offset = 0;
  /// What it is read through, of which it is a part.
  std::optional<VerifiedPart> verified;
  Cipher cipher;
  /// As it lies in the file. Once, and not on the event loop.
  std::shared_ptr<const ByteSource> OpenStored();
  /// Its plaintext. Once, and not on the event loop: a file in a squashfs has to be looked for.
  std::shared_ptr<const ByteSource> Open();
};
/// { fd, offset, size, cipher?, verity? }. The descriptor is duplicated.
Range ReadRange(const Napi::Object& range);

/// Sets errno (negative, as Node does), code ("EIO") and syscall on an Error.
void DescribeSystemError(Napi::Object error, const SystemError& cause);

}  // namespace sifcrypt
