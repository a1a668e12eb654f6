// Reads option objects and builds plain ones. TypeScript has validated before; a wrong type here is a TypeError.
#pragma once

#include <array>
#include <concepts>
#include <cstdint>
#include <initializer_list>
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
uint32_t ReadUint32(const Napi::Object& object, const char* name);
int ReadInt(const Napi::Object& object, const char* name);
/// Without NUL, of which the system would read no further.
std::vector<std::string> ReadStrings(const Napi::Object& object, const char* name);
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

/// Each item of an array.
template <typename Read>
auto ReadList(const Napi::Object& object, const char* name, Read read) {
  const Napi::Value value = object.Get(name);
  if (!value.IsArray()) throw Napi::TypeError::New(object.Env(), std::string(name) + " must be an array");
  const auto array = value.As<Napi::Array>();
  std::vector<decltype(read(value))> items;
  for (uint32_t i = 0; i < array.Length(); ++i) items.push_back(read(array.Get(i)));
  return items;
}

inline Napi::Value ToJs(Napi::Env env, const char* text) { return Napi::String::New(env, text); }
inline Napi::Value ToJs(Napi::Env env, const std::string& text) { return Napi::String::New(env, text); }
template <std::integral Value>
Napi::Value ToJs(Napi::Env env, Value value) {
  if constexpr (std::same_as<Value, bool>)
    return Napi::Boolean::New(env, value);
  else
    return Napi::Number::New(env, static_cast<double>(value));
}
/// A Buffer of its own; of a secret the caller wipes it.
template <typename Bytes>
requires std::same_as<decltype(std::declval<const Bytes&>().data()), const uint8_t*> Napi::Value ToJs(
    Napi::Env env, const Bytes& bytes) {
  return Napi::Buffer<uint8_t>::Copy(env, bytes.data(), bytes.size());
}

struct Property {
  const char* name;
  Napi::Value value;
};
Napi::Object ObjectToJs(Napi::Env env, std::initializer_list<Property> properties);

/// Sets errno (negative, as Node does), code ("EIO") and syscall on an Error.
void DescribeSystemError(Napi::Object error, const SystemError& cause);

}  // namespace sifcrypt
