// dm-verity: a hash tree is made of data, then either is damaged. What is read is the data, or nothing.
#include <memory>
#include <mutex>

#include "core/verity.h"
#include "target.h"

namespace sifcrypt::fuzz {
namespace {

constexpr size_t kHead = 8;
/// Few in most, as each costs time. There are two levels above 128.
constexpr size_t kFewBlocks = 20;
constexpr size_t kManyBlocks = 125;
constexpr Amount kBound{
    .allocations = 20'000, .allocated = 64 << 20, .reads = 5'000, .read = 16 << 20, .output = 1 << 20};

bool Damage(std::vector<uint8_t>& bytes, Chance& chance) {
  const std::vector<uint8_t> before = bytes;
  if (chance.Below(3) == 0)
    bytes.resize(chance.Below(bytes.size() + 5000));
  else
    bytes[chance.Below(bytes.size())] ^= static_cast<uint8_t>(1 << chance.Below(8));
  return bytes != before;
}

}  // namespace
}  // namespace sifcrypt::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using namespace sifcrypt;
  using namespace sifcrypt::fuzz;
  if (size < kHead || size > kMostInput) return 0;
  const Work work(kBound);
  Input input(bytes, size);
  const unsigned how = input.Byte();
  Chance chance(input.Pair());
  const size_t few = 2 + input.Byte() % kFewBlocks, many = input.Byte() % 16 == 1 ? kManyBlocks : 0;
  std::vector<uint8_t> data((few + many) * kVerityBlock);
  for (size_t i = 0; i < kVerityBlock; ++i) data[i] = bytes[i % size];
  for (size_t at = kVerityBlock; at < data.size(); at += kVerityBlock) {
    memcpy(data.data() + at, data.data(), kVerityBlock);
    data[at] = static_cast<uint8_t>(data[at] + at / kVerityBlock);
  }
  VerityParameters parameters;
  for (size_t i = 0; i < parameters.salt.size(); ++i) parameters.salt[i] = bytes[i % size];
  const VerityLayout layout(data.size());
  std::vector<uint8_t> hashes(layout.size());
  std::mutex mutex;
  parameters.root = HashVerity(
      Bytes(data), parameters.salt,
      [&](uint64_t block, const uint8_t* hash_block) {
        const std::lock_guard lock(mutex);
        Require(block < layout.blocks(), "a block of a hash tree is in it");
        memcpy(hashes.data() + block * kVerityBlock, hash_block, kVerityBlock);
      },
      1);
  const std::vector<uint8_t> whole = data;
  bool damaged = false;
  if ((how & 1) != 0) damaged |= Damage(data, chance);
  if ((how & 2) != 0) damaged |= Damage(hashes, chance);
  if ((how & 4) != 0) parameters.root[chance.Below(parameters.root.size())] ^= 1;
  if ((how & 8) != 0) parameters.salt[chance.Below(parameters.salt.size())] ^= 1;
  damaged |= (how & 12) != 0;
  const auto below = std::make_shared<Bytes>(data), tree = std::make_shared<Bytes>(hashes);
  bool same = false;
  const bool compared = fuzz::Try([&] { same = IsVerityOf(*below, *tree, parameters, 1); });
  Require(same == !damaged && (compared || damaged), "a hash tree belongs to its data, and to no other");
  const bool opened = fuzz::Try([&] {
    VerifiedSource source(below, tree, parameters);
    for (int i = 0; i < 8; ++i) {
      const uint64_t at = chance.Below(whole.size() + 10);
      std::vector<uint8_t> out(chance.Below(30'000));
      const bool inside = RangeFits(at, out.size(), source.Size());
      if (!fuzz::Try([&] { source.ReadAt(at, out.data(), out.size()); })) {
        Require(damaged || !inside, "what nobody touched is read");
        continue;
      }
      Require(inside, "nothing is read past the end");
      Require(out.empty() || (RangeFits(at, out.size(), whole.size()) &&
                              std::equal(out.begin(), out.end(), whole.begin() + static_cast<ptrdiff_t>(at))),
              "what is read is what was hashed");
      CountOutput(out.size());
    }
  });
  Require(opened || damaged, "what nobody touched is read");
  return 0;
}
