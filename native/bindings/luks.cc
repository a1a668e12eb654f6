#include "core/luks.h"

#include "bindings/exports.h"
#include "bindings/run_async.h"
#include "core/cryptsetup.h"

namespace sifcrypt {
namespace {

uint32_t ReadUint32(const Napi::Object& object, const char* name) {
  const uint64_t value = ReadUnsigned(object, name);
  if (value > UINT32_MAX) throw Napi::RangeError::New(object.Env(), std::string(name) + " must be below 2^32");
  return static_cast<uint32_t>(value);
}

/// The secret in a Buffer of its own, which the caller wipes.
Napi::Value SecretToJs(Napi::Env env, const SecretBuffer& secret) {
  return Napi::Buffer<uint8_t>::Copy(env, secret.data(), secret.size());
}

luks::Kdf ReadKdf(const Napi::Object& kdf) {
  return {ReadString(kdf, "type"), ReadUint32(kdf, "iterations"), ReadUint32(kdf, "memory"),
          ReadUint32(kdf, "parallel")};
}

std::vector<luks::NewKeyslot> ReadNewKeyslots(const Napi::Object& options, const char* name) {
  const Napi::Value value = options.Get(name);
  if (!value.IsArray()) throw Napi::TypeError::New(options.Env(), std::string(name) + " must be an array");
  const auto list = value.As<Napi::Array>();
  std::vector<luks::NewKeyslot> keyslots;
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const Napi::Object keyslot = ReadObject(list.Get(i), "keyslot");
    keyslots.push_back({ReadSecret(keyslot, "secret"), ReadKdf(ReadObject(keyslot.Get("kdf"), "kdf"))});
  }
  return keyslots;
}

}  // namespace

Napi::Value LuksPrepare(const Napi::CallbackInfo& info) {
  return RunAsync(
      info.Env(),
      [] {
        const cryptsetup::Session session;
        return true;
      },
      [](Napi::Env env, bool) { return env.Undefined(); });
}

Napi::Value LuksFormat(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  luks::FormatRequest request;
  request.volume_key_size = ReadUint32(options, "volumeKeySize");
  request.sector_size = ReadUint32(options, "sectorSize");
  request.header_size = ReadUnsigned(options, "headerSize");
  request.keyslots = ReadNewKeyslots(options, "keyslots");
  return RunAsync(
      info.Env(), [request = std::move(request)] { return luks::Format(request); },
      [](Napi::Env env, const luks::Formatted& formatted) -> Napi::Value {
        Napi::Object result = Napi::Object::New(env);
        result.Set("header", Napi::Buffer<uint8_t>::Copy(env, formatted.header.data(), formatted.header.size()));
        result.Set("volumeKey", SecretToJs(env, formatted.volume_key));
        return result;
      });
}

Napi::Value LuksUnlock(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  luks::UnlockRequest request;
  request.area_size = ReadUnsigned(options, "areaSize");
  request.metadata = ReadBytes(options, "metadata");
  request.secret = ReadSecret(options, "secret");
  request.keyslot = ReadInt(options, "keyslot");
  Range partition = ReadRange(options);
  request.fd = partition.image.fd;
  request.offset = partition.image.partition.offset;
  return RunAsync(
      info.Env(),
      [partition = std::move(partition), request = std::move(request)]() mutable {
        if (partition.image.verified()) request.source = OpenStored(partition.image);
        return luks::Unlock(request);
      },
      [](Napi::Env env, const luks::Unlocked& unlocked) -> Napi::Value {
        Napi::Object result = Napi::Object::New(env);
        result.Set("volumeKey", SecretToJs(env, unlocked.volume_key));
        result.Set("keyslot", Napi::Number::New(env, unlocked.keyslot));
        return result;
      });
}

Napi::Value LuksAddKeyslots(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  luks::AddRequest request;
  request.area_size = ReadUnsigned(options, "areaSize");
  request.metadata = ReadBytes(options, "metadata");
  request.volume_key = ReadSecret(options, "volumeKey");
  request.keyslots = ReadNewKeyslots(options, "keyslots");
  return RunAsync(
      info.Env(), [request = std::move(request)] { return luks::AddKeyslots(request); },
      [](Napi::Env env, const luks::Added& added) -> Napi::Value {
        Napi::Array keyslots = Napi::Array::New(env, added.keyslots.size());
        for (uint32_t i = 0; i < added.keyslots.size(); ++i) {
          const luks::AddedKeyslot& keyslot = added.keyslots[i];
          Napi::Object item = Napi::Object::New(env);
          item.Set("keyslot", Napi::Number::New(env, keyslot.keyslot));
          item.Set("offset", Napi::Number::New(env, static_cast<double>(keyslot.offset)));
          item.Set("area", Napi::Buffer<uint8_t>::Copy(env, keyslot.area.data(), keyslot.area.size()));
          keyslots.Set(i, item);
        }
        Napi::Object result = Napi::Object::New(env);
        result.Set("metadata", Napi::Buffer<uint8_t>::Copy(env, added.metadata.data(), added.metadata.size()));
        result.Set("keyslots", keyslots);
        return result;
      });
}

}  // namespace sifcrypt
