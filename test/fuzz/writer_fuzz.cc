// The squashfs writer: a tree that the input describes is written, and what our reader finds in it is that tree.
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <array>
#include <map>
#include <memory>
#include <string>

#include "core/squashfs_reader.h"
#include "core/squashfs_writer.h"
#include "target.h"

namespace sifcrypt::fuzz {
namespace {

/// More than one block, of whatever size.
constexpr uint64_t kMostContent = 160 << 10;
constexpr unsigned kMostEntries = 600;
constexpr Amount kBound{
    .allocations = 400'000, .allocated = 1 << 30, .reads = 20'000, .read = 64 << 20, .output = 16 << 20};

using Content = std::vector<uint8_t>;

struct Entry {
  mode_t mode = 0;
  uint32_t uid = 0;
  uint32_t gid = 0;
  int64_t mtime = 0;
  dev_t rdev = 0;
  std::string target;
  std::map<std::string, std::string> xattrs;
  std::shared_ptr<const Content> content;
  /// Of what is there under more than one name.
  uint64_t link_id = 0;
  std::map<std::string, std::shared_ptr<Entry>> children;
};
using EntryPtr = std::shared_ptr<Entry>;

class File final : public TreeFile {
 public:
  explicit File(const Content& content) : content_(content) {}
  uint64_t Size() const override { return content_.size(); }
  void ReadAt(uint64_t offset, void* out, size_t size) const override {
    Require(RangeFits(offset, size, content_.size()), "only what is there is asked for");
    if (size > 0) memcpy(out, content_.data() + offset, size);
  }
  uint64_t NextData(uint64_t offset) const override {
    while (offset < content_.size() && content_[offset] == 0) ++offset;
    return offset;
  }

 private:
  const Content& content_;
};

class Tree final : public TreeSource {
 public:
  Tree(const uint8_t* data, size_t size) : input_(data, size) {
    stored_first_ = input_.Byte() % 2 != 0;
    root_ = Make(S_IFDIR);
    std::vector<EntryPtr> way{root_};
    while (!input_.empty() && entries_ < kMostEntries) {
      const unsigned what = input_.Byte() % 9;
      Entry& folder = *way.back();
      if (what == 0) {
        if (way.size() > 1) way.pop_back();
        continue;
      }
      const std::string name = Name();
      if (folder.children.contains(name)) continue;
      ++entries_;
      if (what == 1 && !files_.empty()) {
        const EntryPtr& file = files_[input_.Byte() % files_.size()];
        if (file->link_id == 0) file->link_id = ++links_;
        ++counts_[file->link_id];
        folder.children[name] = file;
        continue;
      }
      constexpr std::array kTypes = {S_IFDIR, S_IFDIR, S_IFREG, S_IFREG, S_IFREG, S_IFLNK, S_IFCHR, S_IFIFO, S_IFBLK};
      const EntryPtr entry = Make(kTypes[what]);
      folder.children[name] = entry;
      if (S_ISDIR(entry->mode)) way.push_back(entry);
    }
  }

  void Walk(TreeVisitor& visitor) override {
    if (stored_first_)
      for (const EntryPtr& file : files_)
        if (file->content) numbers_[file.get()] = visitor.StoreContent(File(*file->content));
    Show(*root_, "", visitor);
  }
  const Entry& root() const { return *root_; }
  uint32_t Names(const Entry& entry) const { return entry.link_id == 0 ? 1 : 1 + counts_.at(entry.link_id); }

 private:
  std::string Name() {
    const unsigned kind = input_.Byte();
    // As long as a name can be in Linux, or short; any bytes but those of paths.
    std::string name(kind == 255 ? 255 : 1 + kind % 4, static_cast<char>('a' + kind % 16));
    if (kind % 7 == 0) name[0] = static_cast<char>(0x80 + kind % 100);
    if (kind % 3 == 0) name.back() = static_cast<char>('a' + input_.Byte() % 26);
    return name;
  }

  EntryPtr Make(mode_t type) {
    auto entry = std::make_shared<Entry>();
    const unsigned bits = input_.Pair();
    entry->mode = type | (bits & 07777);
    entry->uid = bits % 5 == 0 ? UINT32_MAX - input_.Byte() : input_.Byte();
    entry->gid = input_.Byte();
    entry->mtime = bits % 11 == 0 ? -1 : int64_t{input_.Pair()} << (bits % 40);
    for (unsigned count = bits % 13 == 0 ? input_.Byte() % 6 : 0; count > 0; --count) {
      constexpr std::array kPrefixes = {"user.", "trusted.", "security."};
      std::string name = kPrefixes[input_.Byte() % kPrefixes.size()];
      name += static_cast<char>('a' + input_.Byte() % 8);
      entry->xattrs[name] = std::string(input_.Pair() % 9000, static_cast<char>(count));
    }
    if (S_ISLNK(type)) entry->target = std::string(1 + input_.Pair() % 4095, 't');
    if (S_ISCHR(type) || S_ISBLK(type)) entry->rdev = makedev(input_.Byte() * 16 % 4096, input_.Pair());
    if (S_ISREG(type)) {
      entry->content = Fill();
      files_.push_back(entry);
    }
    return entry;
  }

  /// Runs of bytes: zeros, one letter, or such as do not get shorter.
  std::shared_ptr<const Content> Fill() {
    auto content = std::make_shared<Content>();
    for (unsigned runs = input_.Byte() % 4; runs > 0; --runs) {
      const unsigned kind = input_.Byte(), letter = input_.Byte();
      const uint64_t wanted = kind % 5 == 0   ? 4096 * (input_.Byte() % 70)
                              : kind % 5 == 1 ? input_.Pair()
                                              : input_.Byte();
      const uint64_t size = std::min(wanted, kMostContent - made_);
      made_ += size;
      content->insert(content->end(), size, static_cast<uint8_t>(kind % 3 == 0 ? 0 : letter));
      Chance chance(letter);
      if (kind % 3 == 2)
        std::generate(content->end() - static_cast<ptrdiff_t>(size), content->end(),
                      [&] { return static_cast<uint8_t>(chance.Below(256)); });
    }
    return content;
  }

  TreeEntry Describe(const Entry& entry, const std::string& path) const {
    TreeEntry shown;
    shown.path = path;
    shown.mode = entry.mode;
    shown.uid = entry.uid;
    shown.gid = entry.gid;
    shown.mtime = entry.mtime;
    shown.rdev = entry.rdev;
    shown.target = entry.target;
    for (const auto& [name, value] : entry.xattrs) shown.xattrs.push_back({name, value});
    shown.links = Names(entry);
    shown.link_id = shown.links > 1 ? entry.link_id : 0;
    return shown;
  }

  void Show(const Entry& entry, const std::string& path, TreeVisitor& visitor) {
    const TreeEntry shown = Describe(entry, path);
    if (S_ISDIR(entry.mode)) {
      visitor.EnterDirectory(shown);
      for (const auto& [name, child] : entry.children) Show(*child, path.empty() ? name : path + "/" + name, visitor);
      visitor.LeaveDirectory();
    } else if (!entry.content) {
      visitor.AddSpecial(shown);
    } else if (stored_first_) {
      visitor.AddStoredFile(shown, numbers_.at(&entry));
    } else {
      visitor.AddFile(shown, File(*entry.content));
    }
  }

  Input input_;
  bool stored_first_ = false;
  unsigned entries_ = 0;
  uint64_t made_ = 0;
  uint64_t links_ = 0;
  EntryPtr root_;
  std::vector<EntryPtr> files_;
  /// Names that each has besides its first.
  std::map<uint64_t, uint32_t> counts_;
  std::map<const Entry*, uint64_t> numbers_;
};

class Sink final : public ByteSink {
 public:
  uint64_t Size() const override { return bytes.size(); }
  void WriteAt(uint64_t offset, const void* data, size_t size) override {
    Require(offset <= bytes.size(), "nothing is left out");
    bytes.resize(std::max<size_t>(bytes.size(), offset + size));
    if (size > 0) memcpy(bytes.data() + offset, data, size);
  }
  void ReadAt(uint64_t offset, void* out, size_t size) override {
    Require(RangeFits(offset, size, bytes.size()), "only what was written is read");
    if (size > 0) memcpy(out, bytes.data() + offset, size);
  }
  void Truncate(uint64_t size) override { bytes.resize(size); }
  void Finish() override {}

  std::vector<uint8_t> bytes;
};

class Comparison {
 public:
  Comparison(const Tree& tree, const SquashfsReader& reader) : tree_(tree), reader_(reader) {}

  void Compare(const Entry& wanted, InodeRef ref) {
    const InodePtr inode = reader_.GetInode(ref);
    Require((FileTypeBits(inode->type) | inode->mode) == wanted.mode, "type and permissions are kept");
    Require(inode->uid == wanted.uid && inode->gid == wanted.gid, "owners are kept");
    Require(inode->mtime == std::clamp<int64_t>(wanted.mtime, 0, UINT32_MAX), "times are kept");
    std::map<std::string, std::string> xattrs;
    for (const Xattr& xattr : reader_.Xattrs(*inode)) xattrs[xattr.name] = xattr.value;
    Require(xattrs == wanted.xattrs, "attributes are kept");
    if (S_ISDIR(wanted.mode)) return Folder(wanted, *inode);
    Require(inode->nlink == tree_.Names(wanted), "it has as many names as before");
    const auto [place, is_new] = places_.try_emplace(&wanted, ref);
    Require(place->second == ref, "names of one thing are names of one");
    if (!is_new) return;
    Require(inode->target == wanted.target, "targets are kept");
    if (S_ISCHR(wanted.mode) || S_ISBLK(wanted.mode)) Require(inode->rdev == wanted.rdev, "devices are kept");
    if (!wanted.content) return;
    Require(inode->size == wanted.content->size(), "sizes are kept");
    Content content(inode->size);
    Require(reader_.Read(*inode, 0, content.data(), content.size()) == content.size(), "all of it is read");
    Require(content == *wanted.content, "contents are kept");
    CountOutput(content.size());
  }

 private:
  void Folder(const Entry& wanted, const Inode& inode) {
    auto next = wanted.children.begin();
    reader_.ReadDir(inode, 0, [&](const DirectoryEntry& entry) {
      Require(next != wanted.children.end() && next->first == entry.name, "names are kept");
      Require(reader_.Lookup(inode, entry.name) == entry.ref, "a name that is listed is found");
      Compare(*next->second, entry.ref);
      ++next;
      return true;
    });
    Require(next == wanted.children.end(), "no name is lost");
  }

  const Tree& tree_;
  const SquashfsReader& reader_;
  std::map<const Entry*, InodeRef> places_;
};

}  // namespace
}  // namespace sifcrypt::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sifcrypt;
  using namespace sifcrypt::fuzz;
  if (size < 2 || size > kMostInput) return 0;
  const Work work(kBound);
  constexpr std::array kCodecs = {SquashfsCompression::kGzip, SquashfsCompression::kZstd, SquashfsCompression::kLz4};
  // Few, as it takes ten times as long as the others.
  const bool xz = data[0] % 32 == 3;
  SquashfsWriteOptions options;
  options.codec = {xz ? SquashfsCompression::kXz : kCodecs[data[0] % kCodecs.size()], xz ? 0 : 1,
                   uint32_t{4096} << (data[1] % 6)};
  options.threads = 1;
  Tree tree(data + 2, size - 2);
  Sink sink;
  WriteSquashfs(tree, sink, options, {});
  const SquashfsReader reader(std::make_shared<Bytes>(sink.bytes));
  Comparison(tree, reader).Compare(tree.root(), reader.Root());
  return 0;
}
