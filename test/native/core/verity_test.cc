// Hash trees in memory: every number of levels and every edge of a block, each way in which data or tree can be wrong, and threads.
// Whether the bytes are dm-verity's is for veritysetup and the kernel to say (test/native/verity.test.ts, test/uml). Prints what failed
// and exits 1, or nothing and exits 0.
#include "core/verity.h"

#include <string.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <iostream>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "core/slice_source.h"
#include "core/system_error.h"

namespace sifcrypt {
namespace {

using Bytes = std::vector<uint8_t>;

/// Bytes that the test changes while a source reads them.
class MemorySource final : public ByteSource {
 public:
  explicit MemorySource(Bytes bytes) : bytes_(std::move(bytes)) {}
  uint64_t Size() const override { return bytes_.size(); }
  void ReadAt(uint64_t offset, void* out, size_t size) const override {
    if (!RangeFits(offset, size, bytes_.size())) throw SystemError(EOVERFLOW, "pread");
    if (size > 0) memcpy(out, bytes_.data() + offset, size);
  }
  void Flip(uint64_t bit) { bytes_[bit / 8] ^= static_cast<uint8_t>(1U << (bit % 8)); }
  const Bytes& bytes() const { return bytes_; }

 private:
  Bytes bytes_;
};

using MemoryPtr = std::shared_ptr<MemorySource>;

Bytes RandomBytes(size_t size, uint64_t seed) {
  std::mt19937_64 random(seed);
  Bytes bytes(size);
  for (size_t i = 0; i < size; i += 8) {
    const uint64_t word = random();
    memcpy(bytes.data() + i, &word, std::min<size_t>(8, size - i));
  }
  return bytes;
}

/// Data and its tree.
struct Made {
  MemoryPtr data;
  MemoryPtr tree;
  VerityParameters parameters;

  std::unique_ptr<VerifiedSource> Open(VerifiedSource::OnFailure on_failure = {}) const {
    return std::make_unique<VerifiedSource>(data, tree, parameters, std::move(on_failure));
  }
  Bytes ReadAll() const {
    Bytes bytes(data->Size());
    Open()->ReadAt(0, bytes.data(), bytes.size());
    return bytes;
  }
};

Made Make(uint64_t blocks, uint64_t seed = 1, unsigned threads = 0) {
  Made made;
  made.data = std::make_shared<MemorySource>(RandomBytes(blocks * kVerityBlock, seed));
  const Bytes salt = RandomBytes(made.parameters.salt.size(), seed + 1);
  std::copy(salt.begin(), salt.end(), made.parameters.salt.begin());
  const VerityLayout layout(made.data->Size());
  Bytes tree(layout.size());
  std::vector<std::atomic<int>> stored(layout.blocks());
  made.parameters.root = HashVerity(
      *made.data, made.parameters.salt,
      [&](uint64_t block, const uint8_t* bytes) {
        ++stored.at(block);
        memcpy(tree.data() + block * kVerityBlock, bytes, kVerityBlock);
      },
      threads);
  Check(std::all_of(stored.begin(), stored.end(), [](int times) { return times == 1; }),
        std::to_string(blocks) + " blocks: each block of the tree is stored once");
  made.tree = std::make_shared<MemorySource>(std::move(tree));
  return made;
}

void TestLayout() {
  const auto shape = [](uint64_t blocks) {
    std::string text;
    const VerityLayout layout(blocks * kVerityBlock);
    for (const VerityLayout::Level& level : layout.levels())
      text += std::to_string(level.first) + "+" + std::to_string(level.count) + " ";
    return text;
  };
  // As the kernel's constructor counts: from the top down, each level a 128th of the one below.
  Check(shape(2) == "0+1 ", "2 blocks");
  Check(shape(128) == "0+1 ", "128 blocks");
  Check(shape(129) == "1+2 0+1 ", "129 blocks");
  Check(shape(16384) == "1+128 0+1 ", "16384 blocks");
  Check(shape(16385) == "3+129 1+2 0+1 ", "16385 blocks");
  Check(VerityLayout(uint64_t{10} << 30).size() == (20480 + 160 + 2 + 1) * kVerityBlock, "10 GiB");
  Check(VerityLayout((INT64_MAX / kVerityBlock) * kVerityBlock).levels().size() == 8, "as much as a file can have");
  for (const uint64_t size : {uint64_t{0}, uint64_t{4096}, uint64_t{4095}, uint64_t{8191}, uint64_t{8193},
                              uint64_t{1} << 63, UINT64_MAX - 4095})
    CheckError(
        EINVAL, "verity", [size] { VerityLayout layout(size); }, std::to_string(size) + " bytes");
}

void TestReading() {
  for (const uint64_t blocks : {2, 3, 127, 128, 129, 256, 300, 16385}) {
    const std::string name = std::to_string(blocks) + " blocks";
    const Made made = Make(blocks);
    Check(made.ReadAll() == made.data->bytes(), name + ": all at once");
    Check(IsVerityOf(*made.data, *made.tree, made.parameters), name + ": the tree is the data's");
    Check(Make(blocks, 1, 1).tree->bytes() == made.tree->bytes(), name + ": the same from one thread");
    const auto source = made.Open();
    const uint64_t size = source->Size();
    const Bytes& expected = made.data->bytes();
    for (const uint64_t offset : {uint64_t{0}, uint64_t{1}, uint64_t{4095}, uint64_t{4096}, uint64_t{4097},
                                  size / 2 + 5, size - 4097, size - 1, size})
      for (const uint64_t length :
           {uint64_t{0}, uint64_t{1}, uint64_t{4095}, uint64_t{4096}, uint64_t{8193}, uint64_t{300000}}) {
        const std::string range = name + ", " + std::to_string(length) + " at " + std::to_string(offset);
        Bytes out(length);
        if (!RangeFits(offset, length, size)) {
          CheckError(
              EOVERFLOW, "verity_read", [&] { source->ReadAt(offset, out.data(), out.size()); }, range);
          continue;
        }
        source->ReadAt(offset, out.data(), out.size());
        Check(std::equal(out.begin(), out.end(), expected.begin() + static_cast<ptrdiff_t>(offset)), range);
      }
    CheckError(
        EOVERFLOW, "verity_read", [&] { source->ReadAt(UINT64_MAX, nullptr, 2); }, name + ": wraps around");
  }
}

/// One of 1,000 bits at a time: a read of everything fails, a read of any other block does not, and nothing of the block gets out.
void TestFlips() {
  const Made made = Make(300);
  std::mt19937_64 random(7);
  const uint64_t bits = made.data->Size() * 8;
  const auto opened = made.Open();
  for (int i = 0; i < 1000; ++i) {
    const uint64_t bit = random() % bits;
    const uint64_t block = bit / 8 / kVerityBlock;
    const std::string name = "bit " + std::to_string(bit);
    made.data->Flip(bit);
    std::set<uint64_t> told;
    const auto fresh = made.Open([&](uint64_t failed, const char*) { told.insert(failed); });
    Bytes all(made.data->Size());
    CheckError(
        EIO, "verity_read", [&] { fresh->ReadAt(0, all.data(), all.size()); }, name + ": a read of everything");
    Check(told == std::set<uint64_t>{block}, name + ": its block is named");
    // A source that has read the block before, when it was right.
    Bytes one(kVerityBlock, 0xaa);
    CheckError(
        EIO, "verity_read", [&] { opened->ReadAt(block * kVerityBlock, one.data(), one.size()); },
        name + ": read again");
    Check(one == Bytes(kVerityBlock), name + ": nothing of it is given away");
    uint8_t byte = 0xaa;
    CheckError(
        EIO, "verity_read", [&] { opened->ReadAt(block * kVerityBlock + 5, &byte, 1); }, name + ": one byte");
    Check(byte == 0xaa, name + ": that byte is not given away");
    const uint64_t other = (block + 1) % 300;
    opened->ReadAt(other * kVerityBlock, one.data(), one.size());
    made.data->Flip(bit);
    opened->ReadAt(block * kVerityBlock, one.data(), one.size());
  }
}

void TestTreeFlips() {
  const Made made = Make(300);
  std::mt19937_64 random(8);
  for (int i = 0; i < 1000; ++i) {
    const uint64_t bit = random() % (made.tree->Size() * 8);
    const std::string name = "bit " + std::to_string(bit) + " of the tree";
    made.tree->Flip(bit);
    CheckError(
        EIO, "verity_read", [&] { made.ReadAll(); }, name);
    Check(!IsVerityOf(*made.data, *made.tree, made.parameters), name + ": compared");
    made.tree->Flip(bit);
  }
}

void TestHostileTrees() {
  const Made made = Make(300), other = Make(300, 5);
  const auto with_tree = [&](Bytes tree) {
    Made changed = made;
    changed.tree = std::make_shared<MemorySource>(std::move(tree));
    return changed;
  };
  const Bytes& tree = made.tree->bytes();
  const auto part = [&tree](size_t size) { return Bytes(tree.begin(), tree.begin() + static_cast<ptrdiff_t>(size)); };
  Bytes longer = tree;
  longer.resize(tree.size() + kVerityBlock);
  for (const auto& [name, bytes] :
       std::vector<std::pair<std::string, Bytes>>{{"no tree", {}},
                                                  {"a tree cut by a block", part(tree.size() - kVerityBlock)},
                                                  {"a tree cut by a byte", part(tree.size() - 1)},
                                                  {"a tree with a block too many", longer},
                                                  {"a tree of one level less", part(kVerityBlock)}}) {
    CheckError(
        EBADMSG, "verity_open", [&, &bytes = bytes] { with_tree(bytes).Open(); }, name);
    CheckError(
        EBADMSG, "verity_open", [&, &bytes = bytes] { IsVerityOf(*made.data, MemorySource(bytes), made.parameters); },
        name + ", compared");
  }
  const auto refused = [](const Made& changed, const std::string& name) {
    CheckError(
        EIO, "verity_read", [&] { changed.Open(); }, name);
    Check(!IsVerityOf(*changed.data, *changed.tree, changed.parameters), name + ", compared");
  };
  refused(with_tree(other.tree->bytes()), "the tree of other data");
  Made changed = made;
  changed.parameters.root = other.parameters.root;
  refused(changed, "the root of other data");
  changed = made;
  changed.parameters.salt[31] ^= 1;
  refused(changed, "another salt");
  changed = made;
  changed.data = other.data;
  CheckError(
      EIO, "verity_read", [&] { changed.ReadAll(); }, "other data of the same size");
  // Leaves before the root: the right blocks in the wrong order.
  Bytes turned = tree;
  std::rotate(turned.begin(), turned.begin() + kVerityBlock, turned.end());
  refused(with_tree(turned), "levels in the wrong order");
  changed = made;
  changed.data = std::make_shared<MemorySource>(Bytes(301 * kVerityBlock));
  CheckError(
      EIO, "verity_read", [&] { changed.ReadAll(); }, "data of another size for which the tree has room");
}

void TestReports() {
  const Made made = Make(300);
  std::vector<uint64_t> told;
  const auto source = made.Open([&](uint64_t block, const char*) { told.push_back(block); });
  for (uint64_t block = 0; block < 300; ++block) made.data->Flip(block * kVerityBlock * 8);
  uint8_t byte;
  for (int round = 0; round < 2; ++round)
    for (uint64_t block = 0; block < 300; ++block)
      CheckError(
          EIO, "verity_read", [&] { source->ReadAt(block * kVerityBlock, &byte, 1); }, "a block that was changed");
  Check(told.size() == VerifiedSource::kMaxReported, "no more than a few blocks are told");
  Check(std::set<uint64_t>(told.begin(), told.end()).size() == told.size(), "each of them once");
}

void TestThreads() {
  const Made made = Make(3000);
  constexpr uint64_t kChanged = 2345;
  made.data->Flip((kChanged * kVerityBlock + 17) * 8);
  const auto source = made.Open([](uint64_t, const char*) {});
  std::atomic<int> wrong = 0, failed = 0;
  std::vector<std::thread> threads;
  for (uint64_t seed = 0; seed < 8; ++seed)
    threads.emplace_back([&, seed] {
      std::mt19937_64 random(seed);
      Bytes out(200000);
      for (int i = 0; i < 200; ++i) {
        const size_t size = random() % out.size() + 1;
        const uint64_t offset = random() % (source->Size() - size);
        const bool touches = offset < (kChanged + 1) * kVerityBlock && offset + size > kChanged * kVerityBlock;
        try {
          source->ReadAt(offset, out.data(), size);
          if (touches || memcmp(out.data(), made.data->bytes().data() + offset, size) != 0) ++wrong;
        } catch (const SystemError&) {
          if (touches)
            ++failed;
          else
            ++wrong;
        }
      }
    });
  for (std::thread& thread : threads) thread.join();
  Check(wrong == 0, "threads read what is there, or an error");
  Check(failed > 0, "some of them met the block that was changed");
}

void TestStopping() {
  const Made made = Make(3000);
  const auto ignore = [](uint64_t, const uint8_t*) {};
  uint64_t last = 0;
  HashVerity(*made.data, made.parameters.salt, ignore, 4, [&](uint64_t bytes) {
    Check(bytes > last, "progress grows");
    last = bytes;
    return true;
  });
  Check(last == made.data->Size(), "progress ends with all of it");
  CheckError(
      ECANCELED, "verity_hash",
      [&] { HashVerity(*made.data, made.parameters.salt, ignore, 4, [](uint64_t) { return false; }); },
      "stopped by progress");
  CheckError(
      ENOSPC, "pwrite",
      [&] {
        HashVerity(
            *made.data, made.parameters.salt,
            [](uint64_t block, const uint8_t*) {
              if (block == 10) throw SystemError(ENOSPC, "pwrite");
            },
            4);
      },
      "no room for a block");
}

void TestSlices() {
  const auto whole = std::make_shared<MemorySource>(RandomBytes(100, 1));
  const SliceSource slice(whole, {10, 20});
  Bytes out(20);
  slice.ReadAt(0, out.data(), 20);
  Check(slice.Size() == 20 && memcmp(out.data(), whole->bytes().data() + 10, 20) == 0, "a slice");
  CheckError(
      EOVERFLOW, "pread", [&] { slice.ReadAt(1, out.data(), 20); }, "past the end of a slice");
  CheckError(
      EOVERFLOW, "pread",
      [&] {
        SliceSource(whole, {90, 11});
      },
      "a slice that is not inside");
  CheckError(
      EOVERFLOW, "pread",
      [&] {
        SliceSource(whole, {UINT64_MAX, 2});
      },
      "a slice that wraps around");
}

}  // namespace
}  // namespace sifcrypt

int main() {
  using namespace sifcrypt;
  TestLayout();
  TestReading();
  TestFlips();
  TestTreeFlips();
  TestHostileTrees();
  TestReports();
  TestThreads();
  TestStopping();
  TestSlices();
  return failures == 0 ? 0 : 1;
}
