#include "core/luks.h"

#include "bindings/exports.h"
#include "bindings/run_async.h"
#include "core/cryptsetup.h"

namespace sifcrypt {
namespace {

luks::Kdf ReadKdf(const Napi::Object& kdf) {
  return {ReadString(kdf, "type"), ReadUint32(kdf, "iterations"), ReadUint32(kdf, "memory"),
          ReadUint32(kdf, "parallel")};
}

std::vector<luks::NewKeyslot> ReadNewKeyslots(const Napi::Object& options, const char* name) {
  return ReadList(options, name, [](const Napi::Value& item) {
    const Napi::Object keyslot = ReadObject(item, "keyslot");
    return luks::NewKeyslot{ReadSecret(keyslot, "secret"), ReadKdf(ReadObject(keyslot.Get("kdf"), "kdf"))};
  });
}

}  // namespace

Napi::Value LuksPrepare(const Napi::CallbackInfo& info) {
  return RunAsync(info.Env(), [] { const cryptsetup::Session session; });
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
        return ObjectToJs(env,
                          {{"header", ToJs(env, formatted.header)}, {"volumeKey", ToJs(env, formatted.volume_key)}});
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
        return ObjectToJs(env,
                          {{"volumeKey", ToJs(env, unlocked.volume_key)}, {"keyslot", ToJs(env, unlocked.keyslot)}});
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
          keyslots.Set(i, ObjectToJs(env, {{"keyslot", ToJs(env, keyslot.keyslot)},
                                           {"offset", ToJs(env, keyslot.offset)},
                                           {"area", ToJs(env, keyslot.area)}}));
        }
        return ObjectToJs(env, {{"metadata", ToJs(env, added.metadata)}, {"keyslots", keyslots}});
      });
}

}  // namespace sifcrypt
