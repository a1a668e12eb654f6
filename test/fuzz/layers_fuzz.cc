// Layers of an image, applied over each other: the input is one to three archives, each up to the zeros at its end, or one that is
// compressed. Their digests are right, so that all gets past them. layers_mutator.cc mends checksums.
#include <openssl/evp.h>

#include <memory>
#include <string>

#include "core/layer_tree.h"
#include "target.h"

namespace sifcrypt::fuzz {
namespace {

constexpr size_t kBlock = 512;
constexpr size_t kMostLayers = 3;
constexpr uint64_t kMostBytes = 8 << 20;
constexpr LayerLimits kLimits{.bytes = kMostBytes, .memory = 8 << 20, .work = 4 << 20};
constexpr Amount kBound{
    .allocations = 600'000, .allocated = 512 << 20, .reads = 20'000, .read = 64 << 20, .output = 4 * kMostBytes};

class Visitor final : public TreeVisitor {
 public:
  void EnterDirectory(const TreeEntry& entry) override {
    Entry(entry);
    ++depth_;
  }
  void LeaveDirectory() override { Require(--depth_ >= 0, "a folder that is left was entered"); }
  void AddFile(const TreeEntry& entry, const TreeFile& file) override {
    Entry(entry);
    Content(file);
  }
  uint64_t StoreContent(const TreeFile& file) override {
    Require(depth_ == 0, "data comes before names");
    Content(file);
    return contents_++;
  }
  void AddStoredFile(const TreeEntry& entry, uint64_t content) override {
    Entry(entry);
    Require(content < contents_, "a file's data was stored");
  }
  void AddSpecial(const TreeEntry& entry) override { Entry(entry); }

 private:
  void Entry(const TreeEntry& entry) {
    CountOutput(entry.path.size());
    Require(entry.path.empty() == (depth_ == 0), "only the root has no name");
    if (entry.path.empty()) return;
    const std::string_view name = entry.name();
    Require(!name.empty() && name != "." && name != ".." && name.size() <= 255, "a name is a name");
    Require(entry.path.find('\0') == std::string_view::npos, "a name has no NUL");
    Require(std::count(entry.path.begin(), entry.path.end(), '/') == depth_ - 1, "a name is where its folder is");
  }
  static void Content(const TreeFile& file) {
    std::vector<uint8_t> piece(64 << 10);
    const uint64_t size = file.Size();
    for (uint64_t at = 0; at < size;) {
      const uint64_t next = file.NextData(at);
      Require(next >= at && next <= size, "data lies ahead");
      if (next == size) break;
      at = next;
      const size_t n = std::min<uint64_t>(piece.size(), size - at);
      file.ReadAt(at, piece.data(), n);
      Look(piece.data(), n);
      CountOutput(n);
      at += n;
    }
  }

  int depth_ = 0;
  uint64_t contents_ = 0;
};

/// Where the archives are in the input.
std::vector<std::shared_ptr<const Bytes>> Cut(const uint8_t* data, size_t size) {
  const auto is_zero = [&](size_t at) {
    return at + kBlock <= size && std::all_of(data + at, data + at + kBlock, [](uint8_t byte) { return byte == 0; });
  };
  std::vector<std::shared_ptr<const Bytes>> archives;
  size_t start = 0;
  for (size_t at = 0; at + kBlock <= size && archives.size() < kMostLayers - 1;) {
    if (!is_zero(at) || !is_zero(at + kBlock)) {
      at += kBlock;
      continue;
    }
    while (is_zero(at)) at += kBlock;
    archives.push_back(std::make_shared<Bytes>(data + start, at - start));
    start = at;
  }
  if (start < size || archives.empty()) archives.push_back(std::make_shared<Bytes>(data + start, size - start));
  return archives;
}

ExpectedDigest DigestOf(const ByteSource& archive) {
  LayerStream stream(archive, "layer");
  stream.Limit(kMostBytes);
  const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr);
  std::vector<uint8_t> piece(64 << 10);
  while (const size_t n = stream.Read(piece.data(), piece.size())) EVP_DigestUpdate(context.get(), piece.data(), n);
  ExpectedDigest digest(32);
  EVP_DigestFinal_ex(context.get(), digest.data(), nullptr);
  return digest;
}

}  // namespace
}  // namespace sifcrypt::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sifcrypt;
  using namespace sifcrypt::fuzz;
  if (size > kMostInput) return 0;
  const Work work(kBound);
  fuzz::Try([&] {
    std::vector<Layer> layers;
    for (const auto& archive : Cut(data, size)) layers.push_back({archive, "layer", {}, fuzz::DigestOf(*archive), {}});
    LayerTree tree(std::move(layers), kLimits, {});
    Visitor visitor;
    tree.Walk(visitor);
  });
  return 0;
}
