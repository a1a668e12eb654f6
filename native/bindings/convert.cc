#include "bindings/convert.h"

#include <algorithm>
#include <cmath>

#include "core/error_name.h"

namespace sifcrypt {
namespace {

[[noreturn]] void WrongType(Napi::Env env, const char* name, const char* wanted) {
  throw Napi::TypeError::New(env, std::string(name) + " must be " + wanted);
}

std::string TextOf(const Napi::Value& value, const char* name) {
  if (!value.IsString()) WrongType(value.Env(), name, "a string");
  std::string text = value.As<Napi::String>().Utf8Value();
  // The system would read no further.
  if (text.find('\0') != std::string::npos) WrongType(value.Env(), name, "a string without NUL");
  return text;
}

Napi::Uint8Array ReadUint8Array(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array)
    WrongType(object.Env(), name, "a Uint8Array");
  return value.As<Napi::Uint8Array>();
}

}  // namespace

Napi::Object ReadObject(const Napi::Value& value, const char* what) {
  if (!value.IsObject()) WrongType(value.Env(), what, "an object");
  return value.As<Napi::Object>();
}

std::string ReadString(const Napi::Object& object, const char* name) { return TextOf(object.Get(name), name); }

std::vector<std::string> ReadStrings(const Napi::Object& object, const char* name) {
  return ReadList(object, name, [name](const Napi::Value& item) { return TextOf(item, name); });
}

bool ReadBoolean(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsBoolean()) WrongType(object.Env(), name, "a boolean");
  return value.As<Napi::Boolean>().Value();
}

uint64_t ReadUnsigned(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : -1;
  if (!(number >= 0) || number > 9007199254740991.0 || std::floor(number) != number)
    WrongType(object.Env(), name, "a non-negative safe integer");
  return static_cast<uint64_t>(number);
}

uint64_t UnsignedArgument(const Napi::CallbackInfo& info, size_t index, const char* name) {
  Napi::Object holder = Napi::Object::New(info.Env());
  holder.Set(name, info[index]);
  return ReadUnsigned(holder, name);
}

uint32_t ReadUint32(const Napi::Object& object, const char* name) {
  const uint64_t value = ReadUnsigned(object, name);
  if (value > UINT32_MAX) throw Napi::RangeError::New(object.Env(), std::string(name) + " must be below 2^32");
  return static_cast<uint32_t>(value);
}

int ReadInt(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsNumber()) WrongType(object.Env(), name, "an integer");
  return value.As<Napi::Number>().Int32Value();
}

SecretBuffer ReadSecret(const Napi::Object& object, const char* name) {
  const Napi::Uint8Array bytes = ReadUint8Array(object, name);
  return SecretBuffer(bytes.Data(), bytes.ByteLength());
}

std::vector<uint8_t> ReadBytes(const Napi::Object& object, const char* name) {
  const Napi::Uint8Array bytes = ReadUint8Array(object, name);
  return {bytes.Data(), bytes.Data() + bytes.ByteLength()};
}

SecretBuffer ReadCipher(const Napi::Object& object, Cipher& cipher) {
  const Napi::Value value = object.Get("cipher");
  if (value.IsUndefined()) return {};
  const Napi::Object given = ReadObject(value, "cipher");
  const auto type = CipherType(ReadString(given, "type"));
  if (!type) throw Napi::RangeError::New(object.Env(), "the cipher is unknown");
  cipher.type = *type;
  if (given.Has("sectorSize")) cipher.sector_size = static_cast<uint32_t>(ReadUnsigned(given, "sectorSize"));
  if (given.Has("ivTweak")) cipher.iv_tweak = ReadUnsigned(given, "ivTweak");
  if (given.Has("file")) cipher.file = ReadString(given, "file");
  if (given.Has("config")) cipher.config = ReadBytes(given, "config");
  return ReadSecret(given, "key");
}

Extent ReadExtent(const Napi::Object& object) { return {ReadUnsigned(object, "offset"), ReadUnsigned(object, "size")}; }

void ReadDigest(const Napi::Object& object, const char* name, std::array<uint8_t, 32>& into) {
  const std::vector<uint8_t> bytes = ReadBytes(object, name);
  if (bytes.size() != into.size()) WrongType(object.Env(), name, "of 32 bytes");
  std::copy(bytes.begin(), bytes.end(), into.begin());
}

/// What there is has a size: without one it would be as if nobody had asked for it.
Extent ReadPart(const Napi::Object& object, const char* name) {
  const Extent part = ReadExtent(object);
  if (part.size == 0) WrongType(object.Env(), name, "with a size");
  return part;
}

Range ReadRange(const Napi::Object& range) {
  Range read;
  read.file = UniqueFd::Duplicate(ReadInt(range, "fd"));
  read.image.fd = read.file.get();
  read.image.partition = ReadExtent(range);
  read.key = ReadCipher(range, read.image.cipher);
  if (!range.Get("segment").IsUndefined())
    read.image.segment = ReadPart(ReadObject(range.Get("segment"), "segment"), "segment");
  if (range.Get("verity").IsUndefined()) return read;
  const Napi::Object verity = ReadObject(range.Get("verity"), "verity");
  read.image.verity = ReadPart(verity, "verity");
  ReadDigest(verity, "root", read.image.verity_parameters.root);
  ReadDigest(verity, "salt", read.image.verity_parameters.salt);
  return read;
}

Napi::Object ObjectToJs(Napi::Env env, std::initializer_list<Property> properties) {
  Napi::Object object = Napi::Object::New(env);
  for (const auto& [name, value] : properties) object.Set(name, value);
  return object;
}

void DescribeSystemError(Napi::Object error, const SystemError& cause) {
  error.Set("errno", Napi::Number::New(error.Env(), -cause.error()));
  error.Set("code", Napi::String::New(error.Env(), ErrorName(cause.error())));
  error.Set("syscall", Napi::String::New(error.Env(), cause.operation()));
}

}  // namespace sifcrypt
