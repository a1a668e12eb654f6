#include "core/unfolding.h"

#include <utility>

namespace sifcrypt {
namespace {

// No path of Linux is deeper: PATH_MAX holds this many one-letter names.
constexpr unsigned kMaxDepth = 2048;

std::string PathOf(const WalkedFolder& folder) {
  std::vector<const WalkedFolder*> way;
  for (const WalkedFolder* at = &folder; at->parent; at = at->parent.get()) way.push_back(at);
  std::string path;
  for (auto step = way.rbegin(); step != way.rend(); ++step) {
    if (!path.empty()) path += '/';
    path += (*step)->name;
  }
  return path;
}

}  // namespace

void Unfolding::Enter(const Inode& directory, unsigned depth) {
  if (depth > kMaxDepth) throw FormatError("squashfs_walk", "directories nest too deep");
  // What was not entered as an entry of another is where the walk starts.
  visited_.try_emplace(directory.ref, 1);
  // Many directories with one listing would let a small image unfold without end, too.
  listed_ += directory.size;
  if (listed_ > directory_bytes_) throw FormatError("squashfs_walk", "directories share their listings");
  names_.clear();
}

void Unfolding::Visit(std::string_view name, const Inode& inode) {
  if (!names_.emplace(name).second) throw FormatError("squashfs_walk", "a directory has a name twice");
  const uint32_t names = ++visited_[inode.ref];
  if (visited_.size() > inode_count_) throw FormatError("squashfs_walk", "there are more inodes than it says");
  if (names == 1) return;
  // What has one name and comes twice is a loop, or a small image that unfolds without end.
  if (inode.type == InodeType::kDirectory || inode.nlink <= 1)
    throw FormatError("squashfs_walk", "an inode is in the image twice");
  if (names > inode.nlink) throw FormatError("squashfs_walk", "an inode has more names than it says");
}

TreeWalk::TreeWalk(const SquashfsReader& reader, std::string_view path) : unfolding_(reader) {
  const InodeRef ref = reader.Resolve(path, true);
  if (reader.GetInode(ref)->type != InodeType::kDirectory) throw SystemError(ENOTDIR, "squashfs_walk");
  pending_.push_back({std::make_shared<const WalkedFolder>(), ref});
}

std::optional<TreeWalk::Folder> TreeWalk::Next(const SquashfsReader& reader, size_t max_entries, size_t max_text) {
  if (pending_.empty()) return std::nullopt;
  const Pending next = std::move(pending_.back());
  pending_.pop_back();
  const InodePtr directory = reader.GetInode(next.ref);
  unfolding_.Enter(*directory, next.folder->depth);
  Folder found{PathOf(*next.folder), {}};
  std::vector<Pending> below;
  size_t text = 0;
  reader.ReadDir(*directory, 0, [&](const DirectoryEntry& entry) {
    InodePtr inode = reader.GetInode(entry.ref);
    unfolding_.Visit(entry.name, *inode);
    text += entry.name.size() + inode->target.size();
    if (found.entries.size() >= max_entries || text > max_text)
      throw SystemError(EOVERFLOW, "squashfs_walk", "too many entries");
    if (inode->type == InodeType::kDirectory)
      below.push_back({std::make_shared<const WalkedFolder>(
                           WalkedFolder{next.folder, std::string(entry.name), next.folder->depth + 1}),
                       entry.ref});
    found.entries.push_back({std::string(entry.name), std::move(inode)});
    return true;
  });
  pending_.insert(pending_.end(), std::make_move_iterator(below.rbegin()), std::make_move_iterator(below.rend()));
  return found;
}

}  // namespace sifcrypt
