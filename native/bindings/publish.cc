#include "core/publish.h"

#include "bindings/exports.h"
#include "bindings/run_async.h"
#include "core/file_range.h"
#include "core/unique_fd.h"

namespace sifcrypt {

Napi::Value PublishFile(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  return RunAsync(info.Env(),
                  [file = UniqueFd::Duplicate(ReadInt(options, "fd")), path = ReadString(options, "path"),
                   replace = ReadBoolean(options, "replace")] { publish::LinkInto(file.get(), path, replace); });
}

Napi::Value LockFile(const Napi::CallbackInfo& info) {
  if (!info[0].IsNumber()) throw Napi::TypeError::New(info.Env(), "fd must be a number");
  return RunAsync(info.Env(), [file = UniqueFd::Duplicate(info[0].As<Napi::Number>().Int32Value())] {
    return publish::Lock(file.get());
  });
}

Napi::Value LockRange(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  return RunAsync(
      info.Env(), [file = UniqueFd::Duplicate(ReadInt(options, "fd")), start = ReadUnsigned(options, "start"),
                   length = ReadUnsigned(options, "length"), exclusive = ReadBoolean(options, "exclusive")] {
        const char* const names[] = {"none", "writer", "readers"};
        return names[static_cast<size_t>(
            publish::LockRange(file.get(), static_cast<int64_t>(start), static_cast<int64_t>(length), exclusive))];
      });
}

Napi::Value UnmountPath(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  return RunAsync(info.Env(), [path = ReadString(options, "path"), lazy = ReadBoolean(options, "lazy")] {
    publish::Unmount(path, lazy);
  });
}

Napi::Value WipeRange(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  UniqueFd file = UniqueFd::Duplicate(ReadInt(options, "fd"));
  return RunAsync(info.Env(), [file = std::move(file), offset = ReadUnsigned(options, "offset"),
                               size = ReadUnsigned(options, "size")] { WipeRange(file.get(), offset, size); });
}

}  // namespace sifcrypt
