#include "core/image_range.h"

#include <utility>

#include "core/enclosing_squashfs.h"
#include "core/file_range.h"
#include "core/gocryptfs.h"
#include "core/slice_source.h"
#include "core/squashfs_file_source.h"
#include "core/xts.h"

namespace sifcrypt {
namespace {

/// nullptr where nobody listens.
std::function<void(uint64_t, const char*)> Telling(const OnFailedBlock& on_failure, const char* kind) {
  if (!on_failure) return {};
  return [on_failure, kind](uint64_t block, const char* reason) { on_failure(kind, block, reason); };
}

}  // namespace

std::optional<Cipher::Type> CipherType(std::string_view name) {
  if (name == "xts") return Cipher::Type::kXts;
  if (name == "gocryptfs") return Cipher::Type::kGocryptfs;
  return std::nullopt;
}

std::shared_ptr<const ByteSource> OpenStored(const ImageRange& image, const OnFailedBlock& on_failure) {
  auto partition = OpenDescriptor(image.fd, image.partition);
  if (!image.verified()) return partition;
  return std::make_shared<VerifiedSource>(std::move(partition), OpenDescriptor(image.fd, image.verity),
                                          image.verity_parameters, Telling(on_failure, "block"));
}

std::shared_ptr<const ByteSource> Open(const ImageRange& image, SecretBuffer key, const OnFailedBlock& on_failure) {
  auto stored = OpenStored(image, on_failure);
  if (image.segment.size != 0) stored = std::make_shared<SliceSource>(std::move(stored), image.segment);
  const Cipher& cipher = image.cipher;
  switch (cipher.type) {
    case Cipher::Type::kXts:
      return std::make_shared<XtsSource>(std::move(stored),
                                         XtsParameters{std::move(key), cipher.sector_size, cipher.iv_tweak});
    case Cipher::Type::kGocryptfs:
      return std::make_shared<GocryptfsSource>(OpenSquashfsFile(std::move(stored), cipher.file), std::move(key),
                                               Telling(on_failure, "encrypted block"));
    case Cipher::Type::kNone:
      break;
  }
  return stored;
}

std::unique_ptr<ByteSink> EncryptingSink(std::unique_ptr<ByteSink> file, Cipher cipher, SecretBuffer key,
                                         uint32_t time) {
  switch (cipher.type) {
    case Cipher::Type::kXts:
      return std::make_unique<XtsSink>(std::move(file),
                                       XtsParameters{std::move(key), cipher.sector_size, cipher.iv_tweak});
    case Cipher::Type::kGocryptfs: {
      auto enclosing = std::make_unique<EnclosingSquashfs>(
          std::move(file), EnclosingSquashfs::Contents{std::move(cipher.file), std::move(cipher.config), time});
      return std::make_unique<GocryptfsSink>(std::move(enclosing), std::move(key));
    }
    case Cipher::Type::kNone:
      break;
  }
  return file;
}

}  // namespace sifcrypt
