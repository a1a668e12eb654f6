#include "core/xts.h"

#include <string.h>

#include <algorithm>
#include <bit>

#include "core/system_error.h"

namespace sifcrypt {
namespace {

constexpr uint32_t kMinimumSector = 512;
constexpr uint32_t kMaximumSector = 4096;
// Ciphertext is produced and read in pieces of this size, so that memory stays bounded whatever the request.
constexpr size_t kPiece = 256 * 1024;

}  // namespace

XtsCipher::XtsCipher(XtsParameters parameters) : sector_size_(parameters.sector_size), iv_tweak_(parameters.iv_tweak) {
  if (!std::has_single_bit(sector_size_) || sector_size_ < kMinimumSector || sector_size_ > kMaximumSector)
    throw SystemError(EINVAL, "xts", "sector size out of range");
  if (parameters.volume_key.size() != 32 && parameters.volume_key.size() != 64)
    throw SystemError(EINVAL, "xts", "the volume key must have 32 or 64 bytes");
  const EVP_CIPHER* cipher = parameters.volume_key.size() == 64 ? EVP_aes_256_xts() : EVP_aes_128_xts();
  contexts_ = std::make_unique<CipherContexts>(cipher, std::move(parameters.volume_key));
}

void XtsCipher::Run(bool encrypt, uint64_t offset, const uint8_t* in, uint8_t* out, size_t size) const {
  if (offset % sector_size_ != 0 || size % sector_size_ != 0) throw SystemError(EINVAL, "xts", "not whole sectors");
  CipherContexts::Context context = contexts_->Take(encrypt);
  for (size_t at = 0; at < size; at += sector_size_) {
    const uint64_t number = (offset + at) / kMinimumSector + iv_tweak_;
    uint8_t tweak[16] = {};
    for (int i = 0; i < 8; i++) tweak[i] = static_cast<uint8_t>(number >> (8 * i));
    int n = 0;
    if (EVP_CipherInit_ex(context.get(), nullptr, nullptr, nullptr, tweak, -1) != 1 ||
        EVP_CipherUpdate(context.get(), out + at, &n, in + at, static_cast<int>(sector_size_)) != 1 ||
        n != static_cast<int>(sector_size_))
      throw SystemError(EIO, "EVP_CipherUpdate");
  }
  contexts_->Give(encrypt, std::move(context));
}

XtsSource::XtsSource(std::shared_ptr<const ByteSource> ciphertext, XtsParameters parameters)
    : ciphertext_(std::move(ciphertext)), cipher_(std::move(parameters)) {
  size_ = ciphertext_->Size() / cipher_.sector_size() * cipher_.sector_size();
}

void XtsSource::ReadAt(uint64_t offset, void* out, size_t size) const {
  if (!RangeFits(offset, size, size_))
    throw SystemError(EOVERFLOW, "pread", "the range ends past the end of the source");
  const uint64_t sector = cipher_.sector_size();
  auto* to = static_cast<uint8_t*>(out);
  std::vector<uint8_t> edge;
  while (size > 0) {
    if (offset % sector == 0 && size >= sector) {
      const size_t whole = std::min(size / sector * sector, kPiece);
      ciphertext_->ReadAt(offset, to, whole);
      cipher_.Decrypt(offset, to, whole);
      offset += whole, to += whole, size -= whole;
      continue;
    }
    const uint64_t start = offset / sector * sector;
    const size_t skip = offset - start, n = std::min<size_t>(size, sector - skip);
    edge.resize(sector);
    ciphertext_->ReadAt(start, edge.data(), sector);
    cipher_.Decrypt(start, edge.data(), sector);
    memcpy(to, edge.data() + skip, n);
    offset += n, to += n, size -= n;
  }
}

XtsSink::XtsSink(std::unique_ptr<ByteSink> ciphertext, XtsParameters parameters)
    : BlockSink(std::move(ciphertext), parameters.sector_size), cipher_(std::move(parameters)) {}

void XtsSink::StoreBlocks(uint64_t first, const uint8_t* plain, size_t size) {
  const uint64_t offset = first * cipher_.sector_size();
  out_.resize(size);
  cipher_.Encrypt(offset, plain, out_.data(), size);
  below().WriteAt(offset, out_.data(), size);
}

void XtsSink::LoadBlock(uint64_t block, uint8_t* plain) {
  const uint64_t offset = block * cipher_.sector_size();
  below().ReadAt(offset, plain, cipher_.sector_size());
  cipher_.Decrypt(offset, plain, cipher_.sector_size());
}

void XtsSink::KeepBlocks(uint64_t count) { below().Truncate(count * cipher_.sector_size()); }

void XtsSink::Finish() {
  if (tail_size() > 0) StoreBlocks(Size() / cipher_.sector_size(), tail(), cipher_.sector_size());
  below().Finish();
}

}  // namespace sifcrypt
