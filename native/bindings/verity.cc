#include "core/verity.h"

#include <algorithm>
#include <vector>

#include "bindings/exports.h"
#include "bindings/progress.h"
#include "bindings/run_async.h"
#include "core/file_range.h"

namespace sifcrypt {
namespace {

constexpr uint64_t kMaxRead = uint64_t{16} << 20;

Napi::Function ProgressArgument(const Napi::CallbackInfo& info) {
  if (!info[1].IsFunction()) throw Napi::TypeError::New(info.Env(), "onProgress must be a function");
  return info[1].As<Napi::Function>();
}

}  // namespace

Napi::Value WriteVerityTree(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  const int fd = ReadInt(options, "fd");
  auto data = std::make_unique<FileSource>(fd, ReadUnsigned(options, "offset"), ReadUnsigned(options, "size"));
  VeritySalt salt;
  const std::vector<uint8_t> given = ReadBytes(options, "salt");
  if (given.size() != salt.size()) throw Napi::TypeError::New(info.Env(), "salt must have 32 bytes");
  std::copy(given.begin(), given.end(), salt.begin());
  return RunAsync(
      info.Env(),
      [file = UniqueFd::Duplicate(fd), data = std::move(data), salt, at = ReadUnsigned(options, "treeOffset"),
       progress = std::make_unique<Progress>(info.Env(), ProgressArgument(info))] {
        return HashVerityTree(
            *data, salt,
            [&](uint64_t block, const uint8_t* bytes) {
              WriteFully(file.get(), at + block * kVerityBlock, bytes, kVerityBlock);
            },
            0, [&](uint64_t bytes) { return progress->Report(bytes); });
      },
      [](Napi::Env env, const VerityDigest& root) -> Napi::Value {
        return Napi::Buffer<uint8_t>::Copy(env, root.data(), root.size());
      });
}

Napi::Value CheckVerityTree(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  return RunAsync(
      info.Env(),
      [part = ReadVerifiedPart(ReadInt(options, "fd"), options),
       progress = std::make_unique<Progress>(info.Env(), ProgressArgument(info))] {
        return IsVerityTreeOf(*part.data, *part.tree, part.parameters, 0,
                              [&](uint64_t bytes) { return progress->Report(bytes); });
      },
      [](Napi::Env env, bool good) { return Napi::Boolean::New(env, good); });
}

Napi::Value ReadStored(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "range");
  Range range = ReadRange(options);
  const uint64_t size = ReadUnsigned(options, "size");
  if (size > kMaxRead) throw Napi::RangeError::New(info.Env(), "the range is too large to be read at once");
  return RunAsync(
      info.Env(),
      [range = std::make_shared<Range>(std::move(range)), size] {
        std::vector<uint8_t> bytes(size);
        range->OpenStored()->ReadAt(0, bytes.data(), bytes.size());
        return bytes;
      },
      [](Napi::Env env, const std::vector<uint8_t>& bytes) -> Napi::Value {
        return Napi::Buffer<uint8_t>::Copy(env, bytes.data(), bytes.size());
      });
}

}  // namespace sifcrypt
