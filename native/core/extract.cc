#include "core/extract.h"

#include <dirent.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "core/file_range.h"
#include "core/unfolding.h"
#include "core/unique_fd.h"

namespace sifcrypt {
namespace {

// Large files are shared out among the threads in pieces of this size.
constexpr uint64_t kPieceSize = uint64_t{8} << 20;
constexpr size_t kReadSize = size_t{1} << 20;
// A label on each of sixty million files is as much as there may be.
constexpr uint64_t kStepsPerXattr = 8;
constexpr uint64_t kBytesPerStep = 64;
// Of the way to a folder. Four million folders are eight deep.
constexpr uint64_t kStepsPerLevel = 8;
// Each may hold a descriptor open.
constexpr size_t kMaxQueued = 128;
constexpr unsigned kMaxThreads = 4;
/// Whose the kernel says is what belongs to somebody that a user namespace does not know.
constexpr uid_t kNobody = 65534;

// openat2(2): younger than the headers that some of the systems we build on have.
#ifdef SYS_openat2
constexpr long kOpenat2 = SYS_openat2;
#else
constexpr long kOpenat2 = 437;
#endif
struct OpenHow {
  uint64_t flags = 0;
  uint64_t mode = 0;
  uint64_t resolve = 0;
};
constexpr uint64_t kResolveNoMagicLinks = 0x02;
constexpr uint64_t kResolveNoSymlinks = 0x04;
constexpr uint64_t kResolveBeneath = 0x08;

// Opens one name inside `folder`. A name has one part only, so where openat2 is missing (before Linux 5.6, or
// behind a filter) O_NOFOLLOW alone gives the same guarantee.
UniqueFd OpenName(int folder, const char* name, int flags, mode_t mode = 0) {
  OpenHow how;
  how.flags = static_cast<uint64_t>(flags | O_NOFOLLOW | O_CLOEXEC);
  how.mode = mode;
  how.resolve = kResolveBeneath | kResolveNoMagicLinks | kResolveNoSymlinks;
  long fd = syscall(kOpenat2, folder, name, &how, sizeof how);
  if (fd < 0 && (errno == ENOSYS || errno == EPERM)) fd = openat(folder, name, flags | O_NOFOLLOW | O_CLOEXEC, mode);
  return UniqueFd(static_cast<int>(fd));
}

timespec ModifiedAt(const Inode& inode) { return {static_cast<time_t>(inode.mtime), 0}; }

// Nobody has put anything there yet: then it becomes the folder that is extracted, as one that is made does.
bool IsEmpty(int folder) {
  UniqueFd again(CheckErrno(openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), "open"));
  const std::unique_ptr<DIR, decltype(&closedir)> entries(fdopendir(again.get()), closedir);
  if (!entries) throw SystemError(errno, "fdopendir");
  again.Release();
  while (const dirent* entry = readdir(entries.get()))
    if (std::strcmp(entry->d_name, ".") != 0 && std::strcmp(entry->d_name, "..") != 0) return false;
  return true;
}

// A refusal that loses an attribute and not the file.
bool IsRefusal(int error) { return error == ENOTSUP || error == EPERM || error == EINVAL || error == EACCES; }

class Extraction {
 public:
  Extraction(const SquashfsReader& reader, const ExtractRequest& request)
      : reader_(reader), request_(request), is_root_(geteuid() == 0), unfolding_(reader) {}

  Extracted Run();

 private:
  /// A file being written. The last of its pieces gives it its attributes.
  struct File {
    UniqueFd fd;
    InodePtr inode;
    /// As it was when it was new.
    struct stat made {};
    bool ends_in_hole = false;
    std::atomic<uint64_t> pieces_left = 0;
  };
  struct Piece {
    std::shared_ptr<File> file;
    uint64_t offset;
  };
  struct Directory {
    WalkedFolderPtr folder;
    InodeRef ref;
  };
  struct FirstLink {
    WalkedFolderPtr folder;
    std::string name;
  };

  UniqueFd OpenFolder(const WalkedFolder& folder);
  void ExtractFolder(const Directory& directory);
  void ExtractEntry(int parent, const WalkedFolderPtr& folder, const std::string& name, InodeRef ref);
  void ExtractDirectory(int parent, const WalkedFolderPtr& folder, const std::string& name, const Inode& inode);
  void ExtractFile(int parent, const std::string& name, InodePtr inode);
  void ExtractNode(int parent, const std::string& name, const Inode& inode);
  bool LinkToFirst(int parent, const WalkedFolderPtr& folder, const std::string& name, const Inode& inode);
  void FinishFolders();
  void SetAttributes(int fd, const Inode& inode, const struct stat& made);
  /// `give` gives it to a user and a group, or to one of them, and returns as the system call does.
  template <typename Give>
  void SetOwner(const Inode& inode, Give give);
  /// `set` sets one and returns as the system call does.
  template <typename Set>
  void SetXattrs(const Inode& inode, Set set);
  mode_t ModeOf(const Inode& inode) const {
    return inode.mode & (request_.preserve_owner || request_.keep_modes ? 07777 : 01777);
  }

  void Enqueue(Piece piece);
  void Work();
  void WritePiece(const Piece& piece);
  void Report(uint64_t bytes);
  void Spend(uint64_t steps);
  void Fail(std::exception_ptr failure);
  void JoinWorkers();

  const SquashfsReader& reader_;
  const ExtractRequest& request_;
  const bool is_root_;
  UniqueFd target_;
  Extracted done_;
  std::vector<Directory> pending_;
  /// Directories made here, or empty before, parents first; they get their attributes last.
  std::vector<Directory> created_;
  Unfolding unfolding_;
  std::unordered_map<InodeRef, FirstLink> first_links_;

  std::mutex mutex_;
  std::condition_variable queued_;
  std::condition_variable taken_;
  std::deque<Piece> queue_;
  bool closed_ = false;
  std::atomic<bool> stopped_ = false;
  std::exception_ptr failure_;
  std::vector<std::thread> workers_;
  std::atomic<uint64_t> bytes_ = 0;
  std::atomic<uint64_t> skipped_xattrs_ = 0;
  std::atomic<uint64_t> unknown_owners_ = 0;
  std::atomic<uint64_t> steps_ = 0;
  std::mutex progress_mutex_;
};

Extracted Extraction::Run() {
  target_ = UniqueFd(CheckErrno(open(request_.target.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC), "open"));
  const InodeRef ref = reader_.Resolve(request_.path, true);
  const unsigned processors = std::clamp(std::thread::hardware_concurrency(), 1u, kMaxThreads);
  const unsigned threads = request_.threads != 0 ? request_.threads : processors;
  try {
    for (unsigned i = 0; i < threads; ++i) workers_.emplace_back([this] { Work(); });
    const auto root = std::make_shared<const WalkedFolder>();
    if (reader_.GetInode(ref)->type == InodeType::kDirectory) {
      struct stat made {};
      CheckErrno(fstat(target_.get(), &made), "fstat");
      if (request_.fill && (is_root_ || made.st_uid == geteuid()) && IsEmpty(target_.get()))
        created_.push_back({root, ref});
      pending_.push_back({root, ref});
    } else {
      std::string name = request_.path;
      while (!name.empty() && name.back() == '/') name.pop_back();
      name.erase(0, name.rfind('/') + 1);
      ExtractEntry(target_.get(), root, name, ref);
    }
    while (!pending_.empty() && !stopped_) {
      const Directory next = std::move(pending_.back());
      pending_.pop_back();
      ExtractFolder(next);
    }
  } catch (...) {
    Fail(std::current_exception());
  }
  JoinWorkers();
  if (!failure_) FinishFolders();
  if (failure_) std::rethrow_exception(failure_);
  done_.bytes = bytes_;
  done_.skipped_xattrs = skipped_xattrs_;
  done_.unknown_owners = unknown_owners_;
  return done_;
}

UniqueFd Extraction::OpenFolder(const WalkedFolder& folder) {
  Spend(folder.depth * kStepsPerLevel);
  std::vector<const WalkedFolder*> way;
  for (const WalkedFolder* at = &folder; at->parent; at = at->parent.get()) way.push_back(at);
  UniqueFd fd = UniqueFd::Duplicate(target_.get());
  for (auto step = way.rbegin(); step != way.rend(); ++step) {
    fd = OpenName(fd.get(), (*step)->name.c_str(), O_RDONLY | O_DIRECTORY);
    CheckErrno(fd.get(), "openat2");
  }
  return fd;
}

void Extraction::ExtractFolder(const Directory& directory) {
  const InodePtr inode = reader_.GetInode(directory.ref);
  unfolding_.Enter(*inode, directory.folder->depth);
  Report(0);
  const UniqueFd fd = OpenFolder(*directory.folder);
  reader_.ReadDir(*inode, 0, [&](const DirectoryEntry& entry) {
    ExtractEntry(fd.get(), directory.folder, std::string(entry.name), entry.ref);
    return !stopped_.load();
  });
}

void Extraction::ExtractEntry(int parent, const WalkedFolderPtr& folder, const std::string& name, InodeRef ref) {
  const InodePtr inode = reader_.GetInode(ref);
  Report(0);
  ++done_.entries;
  unfolding_.Visit(name, *inode);
  if (inode->type == InodeType::kDirectory) return ExtractDirectory(parent, folder, name, *inode);
  if (inode->nlink > 1 && LinkToFirst(parent, folder, name, *inode)) return;
  if (inode->type == InodeType::kFile)
    ExtractFile(parent, name, inode);
  else
    ExtractNode(parent, name, *inode);
}

void Extraction::ExtractDirectory(int parent, const WalkedFolderPtr& folder, const std::string& name,
                                  const Inode& inode) {
  const bool created = mkdirat(parent, name.c_str(), 0700) == 0;
  if (!created) {
    if (errno != EEXIST) throw SystemError(errno, "mkdirat");
    struct stat st {};
    CheckErrno(fstatat(parent, name.c_str(), &st, AT_SYMLINK_NOFOLLOW), "fstatat");
    if (!S_ISDIR(st.st_mode)) throw SystemError(EEXIST, "mkdirat");
  }
  auto below = std::make_shared<const WalkedFolder>(WalkedFolder{folder, name, folder->depth + 1});
  if (created) created_.push_back({below, inode.ref});
  pending_.push_back({std::move(below), inode.ref});
}

void Extraction::ExtractFile(int parent, const std::string& name, InodePtr inode) {
  auto file = std::make_shared<File>();
  file->fd = OpenName(parent, name.c_str(), O_WRONLY | O_CREAT | O_EXCL, 0600);
  CheckErrno(file->fd.get(), "openat2");
  CheckErrno(fstat(file->fd.get(), &file->made), "fstat");
  file->inode = std::move(inode);
  const uint64_t size = file->inode->size;
  file->pieces_left = size == 0 ? 1 : (size - 1) / kPieceSize + 1;
  for (uint64_t offset = 0; (offset == 0 || offset < size) && !stopped_; offset += kPieceSize) Enqueue({file, offset});
}

void Extraction::ExtractNode(int parent, const std::string& name, const Inode& inode) {
  const bool device = inode.type == InodeType::kBlockDevice || inode.type == InodeType::kCharacterDevice;
  if (device && !request_.preserve_owner) {
    --done_.entries;
    ++done_.skipped_devices;
    return;
  }
  if (device && mknodat(parent, name.c_str(), FileTypeBits(inode.type) | 0600, inode.rdev) != 0) {
    // In a user namespace nobody may make one.
    if (errno != EPERM) throw SystemError(errno, "mknodat");
    --done_.entries;
    ++done_.skipped_devices;
    return;
  }
  if (inode.type == InodeType::kSymlink)
    CheckErrno(symlinkat(inode.target.c_str(), parent, name.c_str()), "symlinkat");
  else if (!device)
    CheckErrno(mknodat(parent, name.c_str(), FileTypeBits(inode.type) | 0600, 0), "mknodat");
  if (request_.preserve_owner)
    SetOwner(inode, [parent, &name](uid_t uid, gid_t gid) {
      return fchownat(parent, name.c_str(), uid, gid, AT_SYMLINK_NOFOLLOW);
    });
  // There is no setxattrat before Linux 6.13.
  const std::string path = "/proc/self/fd/" + std::to_string(parent) + "/" + name;
  SetXattrs(inode, [&path](const Xattr& xattr) {
    return lsetxattr(path.c_str(), xattr.name.c_str(), xattr.value.data(), xattr.value.size(), 0);
  });
  if (inode.type != InodeType::kSymlink)
    CheckErrno(fchmodat(parent, name.c_str(), ModeOf(inode), AT_SYMLINK_NOFOLLOW), "fchmodat");
  const timespec times[2] = {ModifiedAt(inode), ModifiedAt(inode)};
  CheckErrno(utimensat(parent, name.c_str(), times, AT_SYMLINK_NOFOLLOW), "utimensat");
}

// True when it is another name of something written before. False when it is the first, or when the file
// system cannot link the two: then it becomes a file of its own.
bool Extraction::LinkToFirst(int parent, const WalkedFolderPtr& folder, const std::string& name, const Inode& inode) {
  const auto [found, is_first] = first_links_.try_emplace(inode.ref, FirstLink{folder, name});
  FirstLink& first = found->second;
  if (is_first) return false;
  const UniqueFd from = first.folder == folder ? UniqueFd::Duplicate(parent) : OpenFolder(*first.folder);
  if (linkat(from.get(), first.name.c_str(), parent, name.c_str(), 0) == 0) return true;
  // So many links and no more: the names that follow are links to this one.
  if (errno == EMLINK) {
    first.folder = folder;
    first.name = name;
    return false;
  }
  if (errno != EXDEV && errno != EPERM && errno != ENOTSUP && errno != ENOENT) throw SystemError(errno, "linkat");
  return false;
}

void Extraction::FinishFolders() {
  for (auto folder = created_.rbegin(); folder != created_.rend() && !stopped_; ++folder) {
    Report(0);
    const UniqueFd fd = OpenFolder(*folder->folder);
    struct stat made {};
    CheckErrno(fstat(fd.get(), &made), "fstat");
    SetAttributes(fd.get(), *reader_.GetInode(folder->ref), made);
  }
}

// The owner first, since changing it clears bits and capabilities; the mode after what needs write
// permission.
void Extraction::SetAttributes(int fd, const Inode& inode, const struct stat& made) {
  const bool has_owner = made.st_uid == inode.uid && made.st_gid == inode.gid;
  if (request_.preserve_owner && !has_owner)
    SetOwner(inode, [fd](uid_t uid, gid_t gid) { return fchown(fd, uid, gid); });
  SetXattrs(inode, [fd](const Xattr& xattr) {
    return fsetxattr(fd, xattr.name.c_str(), xattr.value.data(), xattr.value.size(), 0);
  });
  CheckErrno(fchmod(fd, ModeOf(inode)), "fchmod");
  const timespec times[2] = {ModifiedAt(inode), ModifiedAt(inode)};
  CheckErrno(futimens(fd, times), "futimens");
}

template <typename Give>
void Extraction::SetOwner(const Inode& inode, Give give) {
  if (give(inode.uid, inode.gid) == 0) return;
  if (errno != EINVAL || !request_.strangers_are_nobody) throw SystemError(errno, "chown");
  ++unknown_owners_;
  constexpr auto kSame = static_cast<uid_t>(-1);
  for (const uid_t uid : {inode.uid, kNobody})
    if (give(uid, kSame) == 0) break;
  for (const gid_t gid : {inode.gid, kNobody})
    if (give(kSame, gid) == 0) break;
}

template <typename Set>
void Extraction::SetXattrs(const Inode& inode, Set set) {
  const std::vector<Xattr> xattrs = reader_.Xattrs(inode);
  // Any number of inodes may share the largest set there can be.
  uint64_t steps = xattrs.size() * kStepsPerXattr;
  for (const Xattr& xattr : xattrs) steps += xattr.value.size() / kBytesPerStep;
  Spend(steps);
  for (const Xattr& xattr : xattrs) {
    const bool allowed = xattr.name.starts_with("user.") || (request_.preserve_owner && is_root_);
    if (allowed && set(xattr) == 0) continue;
    if (allowed && !IsRefusal(errno)) throw SystemError(errno, "setxattr");
    ++skipped_xattrs_;
  }
}

void Extraction::Enqueue(Piece piece) {
  std::unique_lock<std::mutex> lock(mutex_);
  taken_.wait(lock, [this] { return queue_.size() < kMaxQueued || stopped_; });
  if (stopped_) return;
  queue_.push_back(std::move(piece));
  queued_.notify_one();
}

void Extraction::Work() {
  for (;;) {
    Piece piece;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      queued_.wait(lock, [this] { return !queue_.empty() || closed_ || stopped_; });
      if (stopped_ || queue_.empty()) return;
      piece = std::move(queue_.front());
      queue_.pop_front();
    }
    taken_.notify_one();
    try {
      WritePiece(piece);
    } catch (...) {
      Fail(std::current_exception());
    }
  }
}

void Extraction::WritePiece(const Piece& piece) {
  File& file = *piece.file;
  const Inode& inode = *file.inode;
  const uint64_t end = std::min(inode.size, piece.offset + kPieceSize);
  for (uint64_t offset = piece.offset; offset < end && !stopped_;) {
    const size_t size = static_cast<size_t>(std::min<uint64_t>(kReadSize, end - offset));
    for (const PinnedBytes& bytes : reader_.ReadPinned(inode, offset, size)) {
      Spend(1);
      // Without an owner it is a hole.
      if (bytes.owner) WriteFully(file.fd.get(), offset, bytes.data, bytes.size);
      offset += bytes.size;
      if (offset == inode.size && !bytes.owner) file.ends_in_hole = true;
    }
    Report(size);
  }
  if (stopped_ || --file.pieces_left > 0) return;
  if (file.ends_in_hole) CheckErrno(ftruncate(file.fd.get(), static_cast<off_t>(inode.size)), "ftruncate");
  SetAttributes(file.fd.get(), inode, file.made);
}

void Extraction::Report(uint64_t bytes) {
  const uint64_t total = bytes_ += bytes;
  if (!request_.on_progress) return;
  const std::unique_lock<std::mutex> lock(progress_mutex_, std::try_to_lock);
  if (lock && !request_.on_progress(total)) Fail(std::make_exception_ptr(SystemError(ECANCELED, "squashfs_extract")));
}

void Extraction::Spend(uint64_t steps) {
  if ((steps_ += steps) > request_.max_steps)
    throw FormatError("squashfs_extract", "more than " + std::to_string(request_.max_steps) + " steps of work");
}

// The first failure counts; the others follow from it.
void Extraction::Fail(std::exception_ptr failure) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!failure_) failure_ = std::move(failure);
    stopped_ = true;
    queue_.clear();
  }
  queued_.notify_all();
  taken_.notify_all();
}

void Extraction::JoinWorkers() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
  }
  queued_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

}  // namespace

Extracted Extract(const SquashfsReader& reader, const ExtractRequest& request) {
  return Extraction(reader, request).Run();
}

}  // namespace sifcrypt
