#include "core/ctr.h"

#include <algorithm>
#include <utility>

#include "core/system_error.h"

namespace sifcrypt {
namespace {

// OpenSSL counts in int.
constexpr size_t kPiece = 16 * 1024 * 1024;

CtrSource::Block CounterAt(CtrSource::Block counter, uint64_t block) {
  unsigned carry = 0;
  for (size_t i = counter.size(); i-- > 0;) {
    const unsigned sum = counter[i] + static_cast<unsigned>(block & 0xff) + carry;
    counter[i] = static_cast<uint8_t>(sum);
    carry = sum >> 8;
    block >>= 8;
  }
  return counter;
}

}  // namespace

CtrSource::CtrSource(std::shared_ptr<const ByteSource> ciphertext, SecretBuffer key, const Block& iv)
    : ciphertext_(std::move(ciphertext)),
      contexts_(EVP_aes_256_ctr(),
                key.size() == 32 ? std::move(key) : throw SystemError(EINVAL, "ctr", "the key must have 32 bytes")),
      iv_(iv) {}

void CtrSource::ReadAt(uint64_t offset, void* out, size_t size) const {
  ciphertext_->ReadAt(offset, out, size);
  auto* data = static_cast<uint8_t*>(out);
  const Block counter = CounterAt(iv_, offset / iv_.size());
  // What stands before `offset` in its block.
  Block passed{};
  int n = 0;
  CipherContexts::Context context = contexts_.Take(false);
  const int skip = static_cast<int>(offset % iv_.size());
  if (EVP_CipherInit_ex(context.get(), nullptr, nullptr, nullptr, counter.data(), -1) != 1 ||
      EVP_CipherUpdate(context.get(), passed.data(), &n, passed.data(), skip) != 1 || n != skip)
    throw SystemError(EIO, "EVP_CipherUpdate");
  while (size > 0) {
    const int piece = static_cast<int>(std::min(size, kPiece));
    if (EVP_CipherUpdate(context.get(), data, &n, data, piece) != 1 || n != piece)
      throw SystemError(EIO, "EVP_CipherUpdate");
    data += piece;
    size -= static_cast<size_t>(piece);
  }
  contexts_.Give(false, std::move(context));
}

}  // namespace sifcrypt
