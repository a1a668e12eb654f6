// Encrypts and decrypts as gocryptfs does, in memory: sizes around every boundary, writes in any order, and each way in
// which ciphertext or the squashfs around it can be wrong. Prints what failed and exits 1, or nothing and exits 0.
#include "core/gocryptfs.h"

#include <string.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "core/enclosing_squashfs.h"
#include "core/squashfs_file_source.h"
#include "core/system_error.h"
#include "core/xts.h"

namespace sifcrypt {
namespace {

using Bytes = std::vector<uint8_t>;

class MemorySource final : public ByteSource {
 public:
  explicit MemorySource(Bytes bytes) : bytes_(std::move(bytes)) {}
  uint64_t Size() const override { return bytes_.size(); }
  void ReadAt(uint64_t offset, void* out, size_t size) const override {
    if (!RangeFits(offset, size, bytes_.size())) throw SystemError(EOVERFLOW, "pread");
    if (size > 0) memcpy(out, bytes_.data() + offset, size);
  }

 private:
  Bytes bytes_;
};

class MemorySink final : public ByteSink {
 public:
  explicit MemorySink(Bytes& bytes) : bytes_(bytes) {}
  uint64_t Size() const override { return bytes_.size(); }
  void WriteAt(uint64_t offset, const void* data, size_t size) override {
    if (offset > bytes_.size()) throw SystemError(EINVAL, "pwrite", "a gap");
    bytes_.resize(std::max<size_t>(bytes_.size(), offset + size));
    if (size > 0) memcpy(bytes_.data() + offset, data, size);
  }
  void ReadAt(uint64_t offset, void* out, size_t size) override {
    if (!RangeFits(offset, size, bytes_.size())) throw SystemError(EOVERFLOW, "pread");
    if (size > 0) memcpy(out, bytes_.data() + offset, size);
  }
  void Truncate(uint64_t size) override { bytes_.resize(size); }
  void Finish() override {}

 private:
  Bytes& bytes_;
};

SecretBuffer Key(uint8_t seed = 1) {
  const Bytes key(kGocryptfsKeySize, seed);
  return SecretBuffer(key.data(), key.size());
}

Bytes RandomBytes(size_t size, unsigned seed) {
  std::mt19937 random(seed);
  Bytes bytes(size);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

Bytes Encrypt(const Bytes& plain) {
  Bytes stored;
  GocryptfsSink sink(std::make_unique<MemorySink>(stored), Key());
  sink.WriteAt(0, plain.data(), plain.size());
  sink.Finish();
  return stored;
}

std::unique_ptr<GocryptfsSource> Open(Bytes stored, GocryptfsSource::OnFailure on_failure = {}) {
  return std::make_unique<GocryptfsSource>(std::make_shared<MemorySource>(std::move(stored)), Key(),
                                           std::move(on_failure));
}

Bytes ReadAll(const ByteSource& source) {
  Bytes plain(source.Size());
  source.ReadAt(0, plain.data(), plain.size());
  return plain;
}

size_t StoredOffset(size_t block) { return kGocryptfsHeaderSize + block * kGocryptfsStoredBlock; }

void TestRoundTrips() {
  for (const size_t size : {1u, 2u, 4095u, 4096u, 4097u, 8192u, 65 * 4096u, 262144u, 262145u, 1000003u}) {
    const Bytes plain = RandomBytes(size, static_cast<unsigned>(size));
    const Bytes stored = Encrypt(plain);
    const std::string what = std::to_string(size) + " bytes";
    Check(stored.size() == 18 + size + 32 * ((size + 4095) / 4096), what + ": the size of what is stored");
    Check(std::search(stored.begin(), stored.end(), plain.begin(), plain.begin() + std::min<ptrdiff_t>(size, 16)) ==
                  stored.end() ||
              size < 8,
          what + ": plaintext is stored");
    const auto source = Open(stored);
    Check(source->Size() == size, what + ": the size");
    Check(ReadAll(*source) == plain, what + ": the content");
    std::mt19937 random(7);
    for (int i = 0; i < 200; ++i) {
      const size_t offset = random() % (size + 1), n = random() % (std::min<size_t>(size - offset, 20000) + 1);
      Bytes part(n);
      source->ReadAt(offset, part.data(), n);
      Check(std::equal(part.begin(), part.end(), plain.begin() + static_cast<ptrdiff_t>(offset)), what + ": a part");
    }
    CheckError(
        EOVERFLOW, [&] { source->ReadAt(size, Bytes(1).data(), 1); }, what + ": past the end");
    CheckError(
        EOVERFLOW, [&] { source->ReadAt(UINT64_MAX, Bytes(2).data(), 2); }, what + ": far past the end");
  }
}

/// Any sink that encrypts: writes, rewrites, cuts and reads at random, beside a plain copy.
template <typename Sink, typename Parameters>
Bytes WriteAtRandom(Bytes& stored, Parameters parameters, unsigned seed, const std::string& what) {
  Sink sink(std::make_unique<MemorySink>(stored), std::move(parameters));
  Bytes plain;
  std::mt19937 random(seed);
  const size_t sizes[] = {1, 96, 4096, 5000, 8192, 300000};
  for (int i = 0; i < 150; ++i) {
    const size_t offset = random() % 3 == 0 ? plain.size() : random() % (plain.size() + 1);
    const Bytes piece = RandomBytes(random() % sizes[random() % std::size(sizes)] + 1, seed + i);
    if (random() % 10 == 0) {
      sink.Truncate(offset);
      plain.resize(offset);
    } else {
      sink.WriteAt(offset, piece.data(), piece.size());
      plain.resize(std::max(plain.size(), offset + piece.size()));
      std::copy(piece.begin(), piece.end(), plain.begin() + static_cast<ptrdiff_t>(offset));
    }
    Check(sink.Size() == plain.size(), what + ": the size");
    const size_t from = random() % (plain.size() + 1), n = random() % (plain.size() - from + 1);
    Bytes part(n);
    sink.ReadAt(from, part.data(), n);
    Check(std::equal(part.begin(), part.end(), plain.begin() + static_cast<ptrdiff_t>(from)), what + ": read back");
  }
  CheckError(
      EINVAL, [&] { sink.WriteAt(plain.size() + 1, plain.data(), 1); }, what + ": a gap");
  sink.WriteAt(0, "start", 5);
  plain.resize(std::max<size_t>(plain.size(), 5));
  memcpy(plain.data(), "start", 5);
  sink.Finish();
  return plain;
}

void TestWrites() {
  for (unsigned seed = 1; seed <= 4; ++seed) {
    Bytes stored;
    const Bytes plain = WriteAtRandom<GocryptfsSink>(stored, Key(), seed, "gocryptfs sink");
    Check(ReadAll(*Open(stored)) == plain, "what was written in any order");
    Bytes sectors;
    const auto parameters = [] { return XtsParameters{SecretBuffer(RandomBytes(64, 5).data(), 64), 4096, 0}; };
    Bytes padded = WriteAtRandom<XtsSink>(sectors, parameters(), seed, "XTS sink");
    padded.resize((padded.size() + 4095) / 4096 * 4096);
    Check(ReadAll(XtsSource(std::make_shared<MemorySource>(sectors), parameters())) == padded, "the same with XTS");
  }
  // A block that is written again gets another IV.
  Bytes stored;
  GocryptfsSink sink(std::make_unique<MemorySink>(stored), Key());
  const Bytes plain(4096, 3);
  sink.WriteAt(0, plain.data(), plain.size());
  const Bytes once = stored;
  sink.WriteAt(0, plain.data(), plain.size());
  Check(!std::equal(once.begin() + 18, once.begin() + 34, stored.begin() + 18), "an IV is used twice");
  Check(std::equal(once.begin(), once.begin() + 18, stored.begin()), "the file ID changes");
  CheckError(
      EINVAL,
      [] {
        Bytes none;
        GocryptfsSink(std::make_unique<MemorySink>(none), SecretBuffer(31));
      },
      "a short key");
}

void TestDamage() {
  const Bytes plain = RandomBytes(4 * 4096 + 1000, 2);
  const Bytes stored = Encrypt(plain);
  const auto damaged = [&](const std::function<void(Bytes&)>& change, size_t block, const std::string& what) {
    Bytes bad = stored;
    change(bad);
    std::vector<uint64_t> reported;
    const auto source = Open(bad, [&](uint64_t number, const char*) { reported.push_back(number); });
    for (size_t i = 0; i <= 4; ++i) {
      const size_t n = std::min<size_t>(4096, plain.size() - i * 4096);
      Bytes part(n, 0xee);
      const auto read = [&] { source->ReadAt(i * 4096, part.data(), n); };
      if (i == block) {
        CheckError(EIO, read, what);
        CheckError(EIO, read, what + ", again");
        Check(std::all_of(part.begin(), part.end(), [](uint8_t byte) { return byte == 0 || byte == 0xee; }),
              what + ": content is given away");
      } else {
        read();
        Check(std::equal(part.begin(), part.end(), plain.begin() + static_cast<ptrdiff_t>(i * 4096)),
              what + ": another block");
      }
    }
    Check(reported == std::vector<uint64_t>{block}, what + ": reported once");
  };
  for (const size_t block : {0u, 2u, 4u}) {
    const size_t start = StoredOffset(block), end = std::min(stored.size(), StoredOffset(block + 1));
    for (const size_t at : {start, start + 15, start + 16, (start + end) / 2, end - 17, end - 16, end - 1})
      damaged([&](Bytes& bad) { bad[at] ^= 0x80; }, block, "byte " + std::to_string(at));
    const auto zero = [&](size_t from, size_t to) {
      return [from, to](Bytes& bad) {
        std::fill(bad.begin() + static_cast<ptrdiff_t>(from), bad.begin() + static_cast<ptrdiff_t>(to), 0);
      };
    };
    damaged(zero(start, end), block, "a hole");
    damaged(zero(start, start + 16), block, "no IV");
  }
  // Two blocks of one file in each other's place, and one of another file.
  Bytes swapped = stored;
  std::swap_ranges(swapped.begin() + static_cast<ptrdiff_t>(StoredOffset(0)),
                   swapped.begin() + static_cast<ptrdiff_t>(StoredOffset(1)),
                   swapped.begin() + static_cast<ptrdiff_t>(StoredOffset(1)));
  CheckError(
      EIO, [&] { Open(swapped)->ReadAt(0, Bytes(1).data(), 1); }, "swapped, the first");
  CheckError(
      EIO, [&] { Open(swapped)->ReadAt(4096, Bytes(1).data(), 1); }, "swapped, the second");
  Bytes mixed = stored;
  const Bytes other = Encrypt(plain);
  std::copy(other.begin() + static_cast<ptrdiff_t>(StoredOffset(1)),
            other.begin() + static_cast<ptrdiff_t>(StoredOffset(2)),
            mixed.begin() + static_cast<ptrdiff_t>(StoredOffset(1)));
  CheckError(
      EIO, [&] { Open(mixed)->ReadAt(4096, Bytes(1).data(), 1); }, "another file's block");

  for (size_t size = 0; size <= stored.size(); size += size % 4128 < 60 || size % 4128 > 4100 ? 1 : 97) {
    const Bytes cut(stored.begin(), stored.begin() + static_cast<ptrdiff_t>(size));
    const size_t last = size < 18 ? 0 : (size - 18) % 4128;
    const std::string what = "cut to " + std::to_string(size);
    if (size <= 18 || (last > 0 && last <= 32)) {
      CheckError(
          EBADMSG, [&] { Open(cut); }, what);
      continue;
    }
    const auto source = Open(cut);
    const size_t whole = (size - 18) / 4128 * 4096;
    Check(last != 0 || source->Size() == whole, what + ": the size");
    if (last != 0 && size < stored.size())
      CheckError(
          EIO, [&] { ReadAll(*source); }, what);
    Bytes part(whole);
    source->ReadAt(0, part.data(), whole);
    Check(std::equal(part.begin(), part.end(), plain.begin()), what + ": what is left");
  }
  for (const size_t at : {0u, 1u}) {
    Bytes bad = stored;
    bad[at] ^= 1;
    CheckError(
        EBADMSG, [&] { Open(bad); }, "version");
  }
  Bytes anonymous = stored;
  std::fill(anonymous.begin() + 2, anonymous.begin() + 18, 0);
  CheckError(
      EBADMSG, [&] { Open(anonymous); }, "no file ID");
  anonymous[5] = 1;
  CheckError(
      EIO, [&] { ReadAll(*Open(anonymous)); }, "another file ID");
  CheckError(
      EINVAL, [&] { GocryptfsSource(std::make_shared<MemorySource>(stored), SecretBuffer(16)); }, "a short key");
  const auto wrong = GocryptfsSource(std::make_shared<MemorySource>(stored), Key(2));
  CheckError(
      EIO, [&] { wrong.ReadAt(0, Bytes(1).data(), 1); }, "another key");

  // What is reported is bounded.
  std::atomic<int> reports = 0;
  const size_t blocks = 3 * GocryptfsSource::kMaxReported;
  Bytes ruined = Encrypt(Bytes(blocks * 4096, 1));
  for (size_t block = 0; block < blocks; ++block) ruined[StoredOffset(block) + 20] ^= 1;
  const auto source = Open(ruined, [&](uint64_t, const char*) { ++reports; });
  for (size_t block = 0; block < blocks; ++block)
    CheckError(
        EIO, [&] { source->ReadAt(block * 4096, Bytes(1).data(), 1); }, "a ruined block");
  Check(reports == static_cast<int>(GocryptfsSource::kMaxReported), "reports are bounded");
}

Bytes Enclose(const Bytes& content, const std::string& name = "squashfs-1", const std::string& config = "{}\n") {
  Bytes image;
  EnclosingSquashfs::Contents contents;
  contents.file = name;
  contents.config.assign(config.begin(), config.end());
  contents.time = 1;
  EnclosingSquashfs sink(std::make_unique<MemorySink>(image), std::move(contents));
  // Grown, cut and rewritten on the way.
  sink.WriteAt(0, content.data(), content.size() / 2);
  const size_t half = content.size() / 2;
  sink.WriteAt(half, content.data() + half, content.size() - half);
  if (content.size() > 10) {
    sink.Truncate(content.size() - 5);
    sink.WriteAt(content.size() - 5, content.data() + content.size() - 5, 5);
    Bytes first(10);
    sink.ReadAt(0, first.data(), first.size());
    sink.WriteAt(0, first.data(), first.size());
  }
  sink.Finish();
  return image;
}

void TestEnclosing() {
  for (const size_t size : {1u, 50u, 4096u, 131071u, 131072u, 131073u, 1000000u}) {
    const Bytes content = RandomBytes(size, 9);
    const std::string what = std::to_string(size) + " bytes enclosed";
    const Bytes image = Enclose(content);
    Check(image.size() % 4096 == 0, what + ": padded");
    Check(memcmp(image.data() + 4096, "{}\n", 3) == 0, what + ": the configuration's place");
    const auto squashfs = std::make_shared<MemorySource>(image);
    const auto file = OpenSquashfsFile(squashfs, "squashfs-1");
    Check(ReadAll(*file) == content, what + ": the content");
    Check(ReadAll(*OpenSquashfsFile(squashfs, "gocryptfs.conf")) == Bytes({'{', '}', '\n'}), what + ": configuration");
    std::mt19937 random(3);
    for (int i = 0; i < 100; ++i) {
      const size_t offset = random() % (size + 1), n = random() % (size - offset + 1);
      Bytes part(n);
      file->ReadAt(offset, part.data(), n);
      Check(std::equal(part.begin(), part.end(), content.begin() + static_cast<ptrdiff_t>(offset)), what + ": a part");
    }
    CheckError(
        EOVERFLOW, [&] { file->ReadAt(size, Bytes(1).data(), 1); }, what + ": past the end");
    for (const char* name : {"squashfs-2", "", ".", "..", "a/b"})
      CheckError(
          EBADMSG, [&] { OpenSquashfsFile(squashfs, name); }, what + ": " + name);
  }
  for (const char* name : {"", ".", "..", "a/b", "gocryptfs.conf"})
    CheckError(
        EINVAL, [&] { Enclose(Bytes(1), name); }, std::string("a file called ") + name);
  CheckError(
      EINVAL, [] { Enclose(Bytes(1), std::string(256, 'n')); }, "a name that is too long");
  CheckError(
      EINVAL, [] { Enclose(Bytes(1), std::string("a\0b", 3)); }, "a name with NUL");
  CheckError(
      EINVAL, [] { Enclose(Bytes(1), "s", ""); }, "no configuration");
  CheckError(
      EINVAL, [] { Enclose(Bytes(1), "s", std::string(65537, '{')); }, "a long configuration");
  CheckError(
      EINVAL, [] { Enclose({}); }, "an empty file");

  // Names on both sides of the configuration's are in order.
  for (const char* name : {"aaa", "zzz"})
    OpenSquashfsFile(std::make_shared<MemorySource>(Enclose(Bytes(1), name)), name);

  // A hostile one gives an error or other bytes, which do not authenticate; never anything else.
  const Bytes plain = RandomBytes(300000, 4);
  const Bytes image = Enclose(Encrypt(plain));
  std::mt19937 random(11);
  for (int i = 0; i < 3000; ++i) {
    Bytes bad = image;
    const size_t tables = 8192 + Encrypt(Bytes(1)).size() + 300000;
    for (int n = 0; n < 3; ++n) {
      const size_t at = random() % 2 == 0 ? random() % 96
                                          : std::min(tables, bad.size() - 1) +
                                                random() % (bad.size() - std::min(tables, bad.size() - 1));
      bad[at] = static_cast<uint8_t>(random());
    }
    if (random() % 8 == 0) bad.resize(random() % bad.size());
    try {
      const GocryptfsSource source(OpenSquashfsFile(std::make_shared<MemorySource>(bad), "squashfs-1"), Key());
      if (source.Size() > (uint64_t{1} << 24)) continue;
      const Bytes got = ReadAll(source);
      Check(got.size() <= plain.size() && std::equal(got.begin(), got.end(), plain.begin()), "hostile: other content");
    } catch (const SystemError&) {
    }
  }
}

void TestConcurrency() {
  const Bytes plain = RandomBytes(2000000, 6);
  const GocryptfsSource source(OpenSquashfsFile(std::make_shared<MemorySource>(Enclose(Encrypt(plain))), "squashfs-1"),
                               Key());
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (unsigned id = 0; id < 4; ++id) {
    threads.emplace_back([&, id] {
      std::mt19937 random(id);
      Bytes part(200000);
      for (int i = 0; i < 50; ++i) {
        const size_t offset = random() % plain.size(), n = std::min(part.size(), plain.size() - offset);
        source.ReadAt(offset, part.data(), n);
        if (memcmp(part.data(), plain.data() + offset, n) != 0) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  Check(wrong == 0, "concurrent reads");
}

}  // namespace
}  // namespace sifcrypt

int main() {
  using namespace sifcrypt;
  TestRoundTrips();
  TestWrites();
  TestDamage();
  TestEnclosing();
  TestConcurrency();
  return failures == 0 ? 0 : 1;
}
