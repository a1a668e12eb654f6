#include "core/verity.h"

#include <vector>

#include "bindings/exports.h"
#include "bindings/progress.h"
#include "bindings/run_async.h"
#include "core/file_range.h"

namespace sifcrypt {
namespace {

constexpr uint64_t kMaxRead = uint64_t{16} << 20;

}  // namespace

Napi::Value WriteVerity(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  const int fd = ReadInt(options, "fd");
  auto data = OpenDescriptor(fd, ReadExtent(options));
  VeritySalt salt;
  ReadDigest(options, "salt", salt);
  return RunAsync(info.Env(), [file = UniqueFd::Duplicate(fd), data = std::move(data), salt,
                               at = ReadUnsigned(options, "verityOffset"),
                               progress = std::make_unique<Progress>(info.Env(), ProgressArgument(info))] {
    return HashVerity(
        *data, salt,
        [&](uint64_t block, const uint8_t* bytes) {
          WriteFully(file.get(), at + block * kVerityBlock, bytes, kVerityBlock);
        },
        0, [&](uint64_t bytes) { return progress->Report(bytes); });
  });
}

Napi::Value CheckVerity(const Napi::CallbackInfo& info) {
  return RunAsync(info.Env(), [range = ReadRange(ReadObject(info[0], "range")),
                               progress = std::make_unique<Progress>(info.Env(), ProgressArgument(info))] {
    const auto& [fd, partition, verity, parameters, segment, cipher] = range.image;
    return IsVerityOf(*OpenDescriptor(fd, partition), *OpenDescriptor(fd, verity), parameters, 0,
                      [&](uint64_t bytes) { return progress->Report(bytes); });
  });
}

Napi::Value ReadStored(const Napi::CallbackInfo& info) {
  const uint64_t position = UnsignedArgument(info, 1, "position");
  const uint64_t length = UnsignedArgument(info, 2, "length");
  if (length > kMaxRead) throw Napi::RangeError::New(info.Env(), "the range is too large to be read at once");
  return RunAsync(info.Env(), [range = ReadRange(ReadObject(info[0], "range")), position, length] {
    std::vector<uint8_t> bytes(length);
    OpenStored(range.image)->ReadAt(position, bytes.data(), bytes.size());
    return bytes;
  });
}

}  // namespace sifcrypt
