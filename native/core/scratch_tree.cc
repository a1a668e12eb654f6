#include "core/scratch_tree.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/xattr.h>
#include <time.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/system_error.h"

namespace sifcrypt {
namespace {

constexpr uint64_t kBlock = BlockStore::kBlock;
/// Bytes of one file.
constexpr uint64_t kMaxFileSize = uint64_t{1} << 43;
/// Names and values of one file's extended attributes together: what ext4 and xfs have room for is no more.
constexpr size_t kMaxXattrs = 64 << 10;
constexpr uint32_t kBlockUnit = 512;
/// The store's call when it has blocks, and the disk under it none.
constexpr char kWriting[] = "pwrite";
/// What is filled with zeros at a time.
constexpr size_t kZeros = 256 << 10;

[[noreturn]] void Fail(int error) { throw SystemError(error, "scratch"); }

timespec Now() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  return now;
}

uint64_t BlocksFor(uint64_t bytes) { return bytes / kBlock + (bytes % kBlock != 0); }

}  // namespace

struct ScratchTree::Directory {
  struct Entry {
    Node* node = nullptr;
    uint64_t place = 0;
  };
  using Entries = std::map<std::string, Entry, std::less<>>;
  Node* parent = nullptr;
  Entries entries;
  std::map<uint64_t, Entries::const_iterator> order;
  uint64_t next_place = kFirstPlace;
};

struct ScratchTree::Node {
  Id id = 0;
  mode_t mode = 0;
  uid_t uid = 0;
  gid_t gid = 0;
  dev_t rdev = 0;
  nlink_t links = 0;
  uint64_t uses = 0;
  std::string target;
  std::unique_ptr<Directory> directory;
  std::map<std::string, std::string> xattrs;

  std::mutex data;
  timespec atime{};
  timespec mtime{};
  timespec ctime{};
  uint64_t size = 0;
  /// By the file's own block; what is in none reads as zeros, and so does the rest of the last block.
  std::map<uint64_t, BlockStore::Run> extents;
  uint64_t blocks = 0;

  void Changed(bool content = false) {
    const std::lock_guard lock(data);
    ctime = Now();
    if (content) mtime = ctime;
  }
};

ScratchTree::ScratchTree(std::unique_ptr<BlockStore> store, uint64_t most_nodes)
    : store_(std::move(store)), most_nodes_(most_nodes) {
  auto root = std::make_unique<Node>();
  root->id = next_++;
  root->mode = S_IFDIR | 0755;
  root->links = 2;
  root->directory = std::make_unique<Directory>();
  root->directory->parent = root.get();
  root->Changed(true);
  root->atime = root->mtime;
  nodes_.emplace(root->id, std::move(root));
}

ScratchTree::~ScratchTree() = default;

ScratchTree::Node& ScratchTree::Get(Id id) {
  const auto found = nodes_.find(id);
  if (found == nodes_.end()) Fail(ESTALE);
  return *found->second;
}

ScratchTree::Node& ScratchTree::GetDirectory(Id id) {
  Node& node = Get(id);
  if (!node.directory) Fail(ENOTDIR);
  return node;
}

ScratchTree::Node* ScratchTree::Find(Node& directory, std::string_view name) {
  const auto found = directory.directory->entries.find(name);
  return found == directory.directory->entries.end() ? nullptr : found->second.node;
}

void ScratchTree::CheckName(std::string_view name) {
  if (name.size() > kMaxNameLength) Fail(ENAMETOOLONG);
}

struct stat ScratchTree::StatOf(Node& node) const {
  const std::lock_guard lock(node.data);
  struct stat attributes {};
  attributes.st_ino = node.id;
  attributes.st_mode = node.mode;
  attributes.st_nlink = node.links;
  attributes.st_uid = node.uid;
  attributes.st_gid = node.gid;
  attributes.st_rdev = node.rdev;
  attributes.st_size = static_cast<off_t>(S_ISLNK(node.mode) ? node.target.size() : node.size);
  attributes.st_blocks = static_cast<blkcnt_t>(node.blocks * (kBlock / kBlockUnit));
  attributes.st_blksize = kBlock;
  attributes.st_atim = node.atime;
  attributes.st_mtim = node.mtime;
  attributes.st_ctim = node.ctime;
  return attributes;
}

struct stat ScratchTree::Used(Node& node) const {
  ++node.uses;
  return StatOf(node);
}

void ScratchTree::Add(Node& directory, const std::string& name, Node& node, uint64_t place) {
  Directory& in = *directory.directory;
  if (place == 0) place = in.next_place++;
  const auto [entry, added] = in.entries.emplace(name, Directory::Entry{&node, place});
  if (!added) Fail(EEXIST);
  in.order.emplace(place, entry);
  if (node.directory) {
    node.directory->parent = &directory;
    ++directory.links;
  }
  directory.Changed(true);
}

uint64_t ScratchTree::Remove(Node& directory, const std::string& name) {
  Directory& in = *directory.directory;
  const auto entry = in.entries.find(name);
  const uint64_t place = entry->second.place;
  if (entry->second.node->directory) --directory.links;
  in.order.erase(place);
  in.entries.erase(entry);
  directory.Changed(true);
  return place;
}

/// It has lost one of its names; of a folder, its only one.
void ScratchTree::Unnamed(Node& node) {
  node.links = node.directory ? 0 : node.links - 1;
  // Nothing leads up from a folder that is nowhere, and the one that it was in may go before it does.
  if (node.directory) node.directory->parent = &node;
  node.Changed();
  DropIfUnused(node);
}

void ScratchTree::DropIfUnused(Node& node) {
  if (node.links > 0 || node.uses > 0 || node.id == kRoot) return;
  {
    const std::lock_guard lock(node.data);
    Clear(node, 0, UINT64_MAX);
  }
  nodes_.erase(node.id);
}

std::optional<struct stat> ScratchTree::Lookup(Id parent, std::string_view name) {
  CheckName(name);
  const std::lock_guard lock(mutex_);
  Node* node = Find(GetDirectory(parent), name);
  if (node == nullptr) return std::nullopt;
  return Used(*node);
}

void ScratchTree::Forget(Id id, uint64_t uses) {
  const std::lock_guard lock(mutex_);
  const auto found = nodes_.find(id);
  if (found == nodes_.end()) return;
  found->second->uses -= std::min(uses, found->second->uses);
  DropIfUnused(*found->second);
}

ScratchTree::Id ScratchTree::ParentOf(Id directory) {
  const std::lock_guard lock(mutex_);
  return GetDirectory(directory).directory->parent->id;
}

struct stat ScratchTree::Make(Id parent, const std::string& name, const New& wanted) {
  CheckName(name);
  const std::lock_guard lock(mutex_);
  Node& directory = GetDirectory(parent);
  if (directory.links == 0) Fail(ENOENT);
  if (Find(directory, name) != nullptr) Fail(EEXIST);
  if (nodes_.size() >= most_nodes_) Fail(ENOSPC);
  auto made = std::make_unique<Node>();
  made->id = next_++;
  made->mode = wanted.mode;
  made->uid = wanted.uid;
  made->gid = wanted.gid;
  made->rdev = wanted.rdev;
  made->target = wanted.target;
  made->links = S_ISDIR(wanted.mode) ? 2 : 1;
  if ((directory.mode & S_ISGID) != 0) {
    made->gid = directory.gid;
    if (S_ISDIR(wanted.mode)) made->mode |= S_ISGID;
  }
  if (S_ISDIR(wanted.mode)) made->directory = std::make_unique<Directory>();
  made->Changed(true);
  made->atime = made->mtime;
  Node& node = *made;
  nodes_.emplace(node.id, std::move(made));
  Add(directory, name, node);
  return Used(node);
}

struct stat ScratchTree::Link(Id id, Id parent, const std::string& name) {
  CheckName(name);
  const std::lock_guard lock(mutex_);
  Node& node = Get(id);
  if (node.directory) Fail(EPERM);
  Node& directory = GetDirectory(parent);
  if (node.links == 0 || directory.links == 0) Fail(ENOENT);
  Add(directory, name, node);
  ++node.links;
  node.Changed();
  return Used(node);
}

struct stat ScratchTree::Attributes(Id id) {
  const std::lock_guard lock(mutex_);
  return StatOf(Get(id));
}

struct stat ScratchTree::SetAttributes(Id id, const Change& change) {
  const std::lock_guard lock(mutex_);
  Node& node = Get(id);
  if (change.size) {
    if (node.directory) Fail(EISDIR);
    const std::lock_guard data(node.data);
    Resize(node, *change.size);
    node.mtime = Now();
  }
  if (change.mode) node.mode = (node.mode & S_IFMT) | (*change.mode & ~static_cast<mode_t>(S_IFMT));
  if (change.uid) node.uid = *change.uid;
  if (change.gid) node.gid = *change.gid;
  node.Changed();
  {
    const std::lock_guard data(node.data);
    if (change.atime) node.atime = *change.atime;
    if (change.mtime) node.mtime = *change.mtime;
  }
  return StatOf(node);
}

std::string ScratchTree::Target(Id id) {
  const std::lock_guard lock(mutex_);
  const Node& node = Get(id);
  if (!S_ISLNK(node.mode)) Fail(EINVAL);
  return node.target;
}

void ScratchTree::Unlink(Id parent, const std::string& name) {
  const std::lock_guard lock(mutex_);
  Node& directory = GetDirectory(parent);
  Node* node = Find(directory, name);
  if (node == nullptr) Fail(ENOENT);
  if (node->directory) Fail(EISDIR);
  Remove(directory, name);
  Unnamed(*node);
}

void ScratchTree::RemoveDirectory(Id parent, const std::string& name) {
  const std::lock_guard lock(mutex_);
  Node& directory = GetDirectory(parent);
  Node* node = Find(directory, name);
  if (node == nullptr) Fail(ENOENT);
  if (!node->directory) Fail(ENOTDIR);
  if (!node->directory->entries.empty()) Fail(ENOTEMPTY);
  Remove(directory, name);
  Unnamed(*node);
}

void ScratchTree::Rename(Id parent, const std::string& name, Id new_parent, const std::string& new_name,
                         unsigned flags) {
  if ((flags & ~static_cast<unsigned>(RENAME_NOREPLACE | RENAME_EXCHANGE)) != 0) Fail(EINVAL);
  CheckName(new_name);
  const std::lock_guard lock(mutex_);
  Node& from = GetDirectory(parent);
  Node& to = GetDirectory(new_parent);
  Node* node = Find(from, name);
  Node* other = Find(to, new_name);
  if (node == nullptr || to.links == 0) Fail(ENOENT);
  if ((flags & RENAME_EXCHANGE) != 0) {
    if (other == nullptr) Fail(ENOENT);
    const uint64_t place = Remove(from, name);
    const uint64_t other_place = other != node ? Remove(to, new_name) : 0;
    Add(from, name, *other, place);
    if (other != node) Add(to, new_name, *node, other_place);
    node->Changed();
    other->Changed();
    return;
  }
  if (other != nullptr && (flags & RENAME_NOREPLACE) != 0) Fail(EEXIST);
  if (other == node) return;
  if (other != nullptr) {
    if (other->directory && !node->directory) Fail(EISDIR);
    if (!other->directory && node->directory) Fail(ENOTDIR);
    if (other->directory && !other->directory->entries.empty()) Fail(ENOTEMPTY);
    Remove(to, new_name);
    Unnamed(*other);
  }
  // In its folder it keeps its place: who renames all that a listing gives would else never come to the end.
  const uint64_t place = Remove(from, name);
  Add(to, new_name, *node, &from == &to ? place : 0);
  node->Changed();
}

void ScratchTree::List(Id directory, uint64_t place, bool counted, const Visit& visit) {
  const std::lock_guard lock(mutex_);
  const auto& order = GetDirectory(directory).directory->order;
  for (auto next = order.upper_bound(place); next != order.end(); ++next) {
    Node& node = *next->second->second.node;
    if (!visit(next->second->first, StatOf(node), next->first)) return;
    if (counted) ++node.uses;
  }
}

std::optional<std::string> ScratchTree::Xattr(Id id, const std::string& name) {
  const std::lock_guard lock(mutex_);
  const Node& node = Get(id);
  const auto found = node.xattrs.find(name);
  if (found == node.xattrs.end()) return std::nullopt;
  return found->second;
}

void ScratchTree::SetXattr(Id id, const std::string& name, std::string value, int flags) {
  const std::lock_guard lock(mutex_);
  Node& node = Get(id);
  const auto found = node.xattrs.find(name);
  if (found == node.xattrs.end() && (flags & XATTR_REPLACE) != 0) Fail(ENODATA);
  if (found != node.xattrs.end() && (flags & XATTR_CREATE) != 0) Fail(EEXIST);
  size_t total = name.size() + value.size();
  for (const auto& [other, content] : node.xattrs)
    if (other != name) total += other.size() + content.size();
  if (total > kMaxXattrs) Fail(ENOSPC);
  node.xattrs.insert_or_assign(name, std::move(value));
  has_xattrs_ = true;
  node.Changed();
}

void ScratchTree::RemoveXattr(Id id, const std::string& name) {
  const std::lock_guard lock(mutex_);
  Node& node = Get(id);
  if (node.xattrs.erase(name) == 0) Fail(ENODATA);
  node.Changed();
}

std::string ScratchTree::XattrNames(Id id) {
  const std::lock_guard lock(mutex_);
  std::string names;
  for (const auto& [name, value] : Get(id).xattrs) names.append(name).push_back('\0');
  return names;
}

struct statvfs ScratchTree::Statistics() const {
  struct statvfs statistics {};
  statistics.f_bsize = statistics.f_frsize = kBlock;
  statistics.f_blocks = store_->capacity();
  statistics.f_bfree = store_->unused();
  statistics.f_bavail = std::min<uint64_t>(statistics.f_bfree, store_->available());
  const std::lock_guard lock(mutex_);
  statistics.f_files = most_nodes_;
  statistics.f_ffree = statistics.f_favail = most_nodes_ - std::min<uint64_t>(most_nodes_, nodes_.size());
  statistics.f_namemax = kMaxNameLength;
  return statistics;
}

size_t ScratchTree::Read(Id id, uint64_t offset, void* out, size_t size) {
  Node* node;
  {
    const std::lock_guard lock(mutex_);
    node = &Get(id);
  }
  const std::lock_guard data(node->data);
  if (offset >= node->size) return 0;
  size = std::min<uint64_t>(size, node->size - offset);
  ReadData(*node, offset, static_cast<uint8_t*>(out), size);
  return size;
}

void ScratchTree::ReadData(Node& node, uint64_t offset, uint8_t* out, size_t size) {
  const uint64_t end = offset + size;
  while (offset < end) {
    const uint64_t block = offset / kBlock;
    auto next = node.extents.upper_bound(block);
    uint64_t n = (next == node.extents.end() ? end : std::min(end, next->first * kBlock)) - offset;
    if (next != node.extents.begin()) {
      const auto& [start, run] = *std::prev(next);
      if (block < start + run.count) {
        n = std::min(end, (start + run.count) * kBlock) - offset;
        store_->Read(run.first, offset - start * kBlock, out, n);
        out += n;
        offset += n;
        continue;
      }
    }
    memset(out, 0, n);
    out += n;
    offset += n;
  }
}

size_t ScratchTree::Write(Id id, uint64_t offset, const void* data, size_t size) {
  Node* node;
  {
    const std::lock_guard lock(mutex_);
    node = &Get(id);
  }
  if (offset > kMaxFileSize || size > kMaxFileSize - offset) Fail(EFBIG);
  const std::lock_guard lock(node->data);
  // Nothing written changes nothing, wherever it is.
  if (size == 0) return 0;
  const size_t written = WriteData(*node, offset, static_cast<const uint8_t*>(data), size, false);
  node->size = std::max(node->size, offset + written);
  node->mtime = node->ctime = Now();
  return written;
}

size_t ScratchTree::WriteData(Node& node, uint64_t offset, const uint8_t* data, size_t size, bool into_holes_only) {
  size_t done = 0;
  // Less and less where the disk has no room for all of it, so that in the end nothing is left of that.
  uint64_t most = UINT32_MAX / 2;
  while (done < size) {
    const uint64_t at = offset + done;
    const uint64_t block = at / kBlock;
    auto next = node.extents.upper_bound(block);
    const auto before = next == node.extents.begin() ? node.extents.end() : std::prev(next);
    try {
      if (before != node.extents.end() && block < before->first + before->second.count) {
        const auto& [start, run] = *before;
        const size_t n = std::min<uint64_t>(size - done, (start + run.count) * kBlock - at);
        if (!into_holes_only) store_->Write(run.first, at - start * kBlock, data + done, n, false);
        done += n;
        continue;
      }
      uint64_t wanted = BlocksFor(at % kBlock + (size - done));
      if (next != node.extents.end()) wanted = std::min(wanted, next->first - block);
      most = std::min(most, wanted);
      const BlockStore::Run run = store_->Allocate(static_cast<uint32_t>(most));
      const size_t n = std::min<uint64_t>(size - done, uint64_t{run.count} * kBlock - at % kBlock);
      try {
        store_->Write(run.first, at % kBlock, data + done, n, true);
        const bool joins = before != node.extents.end() && before->first + before->second.count == block &&
                           uint64_t{before->second.first} + before->second.count == run.first;
        if (joins)
          before->second.count += run.count;
        else
          node.extents.emplace_hint(next, block, run);
      } catch (...) {
        store_->Free(run);
        throw;
      }
      node.blocks += run.count;
      done += n;
    } catch (const SystemError& failure) {
      if (failure.error() == ENOSPC && failure.operation() == kWriting && most > 1) {
        most /= 2;
        continue;
      }
      if (done == 0) throw;
      return done;
    }
  }
  return done;
}

/// Zeros; whole blocks are freed. `end` may lie behind everything.
void ScratchTree::Clear(Node& node, uint64_t offset, uint64_t end) {
  // What is cleared of the blocks at the edges is overwritten, if it is there.
  const auto overwrite = [&](uint64_t from, uint64_t to) {
    const std::vector<uint8_t> zeros(kBlock);
    const uint64_t block = from / kBlock;
    auto next = node.extents.upper_bound(block);
    if (from == to || next == node.extents.begin()) return;
    const auto& [start, run] = *std::prev(next);
    if (block < start + run.count) store_->Write(run.first, from - start * kBlock, zeros.data(), to - from, false);
  };
  if (offset >= end) return;
  const uint64_t first = BlocksFor(offset), last = end / kBlock;
  if (first > last) return overwrite(offset, end);
  overwrite(offset, std::min(end, first * kBlock));
  if (end != UINT64_MAX) overwrite(last * kBlock, end);
  auto extent = node.extents.upper_bound(first);
  if (extent != node.extents.begin()) --extent;
  while (extent != node.extents.end() && extent->first < last) {
    const uint64_t start = extent->first, stop = start + extent->second.count;
    const uint64_t from = std::max(start, first), to = std::min(stop, last);
    if (from >= to) {
      ++extent;
      continue;
    }
    const uint32_t slot = extent->second.first;
    const auto part = [&](uint64_t a, uint64_t b) {
      return BlockStore::Run{static_cast<uint32_t>(slot + (a - start)), static_cast<uint32_t>(b - a)};
    };
    // Before anything is freed: this may need memory.
    if (to < stop) node.extents.emplace(to, part(to, stop));
    if (from > start) {
      extent->second.count = static_cast<uint32_t>(from - start);
      ++extent;
    } else {
      extent = node.extents.erase(extent);
    }
    store_->Free(part(from, to));
    node.blocks -= to - from;
  }
}

uint64_t ScratchTree::HolesIn(const Node& node, uint64_t offset, uint64_t end) {
  const uint64_t first = offset / kBlock, last = BlocksFor(end);
  uint64_t holes = last - first;
  auto extent = node.extents.upper_bound(first);
  if (extent != node.extents.begin()) --extent;
  for (; extent != node.extents.end() && extent->first < last; ++extent) {
    const uint64_t from = std::max(extent->first, first), to = std::min(extent->first + extent->second.count, last);
    if (from < to) holes -= to - from;
  }
  return holes;
}

void ScratchTree::Resize(Node& node, uint64_t size) {
  if (size > kMaxFileSize) Fail(EFBIG);
  // Also what was allocated behind the end.
  if (size <= node.size) Clear(node, size, UINT64_MAX);
  node.size = size;
}

void ScratchTree::Allocate(Id id, int mode, uint64_t offset, uint64_t size) {
  constexpr int kHole = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  const bool hole = mode == kHole;
  const bool zeros = (mode & ~FALLOC_FL_KEEP_SIZE) == FALLOC_FL_ZERO_RANGE;
  if (!hole && !zeros && (mode & ~FALLOC_FL_KEEP_SIZE) != 0) Fail(EOPNOTSUPP);
  if (offset > kMaxFileSize || size > kMaxFileSize - offset) Fail(EFBIG);
  Node* node;
  {
    const std::lock_guard lock(mutex_);
    node = &Get(id);
  }
  const std::lock_guard data(node->data);
  const uint64_t end = offset + size;
  // Who asks for more than there is gets an error, and must not have taken all there was.
  if (!hole && HolesIn(*node, offset, end) > store_->available()) Fail(ENOSPC);
  if (hole || zeros) Clear(*node, offset, std::min(end, BlocksFor(node->size) * kBlock));
  if (!hole) {
    // Room that is promised is taken: a page that is written through a mapping cannot report that there is none.
    const std::vector<uint8_t> nothing(std::min<uint64_t>(size, kZeros));
    for (uint64_t at = offset; at < end;) {
      const size_t n = std::min<uint64_t>(nothing.size(), end - at);
      const size_t done = WriteData(*node, at, nothing.data(), n, true);
      if (done < n) Fail(ENOSPC);
      at += n;
    }
    if ((mode & FALLOC_FL_KEEP_SIZE) == 0) node->size = std::max(node->size, end);
  }
  node->ctime = node->mtime = Now();
}

uint64_t ScratchTree::Seek(Id id, uint64_t offset, int whence) {
  Node* node;
  {
    const std::lock_guard lock(mutex_);
    node = &Get(id);
  }
  const std::lock_guard data(node->data);
  if (offset >= node->size) Fail(ENXIO);
  for (;;) {
    const uint64_t block = offset / kBlock;
    auto next = node->extents.upper_bound(block);
    const bool inside = next != node->extents.begin() && block < std::prev(next)->first + std::prev(next)->second.count;
    if (inside == (whence == SEEK_DATA)) return std::min(offset, node->size);
    if (inside) {
      offset = (std::prev(next)->first + std::prev(next)->second.count) * kBlock;
      if (offset >= node->size) return node->size;
    } else {
      if (next == node->extents.end() || next->first * kBlock >= node->size) Fail(ENXIO);
      offset = next->first * kBlock;
    }
  }
}

}  // namespace sifcrypt
