// The scratch of a build: a sequence of calls, as a payload can make the kernel ask for them, on the file system and on a model of it.
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/mman.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <array>
#include <map>
#include <memory>
#include <string>

#include "core/scratch_tree.h"
#include "target.h"

namespace sifcrypt::fuzz {
namespace {

using Id = ScratchTree::Id;
constexpr size_t kMostCalls = 4096;
constexpr uint64_t kBlock = BlockStore::kBlock;
constexpr uint64_t kMostSize = uint64_t{1} << 43;
/// Of the numbers that name an entry, those that name one that there is.
constexpr unsigned kLive = 224;
constexpr Amount kBound{.allocations = 1'000'000, .allocated = uint64_t{2} << 30, .output = 256 << 20};

/// A file's bytes; what is in no block is zero.
class Content {
 public:
  uint64_t size = 0;

  void Write(uint64_t offset, const uint8_t* data, size_t n) {
    for (size_t i = 0; i < n;) {
      const uint64_t at = offset + i;
      const size_t part = std::min<size_t>(n - i, kBlock - at % kBlock);
      memcpy(blocks_[at / kBlock].data() + at % kBlock, data + i, part);
      i += part;
    }
    if (n > 0) size = std::max(size, offset + n);
  }
  /// Up to the end of the block that `end` is in at most, as the rest of it is not there.
  void Clear(uint64_t offset, uint64_t end) {
    for (auto block = blocks_.lower_bound(offset / kBlock); block != blocks_.end() && block->first * kBlock < end;
         ++block) {
      const auto [from, to] = Within(block->first, offset, end);
      memset(block->second.data() + from, 0, to - from);
    }
  }
  void Resize(uint64_t to) {
    if (to < size) Clear(to, UINT64_MAX);
    size = to;
  }
  bool Matches(uint64_t offset, const uint8_t* data, size_t n) const {
    for (size_t i = 0; i < n;) {
      const uint64_t at = offset + i;
      const size_t part = std::min<size_t>(n - i, kBlock - at % kBlock);
      const auto block = blocks_.find(at / kBlock);
      const bool same = block == blocks_.end() ? AreZero(data + i, part)
                                               : memcmp(block->second.data() + at % kBlock, data + i, part) == 0;
      if (!same) return false;
      i += part;
    }
    return true;
  }
  bool IsZero(uint64_t offset, uint64_t end) const {
    for (auto block = blocks_.lower_bound(offset / kBlock); block != blocks_.end() && block->first * kBlock < end;
         ++block) {
      const auto [from, to] = Within(block->first, offset, end);
      if (!AreZero(block->second.data() + from, to - from)) return false;
    }
    return true;
  }

 private:
  /// Of a block, what is in this range.
  static std::pair<size_t, size_t> Within(uint64_t block, uint64_t offset, uint64_t end) {
    const uint64_t start = block * kBlock, from = offset > start ? offset - start : 0;
    return {from, std::max(from, std::min(end - start, kBlock))};
  }

  std::map<uint64_t, std::array<uint8_t, kBlock>> blocks_;
};

struct Node {
  mode_t type = 0;
  unsigned names = 0;
  uint64_t uses = 0;
  Id parent = 0;
  std::map<std::string, Id> entries;
  Content content;
  std::map<std::string, std::string> xattrs;
  bool is_directory() const { return type == S_IFDIR; }
};

class Calls {
 public:
  Calls(const uint8_t* data, size_t size) : input_(data, size) {
    const uint64_t memory = input_.Byte() % 2 != 0 ? 4 << 20 : 0;
    const uint64_t disk = (1 + input_.Byte()) * 4 * kBlock;
    most_nodes_ = 4 + input_.Byte() % 40;
    tree_ = std::make_unique<ScratchTree>(
        std::make_unique<BlockStore>(memory, UniqueFd(CheckErrno(memfd_create("spill", MFD_CLOEXEC), "memfd_create")),
                                     disk),
        most_nodes_);
    nodes_[ScratchTree::kRoot] = {.type = S_IFDIR, .names = 1, .parent = ScratchTree::kRoot};
  }

  void All() {
    for (size_t calls = 0; calls < kMostCalls && !input_.empty(); ++calls) One(input_.Byte() % 19);
    for (const auto& [id, node] : nodes_) CheckAttributes(tree_->Attributes(id), id);
    // When nobody knows anything any more and all names are gone, all blocks are free.
    while (nodes_.size() > 1) {
      for (auto node = nodes_.begin(); node != nodes_.end();) {
        const Id id = node->first;
        ++node;
        if (nodes_.contains(id)) Forget(id, UINT64_MAX);
      }
      for (const Id id : Directories())
        if (nodes_.contains(id))
          for (const auto& [name, child] : std::map(nodes_.at(id).entries)) Remove(id, name);
    }
    const struct statvfs statistics = tree_->Statistics();
    Require(statistics.f_bfree == statistics.f_blocks, "what nobody has takes no room");
  }

 private:
  void One(unsigned call) {
    switch (call) {
      case 0:
        return Make(S_IFREG | 0644);
      case 1:
        return Make(S_IFDIR | 02755);
      case 2:
        return Make(S_IFLNK | 0777);
      case 3:
        return Lookup();
      case 4: {
        const Id id = AnyId();
        return Forget(id, input_.Byte() % 4);
      }
      case 5:
        return Link();
      case 6:
      case 7: {
        const Id parent = AnyId();
        return Remove(parent, Name());
      }
      case 8:
        return Rename();
      case 9:
        return List();
      case 10:
      case 11:
        return Write();
      case 12:
        return Read();
      case 13:
        return Resize();
      case 14:
        return Allocate();
      case 15:
        return Seek();
      case 16:
        return SetXattr();
      case 17:
        return RemoveXattr();
      default:
        return Ask();
    }
  }

  /// One that there is, or was, or will be.
  Id AnyId() {
    const unsigned number = input_.Byte();
    if (number >= kLive) return number - kLive;
    return std::next(nodes_.begin(), static_cast<ptrdiff_t>(number % nodes_.size()))->first;
  }
  std::string Name() { return std::string(1, static_cast<char>('a' + input_.Byte() % 6)); }
  uint64_t Offset() {
    switch (input_.Byte() % 6) {
      case 0:
        return input_.Byte() * kBlock;
      case 1:
        return input_.Byte() * kBlock + kBlock - 1;
      case 2:
        return input_.Byte() * 300;
      case 3:
        return UINT64_MAX - input_.Byte();
      case 4:
        return kMostSize - input_.Byte();
      default:
        return input_.Byte() * (16 * kBlock) + input_.Byte();
    }
  }
  Node* Find(Id id) {
    const auto found = nodes_.find(id);
    return found == nodes_.end() ? nullptr : &found->second;
  }
  Node* FindDirectory(Id id) {
    Node* node = Find(id);
    return node != nullptr && node->is_directory() ? node : nullptr;
  }
  /// The kernel asks for data of regular files only.
  Node* FindFile(Id id) {
    Node* node = Find(id);
    return node != nullptr && node->type == S_IFREG ? node : nullptr;
  }
  std::vector<Id> Directories() {
    std::vector<Id> ids;
    for (const auto& [id, node] : nodes_)
      if (node.is_directory()) ids.push_back(id);
    return ids;
  }
  bool IsInside(Id id, Id folder) {
    for (; id != folder; id = nodes_.at(id).parent)
      if (id == ScratchTree::kRoot || nodes_.at(id).names == 0) return false;
    return true;
  }
  void DropIfUnused(Id id) {
    const Node& node = nodes_.at(id);
    if (node.names == 0 && node.uses == 0 && id != ScratchTree::kRoot) nodes_.erase(id);
  }
  void CheckAttributes(const struct stat& attributes, Id id) {
    const Node& node = nodes_.at(id);
    Require(attributes.st_ino == id && (attributes.st_mode & S_IFMT) == node.type, "an entry is what was made");
    if (!node.is_directory()) Require(attributes.st_nlink == node.names, "it has as many names as it was given");
    if (node.type == S_IFREG)
      Require(static_cast<uint64_t>(attributes.st_size) == node.content.size, "a file is as long as was written");
  }
  /// Whether it can be done, on which the model and the tree have to agree.
  template <typename Action>
  static bool Does(const char* call, bool possible, Action action) {
    const bool done = Try(action);
    Require(done == possible, call);
    return done;
  }

  void Make(mode_t mode) {
    const Id parent = AnyId();
    const std::string name = Name();
    Node* const directory = FindDirectory(parent);
    struct stat made {};
    if (!Does("an entry is made where it can be",
              directory != nullptr && directory->names > 0 && !directory->entries.contains(name) &&
                  nodes_.size() < most_nodes_,
              [&] {
                made = tree_->Make(parent, name, {mode, 0, 0, 0, S_ISLNK(mode) ? "target" : ""});
              }))
      return;
    Require(!nodes_.contains(made.st_ino), "a new entry has a new number");
    directory->entries[name] = made.st_ino;
    nodes_[made.st_ino] = {.type = mode & S_IFMT, .names = 1, .uses = 1, .parent = parent};
    CheckAttributes(made, made.st_ino);
  }

  void Lookup() {
    const Id parent = AnyId();
    const std::string name = Name();
    Node* const directory = FindDirectory(parent);
    std::optional<struct stat> found;
    if (!Does("a name is looked up in folders", directory != nullptr, [&] { found = tree_->Lookup(parent, name); }))
      return;
    Require(found.has_value() == directory->entries.contains(name), "a name that is there is found, and no other");
    if (!found) return;
    Require(directory->entries.at(name) == found->st_ino, "a name is that of what was made");
    ++nodes_.at(found->st_ino).uses;
    CheckAttributes(*found, found->st_ino);
  }

  void Forget(Id id, uint64_t uses) {
    tree_->Forget(id, uses);
    Node* const node = Find(id);
    if (node == nullptr) return;
    node->uses -= std::min(uses, node->uses);
    DropIfUnused(id);
  }

  void Link() {
    const Id id = AnyId(), parent = AnyId();
    const std::string name = Name();
    Node *const node = Find(id), *const directory = FindDirectory(parent);
    struct stat linked {};
    if (!Does("a file gets another name where it can",
              node != nullptr && !node->is_directory() && node->names > 0 && directory != nullptr &&
                  directory->names > 0 && !directory->entries.contains(name),
              [&] { linked = tree_->Link(id, parent, name); }))
      return;
    directory->entries[name] = id;
    ++node->names;
    ++node->uses;
    CheckAttributes(linked, id);
  }

  void Remove(Id parent, const std::string& name) {
    Node* const directory = FindDirectory(parent);
    const bool exists = directory != nullptr && directory->entries.contains(name);
    const Id id = exists ? directory->entries.at(name) : 0;
    const bool is_directory = exists && nodes_.at(id).is_directory();
    const bool unlinked =
        Does("a file is unlinked where it is one", exists && !is_directory, [&] { tree_->Unlink(parent, name); });
    const bool removed = !unlinked && Does("an empty folder is removed", is_directory && nodes_.at(id).entries.empty(),
                                           [&] { tree_->RemoveDirectory(parent, name); });
    if (!unlinked && !removed) return;
    directory->entries.erase(name);
    --nodes_.at(id).names;
    DropIfUnused(id);
  }

  void Rename() {
    const Id parent = AnyId();
    const std::string name = Name();
    const Id new_parent = AnyId();
    const std::string new_name = Name();
    const unsigned flags = input_.Byte() % 4;
    Node *const from = FindDirectory(parent), *const to = FindDirectory(new_parent);
    const bool exists = from != nullptr && from->entries.contains(name);
    const bool covers = to != nullptr && to->entries.contains(new_name);
    const Id id = exists ? from->entries.at(name) : 0, other = covers ? to->entries.at(new_name) : 0;
    // That a folder does not get into itself is the kernel's to see to.
    if (exists && to != nullptr && nodes_.at(id).is_directory() && IsInside(new_parent, id)) return;
    if (covers && exists && nodes_.at(other).is_directory() && IsInside(parent, other)) return;
    const bool exchange = (flags & RENAME_EXCHANGE) != 0;
    bool possible = exists && to != nullptr && to->names > 0;
    if (exchange)
      possible = possible && covers;
    else if (covers && (flags & RENAME_NOREPLACE) != 0)
      possible = false;
    else if (possible && covers && id != other)
      possible = nodes_.at(id).is_directory() == nodes_.at(other).is_directory() && nodes_.at(other).entries.empty();
    if (!Does("an entry is renamed where it can be", possible,
              [&] { tree_->Rename(parent, name, new_parent, new_name, flags); }) ||
        id == other)
      return;
    if (exchange) {
      from->entries[name] = other;
      to->entries[new_name] = id;
      nodes_.at(other).parent = parent;
    } else {
      from->entries.erase(name);
      to->entries[new_name] = id;
      if (covers) {
        --nodes_.at(other).names;
        DropIfUnused(other);
      }
    }
    nodes_.at(id).parent = new_parent;
  }

  void List() {
    const Id id = AnyId();
    const uint64_t place = input_.Byte() % 8;
    const bool counted = input_.Byte() % 2 != 0;
    Node* const directory = FindDirectory(id);
    std::map<std::string, Id> listed;
    uint64_t last = place;
    Does("folders are listed", directory != nullptr, [&] {
      tree_->List(id, place, counted, [&](const std::string& name, const struct stat& attributes, uint64_t at) {
        Require(at > last, "places ascend");
        last = at;
        Require(listed.emplace(name, attributes.st_ino).second, "a name is listed once");
        return true;
      });
    });
    for (const auto& [name, child] : listed) {
      Require(directory->entries.contains(name) && directory->entries.at(name) == child, "what is listed is there");
      if (counted) ++nodes_.at(child).uses;
    }
    if (directory != nullptr && place < ScratchTree::kFirstPlace)
      Require(listed.size() == directory->entries.size(), "what is there is listed");
  }

  void Write() {
    const Id id = AnyId();
    const uint64_t offset = Offset();
    const std::vector<uint8_t> data(input_.Byte() * 270, static_cast<uint8_t>(++written_));
    Node* const file = FindFile(id);
    if (file == nullptr) return;
    size_t done = 0;
    const bool written = Try([&] { done = tree_->Write(id, offset, data.data(), data.size()); });
    CountOutput(data.size());
    Require(!written || RangeFits(offset, data.size(), kMostSize), "nothing is longer than a file can be");
    Require(done <= data.size(), "no more is written than was given");
    file->content.Write(offset, data.data(), done);
  }

  void Read() {
    const Id id = AnyId();
    const uint64_t offset = Offset();
    std::vector<uint8_t> data(input_.Byte() * 270);
    Node* const file = FindFile(id);
    if (file == nullptr) return;
    const size_t n = tree_->Read(id, offset, data.data(), data.size());
    const uint64_t left = offset < file->content.size ? file->content.size - offset : 0;
    Require(n == std::min<uint64_t>(data.size(), left), "all that is there is read");
    Require(file->content.Matches(offset, data.data(), n), "what is read is what was written");
    CountOutput(n);
  }

  void Resize() {
    const Id id = AnyId();
    const uint64_t size = Offset();
    Node* const file = FindFile(id);
    if (file == nullptr) return;
    if (Does("a file is as long as a file can be", size <= kMostSize,
             [&] { tree_->SetAttributes(id, {.size = size}); }))
      file->content.Resize(size);
  }

  void Allocate() {
    constexpr std::array kModes = {0,
                                   FALLOC_FL_KEEP_SIZE,
                                   FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                   FALLOC_FL_ZERO_RANGE,
                                   FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                                   FALLOC_FL_PUNCH_HOLE,
                                   FALLOC_FL_COLLAPSE_RANGE,
                                   FALLOC_FL_INSERT_RANGE};
    const Id id = AnyId();
    const int mode = kModes[input_.Byte() % kModes.size()];
    const uint64_t offset = Offset(), size = 1 + Offset() % (1 << 20);
    Node* const file = FindFile(id);
    if (file == nullptr) return;
    if (!Try([&] { tree_->Allocate(id, mode, offset, size); })) return;
    Require(RangeFits(offset, size, kMostSize), "nothing is longer than a file can be");
    CountOutput(size);
    const uint64_t end = offset + size;
    if (mode != 0 && mode != FALLOC_FL_KEEP_SIZE) file->content.Clear(offset, end);
    if ((mode & FALLOC_FL_KEEP_SIZE) == 0) file->content.size = std::max(file->content.size, end);
  }

  void Seek() {
    const Id id = AnyId();
    const uint64_t offset = Offset();
    const bool data = input_.Byte() % 2 != 0;
    Node* const file = FindFile(id);
    if (file == nullptr) return;
    uint64_t at = 0;
    const bool found = Try([&] { at = tree_->Seek(id, offset, data ? SEEK_DATA : SEEK_HOLE); });
    Require(!found || (offset < file->content.size && at >= offset && at <= file->content.size),
            "a place in a file is found");
    // What is passed by as a hole is zero.
    if (data) Require(file->content.IsZero(offset, found ? at : UINT64_MAX), "no data is passed by");
  }

  void SetXattr() {
    const Id id = AnyId();
    const std::string name = Name(), value(input_.Byte() * 100, 'x');
    const int flags = static_cast<int>(input_.Byte() % 3);
    Node* const node = Find(id);
    bool possible = node != nullptr;
    if (possible) {
      const bool exists = node->xattrs.contains(name);
      size_t total = name.size() + value.size();
      for (const auto& [other, content] : node->xattrs)
        if (other != name) total += other.size() + content.size();
      possible = total <= 64 << 10 && !(exists && flags == XATTR_CREATE) && !(!exists && flags == XATTR_REPLACE);
    }
    if (Does("an attribute is set where it can be", possible, [&] { tree_->SetXattr(id, name, value, flags); }))
      node->xattrs[name] = value;
  }

  void RemoveXattr() {
    const Id id = AnyId();
    const std::string name = Name();
    Node* const node = Find(id);
    if (Does("an attribute that is there is removed", node != nullptr && node->xattrs.contains(name),
             [&] { tree_->RemoveXattr(id, name); }))
      node->xattrs.erase(name);
  }

  void Ask() {
    const Id id = AnyId();
    Node* const node = Find(id);
    Does("links have targets", node != nullptr && node->type == S_IFLNK,
         [&] { Require(tree_->Target(id) == "target", "a target stays"); });
    Does("folders have parents", node != nullptr && node->is_directory(), [&] {
      const Id parent = tree_->ParentOf(id);
      Require(node->names == 0 || parent == node->parent, "a folder is in its parent");
    });
    Does("what there is can be asked for", node != nullptr, [&] {
      CheckAttributes(tree_->Attributes(id), id);
      std::string names;
      for (const auto& [name, value] : node->xattrs) {
        names.append(name).push_back('\0');
        Require(tree_->Xattr(id, name) == value, "an attribute keeps its value");
      }
      Require(tree_->XattrNames(id) == names, "attributes are those that were set");
    });
    Require(tree_->Statistics().f_ffree == most_nodes_ - nodes_.size(), "what is forgotten and has no name is gone");
  }

  Input input_;
  uint64_t most_nodes_ = 0;
  unsigned written_ = 0;
  std::unique_ptr<ScratchTree> tree_;
  std::map<Id, Node> nodes_;
};

}  // namespace
}  // namespace sifcrypt::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sifcrypt::fuzz;
  if (size > kMostInput) return 0;
  const Work work(kBound);
  Calls(data, size).All();
  return 0;
}
