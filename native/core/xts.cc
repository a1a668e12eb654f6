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
    : ciphertext_(std::move(ciphertext)), cipher_(std::move(parameters)), tail_(cipher_.sector_size()) {}

XtsSink::~XtsSink() = default;

// The plaintext of one sector that was written before, whole or the tail.
void XtsSink::LoadSector(uint64_t start, uint8_t* out) {
  const size_t sector = cipher_.sector_size();
  if (start == tail_start()) {
    memcpy(out, tail_.data(), sector);
    return;
  }
  ciphertext_->ReadAt(start, out, sector);
  cipher_.Decrypt(start, out, sector);
}

void XtsSink::WriteAt(uint64_t offset, const void* data, size_t size) {
  if (offset > size_) throw SystemError(EINVAL, "pwrite", "writes must not leave gaps");
  const size_t sector = cipher_.sector_size();
  const auto* from = static_cast<const uint8_t*>(data);
  while (size > 0) {
    const uint64_t start = offset / sector * sector;
    if (offset == start && size >= sector) {
      const size_t whole = std::min(size / sector * sector, kPiece);
      out_.resize(whole);
      cipher_.Encrypt(offset, from, out_.data(), whole);
      ciphertext_->WriteAt(offset, out_.data(), whole);
      const bool past_tail = offset + whole > size_;
      if (past_tail) size_ = offset + whole;
      offset += whole, from += whole, size -= whole;
      continue;
    }
    const size_t skip = offset - start, n = std::min<size_t>(size, sector - skip);
    if (start == tail_start()) {
      if (start == size_) memset(tail_.data(), 0, sector);  // a new sector begins
      memcpy(tail_.data() + skip, from, n);
      size_ = std::max(size_, offset + n);
      if (skip + n == sector) {
        out_.resize(sector);
        cipher_.Encrypt(start, tail_.data(), out_.data(), sector);
        ciphertext_->WriteAt(start, out_.data(), sector);
      }
    } else {
      SecretBuffer plain(sector);
      LoadSector(start, plain.data());
      memcpy(plain.data() + skip, from, n);
      out_.resize(sector);
      cipher_.Encrypt(start, plain.data(), out_.data(), sector);
      ciphertext_->WriteAt(start, out_.data(), sector);
    }
    offset += n, from += n, size -= n;
  }
}

void XtsSink::ReadAt(uint64_t offset, void* out, size_t size) {
  if (!RangeFits(offset, size, size_)) throw SystemError(EOVERFLOW, "pread");
  const size_t sector = cipher_.sector_size();
  auto* to = static_cast<uint8_t*>(out);
  SecretBuffer plain(sector);
  while (size > 0) {
    const uint64_t start = offset / sector * sector;
    const size_t skip = offset - start, n = std::min<size_t>(size, sector - skip);
    LoadSector(start, plain.data());
    memcpy(to, plain.data() + skip, n);
    offset += n, to += n, size -= n;
  }
}

void XtsSink::Truncate(uint64_t size) {
  if (size > size_) throw SystemError(EINVAL, "ftruncate");
  const size_t sector = cipher_.sector_size();
  const uint64_t start = size / sector * sector;
  if (start != tail_start() && size > start) {
    SecretBuffer plain(sector);
    LoadSector(start, plain.data());
    memcpy(tail_.data(), plain.data(), sector);
  }
  if (start < tail_start()) ciphertext_->Truncate(start);
  // What follows the cut is no longer content: a padded last sector must not carry it.
  if (size > start) memset(tail_.data() + (size - start), 0, sector - (size - start));
  size_ = size;
}

void XtsSink::Finish() {
  const size_t sector = cipher_.sector_size();
  if (size_ % sector != 0) {
    const std::vector<uint8_t> zeros(sector - size_ % sector);
    WriteAt(size_, zeros.data(), zeros.size());
  }
  ciphertext_->Finish();
}

}  // namespace sifcrypt
