// LUKS2 headers through libcryptsetup: the input is the JSON of a header, around which both copies are made, with checksums that fit. It is
// opened with a passphrase, and given another keyslot. Where its digest is that of the seed `known`, whose volume key is 64 zeros, whatever
// else it says no other key comes out, and the keyslot that is added opens to that one.
#include <openssl/evp.h>

#include <memory>
#include <string>
#include <string_view>

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

constexpr std::string_view kKnownDigests =
    R"("digests":{"0":{"type":"pbkdf2","keyslots":["0"],"segments":["0"],"hash":"sha256","iterations":1000,)"
    R"("salt":"iTJHbh6beDUPT4FbuMYRHC4DN2I9eq18P+pF/yoR6KM=","digest":"1icxItfowGRWUBbKkR+d5Dk0MQGwkcuxpciw6qyJv7s="}})";

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

/// Of whole blocks. Behind other areas libcryptsetup 2.6 puts a keyslot where it does not look for it; lib/device/luks-header.ts refuses what
/// comes of that.
constexpr std::string_view kKnownArea =
    R"("area":{"type":"raw","offset":"32768","size":"258048","encryption":"aes-xts-plain64","key_size":64})";

/// Is it what the text has for its name, without the first quote, and nothing else?
bool HasOnly(std::string_view json, std::string_view text, std::string_view name) {
  const size_t at = json.find(text);
  return at != json.npos && json.find(name) == at + 1 && json.find(name, at + 2) == json.npos;
}

/// Is the only digest that one? JSON has no escapes here (IsCheap); what libcryptsetup's parser takes besides, as comments and other quotes,
/// may hide it.
bool HasKnownDigest(std::string_view json) {
  if (!HasOnly(json, kKnownDigests, "digests")) return false;
  bool quoted = false;
  int depth = 0;
  for (const char one : json.substr(0, json.find(kKnownDigests))) {
    if (one == '"') quoted = !quoted;
    if (one == '\0' || (!quoted && (one == '\'' || one == '/'))) return false;
    if (!quoted && (one == '{' || one == '[')) ++depth;
    if (!quoted && (one == '}' || one == ']')) --depth;
  }
  return !quoted && depth == 1;
}

/// HMAC, and so PBKDF2, does not tell zeros of one size from those of another.
bool IsKnownKey(const SecretBuffer& key) { return key.size() > 0 && AreZero(key.data(), key.size()); }

luks::UnlockRequest Opening(std::vector<uint8_t> header, const std::vector<uint8_t>& metadata, int keyslot) {
  luks::UnlockRequest request;
  request.source = std::make_shared<Bytes>(std::move(header));
  request.area_size = kArea;
  request.metadata = metadata;
  request.secret = SecretBuffer(kPassphrase, sizeof kPassphrase);
  request.keyslot = keyslot;
  return request;
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
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  const bool known = HasKnownDigest(json);
  fuzz::Try([&] {
    // libcryptsetup 2.6 opens a keyslot with any passphrase where the digest has a size that none has, or is not there;
    // lib/device/luks-header.ts refuses these before.
    const luks::Unlocked unlocked = luks::Unlock(Opening(std::vector<uint8_t>(kArea), metadata, -1));
    CountOutput(unlocked.volume_key.size());
    Require(!known || IsKnownKey(unlocked.volume_key), "what opens is the key that the digest verifies");
  });
  luks::Added added;
  fuzz::Try([&] {
    luks::AddRequest request;
    request.area_size = kArea;
    request.metadata = metadata;
    request.volume_key = SecretBuffer(64);
    request.keyslots.push_back({SecretBuffer(kPassphrase, sizeof kPassphrase), {"pbkdf2", 1000, 0, 0}});
    added = luks::AddKeyslots(request);
    CountOutput(added.metadata.size());
  });
  if (!known) return 0;
  for (const luks::AddedKeyslot& one : added.keyslots) {
    Require(RangeFits(one.offset, one.area.size(), kArea), "an added keyslot lies in the header");
    std::vector<uint8_t> header(kArea);
    if (!one.area.empty()) memcpy(header.data() + one.offset, one.area.data(), one.area.size());
    const bool opens = fuzz::Try([&] {
      const luks::Unlocked unlocked = luks::Unlock(Opening(std::move(header), added.metadata, one.keyslot));
      Require(IsKnownKey(unlocked.volume_key), "an added keyslot opens to the key that was added");
    });
    Require(opens || !HasOnly(json, kKnownArea, "area"), "an added keyslot opens");
  }
  return 0;
}
