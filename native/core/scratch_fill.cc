#include "core/scratch_fill.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>

#include "core/squashfs_reader.h"
#include "core/system_error.h"
#include "core/unfolding.h"

namespace sifcrypt {
namespace {

constexpr size_t kReadSize = size_t{1} << 20;
constexpr unsigned kMaxThreads = 4;
// It is read once, from front to back by few threads.
constexpr SquashfsReader::Limits kLimits{size_t{4} << 20, size_t{1} << 20, size_t{1} << 20};

/// A file of the scratch.
class ScratchFile final : public ByteSource {
 public:
  ScratchFile(ScratchTree& tree, ScratchTree::Id id)
      : tree_(tree), id_(id), size_(static_cast<uint64_t>(tree.Attributes(id).st_size)) {}
  uint64_t Size() const override { return size_; }
  void ReadAt(uint64_t offset, void* out, size_t size) const override {
    if (!RangeFits(offset, size, size_)) throw SystemError(EOVERFLOW, "scratch");
    if (tree_.Read(id_, offset, out, size) != size) throw SystemError(EIO, "scratch", "the file ends early");
  }

 private:
  ScratchTree& tree_;
  ScratchTree::Id id_;
  uint64_t size_;
};

bool Knows(const std::vector<ScratchRights::Range>& ranges, uint32_t id) {
  return std::any_of(ranges.begin(), ranges.end(), [id](const ScratchRights::Range& range) {
    return id >= range.first && id - range.first < range.count;
  });
}

bool IsAtTop(ScratchTree& tree, ScratchTree::Id id) {
  bool found = false;
  tree.List(ScratchTree::kRoot, 0, false, [&](const std::string&, const struct stat& entry, uint64_t) {
    found = entry.st_ino == id;
    return !found;
  });
  return found;
}

class Filling {
 public:
  Filling(ScratchTree& tree, ScratchTree::Id image, const ScratchRights& rights,
          const std::function<bool()>& is_stopped)
      : tree_(tree),
        rights_(rights),
        is_stopped_(is_stopped),
        reader_(std::make_shared<const ScratchFile>(tree, image), kLimits),
        unfolding_(reader_) {}

  void Run(ScratchTree::Id folder) {
    tree_.List(folder, 0, false, [](const auto&...) -> bool { throw SystemError(ENOTEMPTY, "scratch"); });
    folders_.push_back({folder, reader_.Root(), 0});
    // More of them come meanwhile.
    for (size_t i = 0; i < folders_.size(); ++i) FillFolder(folders_[i]);
    WriteFiles();
    // Making what is in them has changed their times.
    for (auto made = folders_.rbegin(); made != folders_.rend(); ++made)
      SetAttributes(made->id, *reader_.ReadInode(made->ref));
  }

 private:
  struct Made {
    ScratchTree::Id id;
    InodeRef ref;
    unsigned depth;
  };

  void FillFolder(const Made folder) {
    const InodePtr directory = reader_.GetInode(folder.ref);
    unfolding_.Enter(*directory, folder.depth);
    reader_.ReadDir(*directory, 0, [&](const DirectoryEntry& entry) {
      CheckStopped();
      const InodePtr inode = reader_.GetInode(entry.ref);
      unfolding_.Visit(entry.name, *inode);
      MakeEntry(folder, std::string(entry.name), *inode);
      return true;
    });
  }

  void MakeEntry(const Made& folder, const std::string& name, const Inode& inode) {
    const bool is_device = inode.type == InodeType::kBlockDevice || inode.type == InodeType::kCharacterDevice;
    if (is_device && !rights_.is_root) return;
    if (inode.type != InodeType::kDirectory && inode.nlink > 1) {
      const auto [first, is_first] = first_links_.try_emplace(inode.ref);
      if (!is_first) {
        tree_.Link(first->second, folder.id, name);
        tree_.Forget(first->second, 1);
        return;
      }
      first->second = Make(folder.id, name, inode);
    } else {
      Make(folder.id, name, inode);
    }
    if (inode.type == InodeType::kDirectory) folders_.push_back({last_, inode.ref, folder.depth + 1});
    if (inode.type == InodeType::kFile) files_.push_back({last_, inode.ref, 0});
    if (inode.type != InodeType::kDirectory && inode.type != InodeType::kFile) SetAttributes(last_, inode);
  }

  ScratchTree::Id Make(ScratchTree::Id folder, const std::string& name, const Inode& inode) {
    last_ = tree_
                .Make(folder, name,
                      {FileTypeBits(inode.type) | (inode.type == InodeType::kSymlink ? 0777 : 0600), inode.rdev, 0, 0,
                       inode.target})
                .st_ino;
    // It has a name.
    tree_.Forget(last_, 1);
    return last_;
  }

  void WriteFiles() {
    const unsigned threads = std::clamp(std::thread::hardware_concurrency(), 1u, kMaxThreads);
    std::vector<std::thread> others;
    try {
      for (unsigned i = 1; i < threads; ++i) others.emplace_back([this] { Work(); });
    } catch (const std::exception&) {
      // Those that there are do all of it.
    }
    Work();
    for (std::thread& other : others) other.join();
    if (failure_) std::rethrow_exception(failure_);
  }

  void Work() {
    try {
      for (size_t i = next_++; i < files_.size(); i = next_++)
        WriteFile(files_[i].id, *reader_.ReadInode(files_[i].ref));
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
      next_ = files_.size();
    }
  }

  void WriteFile(ScratchTree::Id id, const Inode& inode) {
    CheckStopped();
    bool ends_in_hole = false;
    for (uint64_t offset = 0; offset < inode.size;) {
      for (const PinnedBytes& bytes : reader_.ReadPinned(inode, offset, kReadSize)) {
        // Without an owner it is a hole.
        if (bytes.owner && tree_.Write(id, offset, bytes.data, bytes.size) != bytes.size)
          throw SystemError(ENOSPC, "scratch");
        ends_in_hole = !bytes.owner;
        offset += bytes.size;
      }
      CheckStopped();
    }
    if (ends_in_hole) {
      ScratchTree::Change change;
      change.size = inode.size;
      tree_.SetAttributes(id, change);
    }
    SetAttributes(id, inode);
  }

  void SetAttributes(ScratchTree::Id id, const Inode& inode) {
    if (inode.has_xattrs())
      for (Xattr& xattr : reader_.Xattrs(inode))
        if (MaySet(xattr.name, inode.type)) tree_.SetXattr(id, xattr.name, std::move(xattr.value), 0);
    ScratchTree::Change change;
    if (inode.type != InodeType::kSymlink) change.mode = inode.mode;
    change.uid = change.gid = 0;
    if (KeepsOwners()) {
      if (!rights_.is_root && (!Knows(rights_.users, inode.uid) || !Knows(rights_.groups, inode.gid)))
        throw SystemError(EINVAL, "chown");
      change.uid = inode.uid;
      change.gid = inode.gid;
    }
    change.atime = change.mtime = timespec{static_cast<time_t>(inode.mtime), 0};
    tree_.SetAttributes(id, change);
  }

  /// As the kernel has it.
  bool MaySet(const std::string& name, InodeType type) const {
    if (name.starts_with("user.")) return type == InodeType::kFile || type == InodeType::kDirectory;
    return rights_.is_root || (KeepsOwners() && name == "security.capability");
  }
  bool KeepsOwners() const { return rights_.is_root || !rights_.users.empty(); }

  void CheckStopped() const {
    if (is_stopped_()) throw SystemError(ECANCELED, "scratch");
  }

  ScratchTree& tree_;
  const ScratchRights& rights_;
  const std::function<bool()>& is_stopped_;
  const SquashfsReader reader_;
  Unfolding unfolding_;
  std::vector<Made> folders_;
  std::vector<Made> files_;
  std::unordered_map<InodeRef, ScratchTree::Id> first_links_;
  ScratchTree::Id last_ = 0;
  std::atomic<size_t> next_ = 0;
  std::mutex mutex_;
  std::exception_ptr failure_;
};

}  // namespace

void FillScratch(ScratchTree& tree, ScratchTree::Id folder, ScratchTree::Id image, const ScratchRights& rights,
                 const std::function<bool()>& is_stopped) {
  for (const ScratchTree::Id id : {folder, image})
    if (!IsAtTop(tree, id)) throw SystemError(EPERM, "scratch");
  Filling(tree, image, rights, is_stopped).Run(folder);
}

}  // namespace sifcrypt
