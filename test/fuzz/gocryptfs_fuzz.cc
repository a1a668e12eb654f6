// gocryptfs's files. The input is sealed under a known key, in writes of any size and with truncations, then damaged; or it is the
// ciphertext itself, of which nothing authenticates.
#include <memory>

#include "core/gocryptfs.h"
#include "target.h"

namespace sifcrypt::fuzz {
namespace {

constexpr size_t kHead = 4;
constexpr uint8_t kKey[kGocryptfsKeySize] = {1, 2, 3, 4, 5};
constexpr Amount kBound{
    .allocations = 20'000, .allocated = 64 << 20, .reads = 2'000, .read = 8 << 20, .output = 1 << 20};

SecretBuffer Key() { return SecretBuffer(kKey, sizeof kKey); }

class Sink final : public ByteSink {
 public:
  explicit Sink(std::vector<uint8_t>& bytes) : bytes_(bytes) {}
  uint64_t Size() const override { return bytes_.size(); }
  void WriteAt(uint64_t offset, const void* data, size_t size) override {
    Require(offset <= bytes_.size(), "nothing is left out below");
    bytes_.resize(std::max<size_t>(bytes_.size(), offset + size));
    if (size > 0) memcpy(bytes_.data() + offset, data, size);
  }
  void ReadAt(uint64_t offset, void* out, size_t size) override {
    Require(RangeFits(offset, size, bytes_.size()), "only what was written is read below");
    if (size > 0) memcpy(out, bytes_.data() + offset, size);
  }
  void Truncate(uint64_t size) override { bytes_.resize(size); }
  void Finish() override {}

 private:
  std::vector<uint8_t>& bytes_;
};

/// Writes and truncates what ends as `plain`, or as a part of it.
std::vector<uint8_t> Seal(std::vector<uint8_t>& plain, Chance& chance) {
  std::vector<uint8_t> stored;
  GocryptfsSink sink(std::make_unique<Sink>(stored), Key());
  for (size_t at = 0; at < plain.size();) {
    const size_t n = std::min<size_t>(plain.size() - at, 1 + chance.Below(9000));
    sink.WriteAt(at, plain.data() + at, n);
    at += n;
    if (at > 100 && chance.Below(9) == 0) {
      at -= chance.Below(at);
      sink.Truncate(at);
      if (chance.Below(3) == 0) break;
    } else if (chance.Below(5) == 0) {
      // What is there already is written again, as it is or with something else.
      const size_t from = chance.Below(at), size = std::min<size_t>(at - from, chance.Below(6000));
      std::vector<uint8_t> back(size);
      sink.ReadAt(from, back.data(), size);
      Require(std::equal(back.begin(), back.end(), plain.begin() + static_cast<ptrdiff_t>(from)),
              "what was written is read back");
      if (size > 0) plain[from] ^= 1;
      sink.WriteAt(from, plain.data() + from, size);
    }
  }
  sink.Finish();
  plain.resize(sink.Size());
  return stored;
}

/// Of what was sealed; true if anything may be different now.
bool Damage(std::vector<uint8_t>& stored, unsigned how, Chance& chance) {
  const std::vector<uint8_t> before = stored;
  if ((how & 2) != 0 && !stored.empty())
    stored[chance.Below(stored.size())] ^= static_cast<uint8_t>(1 << chance.Below(8));
  if ((how & 4) != 0 && !stored.empty()) stored.resize(chance.Below(stored.size()));
  if ((how & 8) != 0 && stored.size() > kGocryptfsHeaderSize + 2 * kGocryptfsStoredBlock) {
    const size_t blocks = (stored.size() - kGocryptfsHeaderSize) / kGocryptfsStoredBlock;
    uint8_t* const first = stored.data() + kGocryptfsHeaderSize;
    uint8_t *one = first + chance.Below(blocks) * kGocryptfsStoredBlock,
            *other = first + chance.Below(blocks) * kGocryptfsStoredBlock;
    if (one != other) std::swap_ranges(one, one + kGocryptfsStoredBlock, other);
  }
  return stored != before;
}

void Read(const std::vector<uint8_t>& stored, const std::vector<uint8_t>& plain, bool damaged, Chance& chance) {
  // An empty file has no header.
  const bool opened = Try([&] {
    GocryptfsSource source(std::make_shared<Bytes>(stored), Key());
    Require(damaged || source.Size() == plain.size(), "the size is that of the plaintext");
    for (int i = 0; i < 12; ++i) {
      const uint64_t at = chance.Below(source.Size() + 3);
      std::vector<uint8_t> out(chance.Below(20'000));
      const bool inside = RangeFits(at, out.size(), source.Size());
      if (!Try([&] { source.ReadAt(at, out.data(), out.size()); })) {
        Require(damaged || !inside, "what nobody touched opens");
        continue;
      }
      Require(inside, "nothing is read past the end");
      Require(out.empty() || (RangeFits(at, out.size(), plain.size()) &&
                              std::equal(out.begin(), out.end(), plain.begin() + static_cast<ptrdiff_t>(at))),
              "what opens is what was sealed, in its place");
      CountOutput(out.size());
    }
  });
  Require(opened || damaged || plain.empty(), "what nobody touched opens");
}

}  // namespace
}  // namespace sifcrypt::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sifcrypt::fuzz;
  if (size < kHead || size > kMostInput) return 0;
  const Work work(kBound);
  Input input(data, size);
  const unsigned how = input.Byte();
  Chance chance(input.Pair() | input.Byte() << 16);
  std::vector<uint8_t> plain(input.rest(), input.rest() + input.rest_size());
  if ((how & 1) != 0) {
    Read(plain, {}, true, chance);
    return 0;
  }
  std::vector<uint8_t> stored = Seal(plain, chance);
  const bool damaged = Damage(stored, how, chance);
  Read(stored, plain, damaged, chance);
  return 0;
}
