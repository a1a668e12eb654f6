// The squashfs reader: every call, also with what only a hostile caller would ask for, and the walk of a whole tree.
#include <set>
#include <string>

#include "core/squashfs_file_source.h"
#include "core/squashfs_reader.h"
#include "core/unfolding.h"
#include "target.h"

namespace sifcrypt::fuzz {
namespace {

/// What is asked for below is bounded by these, so the rest is what one call can make of an input.
constexpr int kMostInodes = 200;
constexpr size_t kMostNames = 200;
constexpr size_t kMostIo = 2 << 20;
constexpr size_t kPiece = 70'000;
constexpr size_t kMostText = 1 << 20;
constexpr Amount kBound{
    .allocations = 400'000, .allocated = 1 << 30, .reads = 50'000, .read = 512 << 20, .output = 64 << 20};

class Reading {
 public:
  Reading(const uint8_t* data, size_t size, uint64_t seed)
      : size_(size),
        chance_(seed),
        source_(std::make_shared<Bytes>(data, size)),
        reader_(std::make_shared<SquashfsReader>(
            source_,
            SquashfsReader::Limits{.block_cache = 4 << 20, .metadata_cache = 256 << 10, .inode_cache = 64 << 10})) {}

  void All() {
    todo_.push_back(reader_->Root());
    for (int left = kMostInodes; left > 0 && !todo_.empty(); --left) {
      const InodeRef ref = todo_.back();
      todo_.pop_back();
      if (!seen_.insert(ref).second) continue;
      Try([&] { One(*reader_->GetInode(ref)); });
    }
    // References that nobody gave.
    for (int i = 0; i < 4; ++i) Try([&] { One(*reader_->GetInode(chance_.Below(size_ << 16))); });
    Try([&] { Walk(); });
    Try([&] {
      const auto file = OpenSquashfsFile(source_, "content");
      std::vector<uint8_t> bytes(std::min<uint64_t>(file->Size(), kPiece));
      file->ReadAt(file->Size() - bytes.size(), bytes.data(), bytes.size());
      Look(bytes.data(), bytes.size());
    });
  }

 private:
  void One(const Inode& inode) {
    Try([&] {
      for (const Xattr& xattr : reader_->Xattrs(inode)) {
        Look(xattr.value.data(), xattr.value.size());
        CountOutput(xattr.name.size() + xattr.value.size());
      }
    });
    if (inode.type == InodeType::kDirectory) return Directory(inode);
    if (inode.type == InodeType::kFile) return File(inode);
    Look(inode.target.data(), inode.target.size());
    Require(inode.target.find('\0') == std::string::npos, "a target has no NUL");
    Try([&] { reader_->ReadDir(inode, 0, [](const DirectoryEntry&) { return true; }); });
  }

  void Directory(const Inode& inode) {
    std::vector<uint64_t> cookies;
    std::vector<std::string> names;
    Try([&] {
      reader_->ReadDir(inode, 0, [&](const DirectoryEntry& entry) {
        const std::string_view name = entry.name;
        Require(!name.empty() && name.size() <= SquashfsReader::kMaxNameLength, "a name has 1 to 256 bytes");
        Require(name.find('/') == std::string_view::npos && name != "." && name != "..", "a name is a name");
        Require(entry.next_cookie < uint64_t{1} << 63, "a cookie is below 2^63");
        todo_.push_back(entry.ref);
        cookies.push_back(entry.next_cookie);
        names.emplace_back(name);
        CountOutput(name.size());
        return names.size() < kMostNames;
      });
    });
    const auto few = [](const DirectoryEntry& entry) {
      Look(entry.name.data(), entry.name.size());
      return false;
    };
    for (int i = 0; i < 3; ++i) {
      if (!names.empty()) {
        const std::string& name = names[chance_.Below(names.size())];
        Try([&] {
          if (const auto found = reader_->Lookup(inode, name)) reader_->GetInode(*found);
        });
        Try([&] { reader_->Resolve("x/../" + name + "/./y/../..", i == 0); });
        Try([&] { reader_->Resolve(name, true); });
      }
      if (!cookies.empty()) Try([&] { reader_->ReadDir(inode, cookies[chance_.Below(cookies.size())], few); });
      Try([&] { reader_->ReadDir(inode, chance_.Below(1 << 20), few); });
      Try([&] {
        reader_->Lookup(inode, std::string(1 + chance_.Below(300), static_cast<char>('a' + chance_.Below(26))));
      });
    }
    std::vector<uint8_t> buffer(1);
    Try([&] { reader_->Read(inode, 0, buffer.data(), buffer.size()); });
  }

  void File(const Inode& inode) {
    std::vector<uint8_t> once(kPiece), again(kPiece);
    for (int i = 0; i < 5 && io_ > 0; ++i) {
      const uint64_t at = i == 0   ? 0
                          : i == 1 ? inode.size - std::min<uint64_t>(inode.size, 5000)
                                   : chance_.Below(inode.size) + chance_.Below(3);
      const size_t size = 1 + chance_.Below(kPiece);
      io_ -= std::min(io_, size);
      size_t got = 0, pinned = 0;
      const bool read = Try([&] { got = reader_->Read(inode, at, once.data(), size); });
      Require(got <= size, "no more is read than there is room for");
      CountOutput(got);
      const bool pins = Try([&] {
        for (const PinnedBytes& part : reader_->ReadPinned(inode, at, size)) {
          Require(part.size > 0 && part.size <= size - pinned, "pinned pieces are what was asked for");
          Look(part.data, part.size);
          if (read)
            Require(memcmp(part.data, once.data() + pinned, part.size) == 0, "pinned bytes are those that are read");
          pinned += part.size;
        }
      });
      if (read && pins) Require(pinned == got, "as many bytes are pinned as are read");
      const bool through = Try([&] { reader_->ReadThrough(inode, at, again.data(), got); });
      if (read && through)
        Require(memcmp(once.data(), again.data(), got) == 0, "bytes that are not cached are the same");
      if (at < inode.size) {
        bool hole = false;
        Try([&] {
          Require(reader_->ExtentEnd(inode, at, 1 + chance_.Below(64 << 20), &hole) > at, "an extent has bytes");
        });
      }
      Try([&] { reader_->Prefetch(inode, at); });
    }
    Try([&] {
      if (const auto at = reader_->StoredAt(inode))
        Require(RangeFits(*at, inode.size, size_), "what is stored is there");
    });
  }

  void Walk() {
    TreeWalk walk(*reader_, "/");
    int left = kMostInodes;
    while (const auto folder = walk.Next(*reader_, kMostNames, kMostText)) {
      Look(folder->path.data(), folder->path.size());
      if (--left == 0) return;
    }
  }

  const size_t size_;
  Chance chance_;
  std::shared_ptr<const ByteSource> source_;
  std::shared_ptr<const SquashfsReader> reader_;
  std::vector<InodeRef> todo_;
  std::set<InodeRef> seen_;
  size_t io_ = kMostIo;
};

}  // namespace
}  // namespace sifcrypt::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sifcrypt::fuzz;
  if (size > kMostInput) return 0;
  const Work work(kBound);
  const uint64_t seed = size < 8 ? 0 : data[size - 1] | data[size - 2] << 8;
  sifcrypt::fuzz::Try([&] { Reading(data, size, seed).All(); });
  return 0;
}
