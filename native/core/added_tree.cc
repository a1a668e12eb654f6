#include "core/added_tree.h"

#include <string.h>
#include <sys/stat.h>

#include <string_view>

#include "core/system_error.h"

namespace sifcrypt {
namespace {

using Node = AddedTree::Node;

class BytesFile final : public TreeFile {
 public:
  explicit BytesFile(const std::vector<uint8_t>& bytes) : bytes_(bytes) {}
  uint64_t Size() const override { return bytes_.size(); }
  void ReadAt(uint64_t offset, void* out, size_t size) const override {
    if (!RangeFits(offset, size, bytes_.size())) throw SystemError(EOVERFLOW, "read_added");
    memcpy(out, bytes_.data() + offset, size);
  }

 private:
  const std::vector<uint8_t>& bytes_;
};

/// Passes a walk on, with the added entries where the order of names wants them.
class Merger final : public TreeVisitor {
 public:
  Merger(const Node& root, TreeVisitor& out) : root_(root), out_(out) {}

  uint64_t StoreContent(const TreeFile& file) override { return out_.StoreContent(file); }
  void EnterDirectory(const TreeEntry& entry) override {
    if (skipped_ > 0) {
      ++skipped_;
      return;
    }
    if (levels_.empty()) {
      out_.EnterDirectory(entry);
      Push(&root_);
      return;
    }
    const Node* added = Reach(entry);
    if (added != nullptr && !S_ISDIR(added->entry->mode) && !added->entry->keep) {
      Emit(*added);
      skipped_ = 1;
      return;
    }
    out_.EnterDirectory(entry);
    Push(added != nullptr && S_ISDIR(added->entry->mode) ? added : nullptr);
  }
  void LeaveDirectory() override {
    if (skipped_ > 0) {
      --skipped_;
      return;
    }
    EmitBefore({});
    levels_.pop_back();
    out_.LeaveDirectory();
  }
  void AddFile(const TreeEntry& entry, const TreeFile& file) override {
    if (Stays(entry)) out_.AddFile(entry, file);
  }
  void AddStoredFile(const TreeEntry& entry, uint64_t content) override {
    if (Stays(entry)) out_.AddStoredFile(entry, content);
  }
  void AddSpecial(const TreeEntry& entry) override {
    if (Stays(entry)) out_.AddSpecial(entry);
  }

 private:
  struct Level {
    /// nullptr: nothing is added here.
    const Node* folder;
    std::map<std::string, Node, std::less<>>::const_iterator next;
  };

  void Push(const Node* folder) {
    levels_.push_back({folder, folder == nullptr ? root_.children.end() : folder->children.begin()});
  }

  /// Emits what comes before an entry of the tree, and returns what is added under its name.
  const Node* Reach(const TreeEntry& entry) {
    EmitBefore(entry.name());
    Level& level = levels_.back();
    if (level.folder == nullptr || level.next == level.folder->children.end() || level.next->first != entry.name())
      return nullptr;
    return &(level.next++)->second;
  }

  bool Stays(const TreeEntry& entry) {
    if (skipped_ > 0) return false;
    const Node* added = Reach(entry);
    if (added == nullptr || added->entry->keep) return true;
    Emit(*added);
    return false;
  }

  /// No name: all that is left.
  void EmitBefore(std::string_view name) {
    Level& level = levels_.back();
    if (level.folder == nullptr) return;
    for (; level.next != level.folder->children.end() && (name.empty() || level.next->first < name); ++level.next)
      Emit(level.next->second);
  }

  void Emit(const Node& node) {
    const AddedEntry& added = *node.entry;
    TreeEntry entry;
    entry.path = added.path;
    entry.mode = added.mode;
    entry.mtime = added.mtime;
    entry.target = added.target;
    if (S_ISREG(added.mode)) return out_.AddFile(entry, BytesFile(added.content));
    if (!S_ISDIR(added.mode)) return out_.AddSpecial(entry);
    out_.EnterDirectory(entry);
    for (const auto& [name, child] : node.children) Emit(child);
    out_.LeaveDirectory();
  }

  const Node& root_;
  TreeVisitor& out_;
  std::vector<Level> levels_;
  /// Folders entered below one that was replaced, itself included.
  size_t skipped_ = 0;
};

}  // namespace

AddedTree::AddedTree(TreeSource& base, const std::vector<AddedEntry>& added) : base_(base) {
  for (const AddedEntry& entry : added) {
    Node* node = &root_;
    std::string_view rest = entry.path;
    for (size_t slash; (slash = rest.find('/')) != std::string_view::npos; rest.remove_prefix(slash + 1)) {
      const auto child = node->children.find(rest.substr(0, slash));
      if (child == node->children.end() || !S_ISDIR(child->second.entry->mode))
        throw SystemError(EINVAL, "added_tree", entry.path + ": its folder is not named before it");
      node = &child->second;
    }
    const auto [place, isNew] = node->children.try_emplace(std::string(rest));
    if (!isNew) throw SystemError(EEXIST, "added_tree", entry.path + ": named twice");
    place->second.entry = &entry;
  }
}

void AddedTree::Walk(TreeVisitor& visitor) {
  Merger merger(root_, visitor);
  base_.Walk(merger);
}

}  // namespace sifcrypt
