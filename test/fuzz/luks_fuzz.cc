// LUKS2 headers through libcryptsetup: the input is the JSON of a header, around which both copies are made, with checksums that fit. It is
// opened with a passphrase, and given another keyslot.
#include <openssl/evp.h>

#include <memory>
#include <string>

#include "core/luks.h"
#include "target.h"

namespace sifcrypt::fuzz {
namespace {

// LUKS2 on-disk format 1.1, 2.1 and 2.2.
constexpr size_t kCopy = 16 << 10;
constexpr size_t kBinary = 4096;
constexpr size_t kChecksumAt = 448;
/// As large as the seeds say: there is room for two keyslots.
constexpr uint64_t kArea = 2 * kCopy + (512 << 10);
constexpr uint8_t kPassphrase[] = {'f', 'u', 'z', 'z'};
constexpr Amount kBound{
    .allocations = 1'000'000, .allocated = 512 << 20, .reads = 100, .read = 4 * kArea, .output = 4 * kArea};

void Number(uint8_t* at, uint64_t value, int bytes) {
  for (int i = bytes; i-- > 0; value >>= 8) at[i] = static_cast<uint8_t>(value);
}

void WriteCopy(uint8_t* copy, bool first, const uint8_t* json, size_t size) {
  memcpy(copy, first ? "LUKS\xba\xbe" : "SKUL\xba\xbe", 6);
  Number(copy + 6, 2, 2);
  Number(copy + 8, kCopy, 8);
  Number(copy + 16, 1, 8);
  memcpy(copy + 72, "sha256", 6);
  memcpy(copy + 168, "8a7cbd0e-1ee7-4c49-a7ab-d2fdaf5e6d8c", 36);
  Number(copy + 256, first ? 0 : kCopy, 8);
  memcpy(copy + kBinary, json, size);
  EVP_Digest(copy, kCopy, copy + kChecksumAt, nullptr, EVP_sha256(), nullptr);
}

/// Costs are bounded by lib/device/luks-header.ts, which sees a header first. Here a number of more than four digits, or one with an
/// exponent, is not tried; offsets and sizes are strings.
bool IsCheap(const uint8_t* json, size_t size) {
  bool quoted = false;
  int digits = 0;
  for (size_t i = 0; i < size; ++i) {
    if (json[i] == '\\') return false;
    if (json[i] == '"') quoted = !quoted;
    const bool is_digit = json[i] >= '0' && json[i] <= '9';
    if (!quoted && digits > 0 && (json[i] == 'e' || json[i] == 'E' || json[i] == '.')) return false;
    digits = !quoted && is_digit ? digits + 1 : 0;
    if (digits > 4) return false;
  }
  return true;
}

}  // namespace
}  // namespace sifcrypt::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sifcrypt;
  using namespace sifcrypt::fuzz;
  if (size > kCopy - kBinary || !IsCheap(data, size)) return 0;
  const Work work(kBound);
  std::vector<uint8_t> metadata(2 * kCopy);
  WriteCopy(metadata.data(), true, data, size);
  WriteCopy(metadata.data() + kCopy, false, data, size);
  fuzz::Try([&] {
    luks::UnlockRequest request;
    request.source = std::make_shared<Bytes>(std::vector<uint8_t>(kArea));
    request.area_size = kArea;
    request.metadata = metadata;
    request.secret = SecretBuffer(kPassphrase, sizeof kPassphrase);
    // libcryptsetup 2.6 opens a keyslot with any passphrase where the digest has a size that none has, or is not there;
    // lib/device/luks-header.ts refuses these before.
    CountOutput(luks::Unlock(request).volume_key.size());
  });
  fuzz::Try([&] {
    luks::AddRequest request;
    request.area_size = kArea;
    request.metadata = metadata;
    request.volume_key = SecretBuffer(64);
    request.keyslots.push_back({SecretBuffer(kPassphrase, sizeof kPassphrase), {"pbkdf2", 1000, 0, 0}});
    const luks::Added added = luks::AddKeyslots(request);
    CountOutput(added.metadata.size());
  });
  return 0;
}
