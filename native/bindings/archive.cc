#include "bindings/archive.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/exports.h"
#include "bindings/progress.h"
#include "bindings/run_async.h"
#include "core/ctr.h"
#include "core/file_range.h"
#include "core/layer_check.h"
#include "core/layer_stream.h"
#include "core/slice_source.h"
#include "core/tar_reader.h"

namespace sifcrypt {
namespace {

// Archives of images have some members for each layer.
constexpr size_t kMaximumMembers = 64 * 1024;
// Steps for all of them: a thousand for each.
constexpr uint64_t kMaximumWork = uint64_t{64} << 20;
constexpr uint64_t kMaximumPiece = 16 * 1024 * 1024;

struct Listing {
  bool compressed = false;
  uint64_t size = 0;
  std::vector<TarEntry> members;
};

Listing List(const ByteSource& archive, uint64_t limit) {
  Listing listing;
  listing.compressed = IsCompressed(archive);
  LayerStream stream(archive, "the archive");
  stream.Limit(limit);
  WorkBudget work("layer_work", kMaximumWork, {});
  TarReader reader(stream, work);
  for (TarEntry entry; reader.Next(entry);) {
    if (listing.members.size() == kMaximumMembers)
      throw SystemError(EFBIG, "layer_names",
                        "the archive has more than " + std::to_string(kMaximumMembers) + " members");
    listing.members.push_back(std::move(entry));
  }
  stream.Finish();
  listing.size = stream.position();
  return listing;
}

const char* TypeName(TarEntry::Type type) {
  switch (type) {
    case TarEntry::Type::kFile:
      return "file";
    case TarEntry::Type::kHardLink:
      return "link";
    case TarEntry::Type::kSymlink:
      return "symlink";
    default:
      return "other";
  }
}

LayerSecrets ReadCounter(const Napi::Object& counter) {
  const std::vector<uint8_t> given = ReadBytes(counter, "iv");
  LayerSecrets secrets{.key = ReadSecret(counter, "key"), .iv = {}};
  if (given.size() != secrets.iv.size()) throw Napi::RangeError::New(counter.Env(), "iv must have 16 bytes");
  std::copy(given.begin(), given.end(), secrets.iv.begin());
  return secrets;
}

/// As it lies there.
std::shared_ptr<const ByteSource> ReadStored(const Napi::Object& blob, SharedArchive& shared) {
  const uint64_t offset = ReadUnsigned(blob, "offset");
  const uint64_t size = ReadUnsigned(blob, "size");
  const int fd = ReadInt(blob, "fd");
  if (!blob.Get("cipher").IsUndefined()) {
    ImageRange range{.fd = fd, .partition = {offset, ReadUnsigned(blob, "storedSize")}};
    SecretBuffer key = ReadCipher(blob, range.cipher);
    return std::make_shared<SliceSource>(Open(range, std::move(key)), Extent{0, size});
  }
  if (blob.Get("archive").IsUndefined()) return OpenDescriptor(fd, {offset, size});
  const Napi::Object archive = ReadObject(blob.Get("archive"), "archive");
  if (shared.fd != fd) {
    shared.content = std::make_shared<DecompressedSource>(OpenDescriptor(fd, {0, ReadUnsigned(archive, "fileSize")}),
                                                          ReadUnsigned(archive, "size"), shared.decoded);
    shared.fd = fd;
  }
  return std::make_shared<SliceSource>(shared.content, Extent{offset, size});
}

}  // namespace

std::shared_ptr<const ByteSource> ReadBlob(const Napi::Object& blob, SharedArchive& shared) {
  std::shared_ptr<const ByteSource> stored = ReadStored(blob, shared);
  if (blob.Get("counter").IsUndefined()) return stored;
  LayerSecrets secrets = ReadCounter(ReadObject(blob.Get("counter"), "counter"));
  return std::make_shared<CtrSource>(std::move(stored), std::move(secrets.key), secrets.iv);
}

Napi::Value ListArchive(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  auto file = OpenDescriptor(ReadInt(options, "fd"), {0, ReadUnsigned(options, "size")});
  return RunAsync(
      info.Env(), [file = std::move(file), limit = ReadUnsigned(options, "limit")] { return List(*file, limit); },
      [](Napi::Env env, const Listing& listing) -> Napi::Value {
        Napi::Array members = Napi::Array::New(env, listing.members.size());
        for (uint32_t i = 0; i < listing.members.size(); ++i) {
          const TarEntry& entry = listing.members[i];
          const char* type = TypeName(entry.is_sparse ? TarEntry::Type::kFifo : entry.type);
          members.Set(i, ObjectToJs(env, {{"path", ToJs(env, entry.path)},
                                          {"type", ToJs(env, type)},
                                          {"target", ToJs(env, entry.target)},
                                          {"offset", ToJs(env, entry.data_offset)},
                                          {"size", ToJs(env, entry.size)}}));
        }
        return ObjectToJs(
            env,
            {{"compressed", ToJs(env, listing.compressed)}, {"size", ToJs(env, listing.size)}, {"members", members}});
      });
}

Napi::Value ReadBlobBytes(const Napi::CallbackInfo& info) {
  SharedArchive archive;
  auto blob = ReadBlob(ReadObject(info[0], "blob"), archive);
  const Extent part = ReadExtent(ReadObject(info[1], "part"));
  if (part.size > kMaximumPiece) throw Napi::RangeError::New(info.Env(), "size is too large");
  return RunAsync(info.Env(), [blob = std::move(blob), part] {
    std::vector<uint8_t> bytes(part.size);
    blob->ReadAt(part.offset, bytes.data(), bytes.size());
    return bytes;
  });
}

Napi::Value CheckLayer(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "layer");
  SharedArchive archive;
  auto blob = ReadBlob(ReadObject(options.Get("blob"), "blob"), archive);
  return RunAsync(info.Env(), [blob = std::move(blob), name = ReadString(options, "name"),
                               diff_id = ReadBytes(options, "diffId"), limit = ReadUnsigned(options, "limit")] {
    LayerStream stream(*blob, name);
    stream.Expect(diff_id);
    stream.Limit(limit);
    stream.Finish();
    return stream.position();
  });
}

Napi::Value CheckEncrypted(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "layer");
  SharedArchive archive;
  auto blob = ReadBlob(ReadObject(options.Get("blob"), "blob"), archive);
  std::optional<ExpectedDigest> digest;
  if (!options.Get("digest").IsUndefined()) digest = ReadBytes(options, "digest");
  return RunAsync(
      info.Env(),
      [blob = std::move(blob), secrets = ReadCounter(ReadObject(options.Get("counter"), "counter")),
       mac = ReadBytes(options, "mac"), digest = std::move(digest),
       progress = std::make_unique<Progress>(info.Env(), ProgressArgument(info))] {
        uint64_t done = 0;
        return CheckCiphertext(*blob, secrets, mac, digest, [&](uint64_t bytes) {
          if (!progress->Report(done += bytes)) throw SystemError(ECANCELED, "layer_read");
        });
      },
      [](Napi::Env env, const CheckedCiphertext& checked) -> Napi::Value {
        return ObjectToJs(env, {{"isAuthentic", ToJs(env, checked.is_authentic)},
                                {"matches", ToJs(env, checked.matches)},
                                {"plainDigest", ToJs(env, checked.plain_digest)}});
      });
}

}  // namespace sifcrypt
