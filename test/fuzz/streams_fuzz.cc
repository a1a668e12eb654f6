// Compressed streams: gzip, zstd, xz and none, read and passed by in steps of any size. The first byte says of how many copies one
// behind the other the blob is, so that it also gets long enough for the thread that reads ahead.
#include <openssl/evp.h>

#include "core/layer_stream.h"
#include "target.h"

namespace sifcrypt::fuzz {
namespace {

constexpr uint64_t kMostBytes = 4 << 20;
constexpr size_t kPiece = 100'000;
constexpr Amount kBound{
    .allocations = 100'000, .allocated = 512 << 20, .reads = 20'000, .read = 16 << 20, .output = 3 * kMostBytes};

/// All of it, in one way; how it ended.
struct Ending {
  bool good = false;
  std::vector<uint8_t> bytes;
};

Ending ReadAll(const ByteSource& blob) {
  Ending ending;
  ending.good = Try([&] {
    LayerStream stream(blob, "stream");
    stream.Limit(kMostBytes);
    // A part of what is decoded at a time, so that a failure loses nothing that came before it.
    std::vector<uint8_t> piece(4 << 10);
    while (const size_t n = stream.Read(piece.data(), piece.size())) {
      ending.bytes.insert(ending.bytes.end(), piece.begin(), piece.begin() + static_cast<ptrdiff_t>(n));
      CountOutput(n);
    }
  });
  return ending;
}

void ReadInSteps(const ByteSource& blob, const Ending& all, Chance chance) {
  const bool hashed = chance.Below(2) == 0;
  ExpectedDigest digest(32);
  EVP_Digest(all.bytes.data(), all.bytes.size(), digest.data(), nullptr, EVP_sha256(), nullptr);
  const bool wrong = hashed && chance.Below(4) == 0;
  if (wrong) digest[chance.Below(32)] ^= 1;
  bool finished = false;
  Try([&] {
    LayerStream stream(blob, "stream");
    stream.Limit(kMostBytes);
    if (hashed) stream.Expect(digest);
    std::vector<uint8_t> piece(kPiece);
    for (int left = 400; left > 0; --left) {
      const uint64_t at = stream.position();
      const size_t wanted = chance.Below(kPiece);
      if (chance.Below(3) == 0) {
        stream.Skip(wanted);
        Require(stream.position() == at + wanted, "all that is passed by is passed");
        continue;
      }
      const size_t n = stream.Read(piece.data(), wanted);
      Require(n <= wanted && stream.position() == at + n, "a stream knows where it is");
      Require(RangeFits(at, n, all.bytes.size()) && std::equal(piece.data(), piece.data() + n, all.bytes.data() + at),
              "steps give the same bytes");
      CountOutput(n);
      if (n < wanted) break;
    }
    stream.Finish();
    finished = true;
  });
  Require(!finished || (all.good && !wrong), "a stream ends well where it is whole and what is expected");
}

}  // namespace
}  // namespace sifcrypt::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sifcrypt::fuzz;
  if (size < 2 || size > kMostInput) return 0;
  const size_t length = size - 1;
  const size_t copies = data[0] >= 0xf0 ? sifcrypt::LayerStream::kLong / length + 1 : 1 + data[0] % 4;
  // A few bytes, and as many copies of them as it takes, are only so much work of the target's own.
  if (copies > 4096) return 0;
  const Work work(kBound);
  std::vector<uint8_t> blob;
  for (size_t i = 0; i < copies; ++i) blob.insert(blob.end(), data + 1, data + size);
  const Bytes source(blob);
  IsCompressed(source);
  const auto all = ReadAll(source);
  ReadInSteps(source, all, Chance(data[0] | data[size - 1] << 8));
  if (all.good && !all.bytes.empty())
    sifcrypt::fuzz::Try([&] {
      // Backwards starts again.
      sifcrypt::DecompressedSource random(std::make_shared<Bytes>(blob), all.bytes.size());
      uint8_t byte = 0;
      for (const uint64_t at : {uint64_t{all.bytes.size() - 1}, uint64_t{0}}) {
        random.ReadAt(at, &byte, 1);
        Require(byte == all.bytes[at], "any byte can be asked for");
      }
    });
  return 0;
}
