#include "bindings/convert.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/error_name.h"
#include "core/file_range.h"
#include "core/gocryptfs.h"
#include "core/slice_source.h"
#include "core/squashfs_file_source.h"

namespace sifcrypt {
namespace {

[[noreturn]] void WrongType(Napi::Env env, const char* name, const char* wanted) {
  throw Napi::TypeError::New(env, std::string(name) + " must be " + wanted);
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

std::string ReadString(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsString()) WrongType(object.Env(), name, "a string");
  std::string text = value.As<Napi::String>().Utf8Value();
  // The system would read no further.
  if (text.find('\0') != std::string::npos) WrongType(object.Env(), name, "a string without NUL");
  return text;
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

Cipher ReadCipher(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (value.IsUndefined()) return {};
  const Napi::Object cipher = ReadObject(value, name);
  const std::string type = ReadString(cipher, "type");
  if (type == "xts") {
    XtsParameters parameters;
    parameters.volume_key = ReadSecret(cipher, "volumeKey");
    parameters.sector_size = static_cast<uint32_t>(ReadUnsigned(cipher, "sectorSize"));
    parameters.iv_tweak = ReadUnsigned(cipher, "ivTweak");
    return parameters;
  }
  if (type == "gocryptfs") return GocryptfsParameters{ReadSecret(cipher, "contentKey"), ReadString(cipher, "file")};
  throw Napi::RangeError::New(object.Env(), "the cipher is unknown");
}

VerifiedPart ReadVerifiedPart(int fd, const Napi::Object& verity) {
  VerifiedPart part;
  part.offset = ReadUnsigned(verity, "offset");
  part.data = std::make_shared<FileSource>(fd, part.offset, ReadUnsigned(verity, "size"));
  part.tree = std::make_shared<FileSource>(fd, ReadUnsigned(verity, "treeOffset"), ReadUnsigned(verity, "treeSize"));
  const auto copy = [&verity](const char* name, auto& into) {
    const std::vector<uint8_t> bytes = ReadBytes(verity, name);
    if (bytes.size() != into.size()) WrongType(verity.Env(), name, "of 32 bytes");
    std::copy(bytes.begin(), bytes.end(), into.begin());
  };
  copy("root", part.parameters.root);
  copy("salt", part.parameters.salt);
  return part;
}

std::shared_ptr<const ByteSource> Range::OpenStored() {
  if (!verified) return std::move(file);
  if (offset < verified->offset) throw SystemError(EOVERFLOW, "image", "the range begins before the partition");
  auto whole =
      std::make_shared<VerifiedSource>(std::move(verified->data), std::move(verified->tree), verified->parameters);
  return std::make_shared<SliceSource>(std::move(whole), offset - verified->offset, file->Size());
}

std::shared_ptr<const ByteSource> Range::Open() {
  auto stored = OpenStored();
  if (auto* xts = std::get_if<XtsParameters>(&cipher))
    return std::make_shared<XtsSource>(std::move(stored), std::move(*xts));
  if (auto* gocryptfs = std::get_if<GocryptfsParameters>(&cipher))
    return std::make_shared<GocryptfsSource>(OpenSquashfsFile(std::move(stored), gocryptfs->file),
                                             std::move(gocryptfs->content_key));
  return stored;
}

Range ReadRange(const Napi::Object& range) {
  Range read;
  const int fd = ReadInt(range, "fd");
  read.offset = ReadUnsigned(range, "offset");
  read.file = std::make_shared<FileSource>(fd, read.offset, ReadUnsigned(range, "size"));
  read.cipher = ReadCipher(range, "cipher");
  if (!range.Get("verity").IsUndefined())
    read.verified = ReadVerifiedPart(fd, ReadObject(range.Get("verity"), "verity"));
  return read;
}

void DescribeSystemError(Napi::Object error, const SystemError& cause) {
  error.Set("errno", Napi::Number::New(error.Env(), -cause.error()));
  error.Set("code", Napi::String::New(error.Env(), ErrorName(cause.error())));
  error.Set("syscall", Napi::String::New(error.Env(), cause.operation()));
}

}  // namespace sifcrypt
