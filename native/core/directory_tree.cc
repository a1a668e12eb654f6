#include "core/directory_tree.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/stat.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "core/scratch_fill.h"
#include "core/system_error.h"

namespace sifcrypt {
namespace {

constexpr int kOpenDirectory = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
// Levels whose descriptors stay open; those further up are reopened on the way back, so depth costs no descriptors.
constexpr size_t kOpenLevels = 64;
// Where a server answers each request: so many files are asked for before they are read, and so much of each.
constexpr size_t kFilesAhead = 8;
constexpr off_t kBytesAhead = 1 << 20;
constexpr uint64_t kStatBlock = 512;
// linux/magic.h, of newer headers.
constexpr decltype(std::declval<struct statfs>().f_type) kFuseMagic = 0x65735546;
// Linux gives no longer list and no longer value.
constexpr size_t kXattrRoom = 64 * 1024;

struct CloseDirectory {
  void operator()(DIR* directory) const { closedir(directory); }
};

std::string Shown(std::string_view path) { return path.empty() ? "." : std::string(path); }

[[noreturn]] void Fail(int error, const char* operation, std::string_view path) {
  throw SystemError(error, operation, Shown(path) + ": " + strerror(error));
}

[[noreturn]] void FailChanged(const char* operation, std::string_view path) {
  throw SystemError(ESTALE, operation, Shown(path) + ": changed while it was read");
}

// What was there a moment ago and no longer is, or no longer is what it was.
bool IsChange(int error) { return error == ENOENT || error == ELOOP || error == ENOTDIR; }

UniqueFd OpenAt(int directory, const char* name, int flags, std::string_view path) {
  UniqueFd fd(openat(directory, name, flags));
  if (!fd && IsChange(errno)) FailChanged("open", path);
  if (!fd) Fail(errno, "open", path);
  return fd;
}

/// As fstatat(2), without the time of the last access: where a server answers each request it would be asked for that again as soon
/// as something was read. By its number: the musl that prebuilds/ is made with has no function of that name.
int StatAt(int directory, const char* name, int flags, struct stat* st) {
  struct statx found {};
  if (syscall(SYS_statx, directory, name, flags, STATX_BASIC_STATS & ~STATX_ATIME, &found) != 0)
    return errno == ENOSYS ? fstatat(directory, name, st, flags) : -1;
  st->st_dev = makedev(found.stx_dev_major, found.stx_dev_minor);
  st->st_ino = found.stx_ino;
  st->st_mode = found.stx_mode;
  st->st_nlink = found.stx_nlink;
  st->st_uid = found.stx_uid;
  st->st_gid = found.stx_gid;
  st->st_rdev = makedev(found.stx_rdev_major, found.stx_rdev_minor);
  st->st_size = static_cast<off_t>(found.stx_size);
  st->st_blocks = static_cast<blkcnt_t>(found.stx_blocks);
  st->st_mtim.tv_sec = found.stx_mtime.tv_sec;
  return 0;
}

struct stat StatOf(int fd, std::string_view path) {
  struct stat st {};
  if (StatAt(fd, "", AT_EMPTY_PATH, &st) != 0) Fail(errno, "fstat", path);
  return st;
}

bool SameInode(const struct stat& a, const struct stat& b) { return a.st_dev == b.st_dev && a.st_ino == b.st_ino; }

/// The names of one directory in byte order, kept in one string.
class Names {
 public:
  Names(int directory, std::string_view path) {
    // A second open file: reading it must not move the offset of the descriptor that is kept.
    UniqueFd fd = OpenAt(directory, ".", kOpenDirectory, path);
    std::unique_ptr<DIR, CloseDirectory> listing(fdopendir(fd.get()));
    if (!listing) Fail(errno, "opendir", path);
    fd.Release();
    for (;;) {
      errno = 0;
      const dirent* entry = readdir(listing.get());
      if (entry == nullptr && errno != 0) Fail(errno, "readdir", path);
      if (entry == nullptr) break;
      if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
      offsets_.push_back(text_.size());
      text_.append(entry->d_name, strlen(entry->d_name) + 1);
    }
    std::sort(offsets_.begin(), offsets_.end(), [this](size_t a, size_t b) { return strcmp(At(a), At(b)) < 0; });
  }
  /// nullptr after the last.
  const char* Next() { return next_ < offsets_.size() ? At(offsets_[next_++]) : nullptr; }
  /// One after the other, no more than so many names ahead of Next; otherwise nullptr.
  const char* NextAhead(size_t most) {
    ahead_ = std::max(ahead_, next_);
    return ahead_ < std::min(offsets_.size(), next_ + most) ? At(offsets_[ahead_++]) : nullptr;
  }

 private:
  const char* At(size_t offset) const { return text_.c_str() + offset; }
  std::string text_;
  std::vector<size_t> offsets_;
  size_t next_ = 0;
  size_t ahead_ = 0;
};

/// Goes through the folder depth first with a stack of its own.
class Traversal {
 public:
  enum class Step { kEnter, kEntry, kLeave, kEnd };

  Traversal(const UniqueFd& root, const std::unordered_set<std::string>& exclude) : exclude_(exclude) {
    Push(UniqueFd::Duplicate(root.get()), StatOf(root.get(), ""));
  }

  Step Next() {
    if (!entered_) {
      entered_ = true;
      return Step::kEnter;
    }
    if (levels_.empty()) return Step::kEnd;
    for (;;) {
      Level& level = levels_.back();
      path_.resize(level.path_size);
      name_ = level.names.Next();
      if (name_ == nullptr) {
        levels_.pop_back();
        return Step::kLeave;
      }
      if (!path_.empty()) path_ += '/';
      path_ += name_;
      if (exclude_.empty() || exclude_.count(path_) == 0) break;
    }
    const int parent = Directory();
    if (StatAt(parent, name_, AT_SYMLINK_NOFOLLOW, &stat_) != 0) {
      if (IsChange(errno)) FailChanged("stat", path_);
      Fail(errno, "stat", path_);
    }
    if (!S_ISDIR(stat_.st_mode)) return Step::kEntry;
    UniqueFd fd = OpenAt(parent, name_, kOpenDirectory, path_);
    const struct stat opened = StatOf(fd.get(), path_);
    Push(std::move(fd), opened);
    return Step::kEnter;
  }

  /// Of the entry or directory that Next has come to.
  const std::string& path() const { return path_; }
  const char* name() const { return name_; }
  const struct stat& status() const { return stat_; }
  /// Has the system read what comes next in the directory of an entry.
  void ReadAhead() {
    const int parent = Directory();
    while (const char* name = levels_.back().names.NextAhead(kFilesAhead)) {
      struct stat st {};
      if (StatAt(parent, name, AT_SYMLINK_NOFOLLOW, &st) != 0 || !S_ISREG(st.st_mode)) continue;
      // Non-blocking, in case a fifo has taken the name. Whoever reads it meets what goes wrong.
      const UniqueFd fd(openat(parent, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
      if (fd) posix_fadvise(fd.get(), 0, std::min(st.st_size, kBytesAhead), POSIX_FADV_WILLNEED);
    }
  }
  /// After kEnter the directory itself, after kEntry the one that the entry is in.
  int Directory() {
    Level& level = levels_.back();
    if (!level.fd) level.fd = Reopen();
    return level.fd.get();
  }

 private:
  struct Level {
    UniqueFd fd;
    struct stat status;
    Names names;
    size_t path_size;
  };

  void Push(UniqueFd fd, const struct stat& status) {
    stat_ = status;
    Names names(fd.get(), path_);
    levels_.push_back({std::move(fd), status, std::move(names), path_.size()});
    if (levels_.size() > kOpenLevels + 1) levels_[levels_.size() - kOpenLevels - 1].fd.Reset();
  }

  /// The innermost directory again, down from the root part by part; each must still be the one it was.
  UniqueFd Reopen() const {
    UniqueFd fd = UniqueFd::Duplicate(levels_.front().fd.get());
    for (size_t i = 1; i < levels_.size(); ++i) {
      const std::string path = path_.substr(0, levels_[i].path_size);
      const size_t start = levels_[i - 1].path_size + (i > 1 ? 1 : 0);
      fd = OpenAt(fd.get(), path.c_str() + start, kOpenDirectory, path);
      if (!SameInode(StatOf(fd.get(), path), levels_[i].status)) FailChanged("open", path);
    }
    return fd;
  }

  const std::unordered_set<std::string>& exclude_;
  std::vector<Level> levels_;
  std::string path_;
  const char* name_ = "";
  struct stat stat_ {};
  bool entered_ = false;
};

bool Storable(std::string_view name) {
  return name.starts_with("user.") || name.starts_with("security.") || name.starts_with("trusted.");
}

/// Extended attributes of an open file or, where nothing was opened, of an entry that is not followed.
class XattrReader {
 public:
  /// `any`: there may be some.
  explicit XattrReader(bool any) : any_(any) {}
  std::vector<TreeXattr> OfFile(int fd, std::string_view path) {
    return Read(
        path, [fd](char* out, size_t n) { return flistxattr(fd, out, n); },
        [fd](const char* name, char* out, size_t n) { return fgetxattr(fd, name, out, n); });
  }
  std::vector<TreeXattr> OfEntry(int directory, const char* name, std::string_view path) {
    // There is no listxattrat(2) before Linux 6.13; the descriptor's name in /proc stands for the directory.
    const std::string at = "/proc/self/fd/" + std::to_string(directory) + "/" + name;
    return Read(
        path, [&at](char* out, size_t n) { return llistxattr(at.c_str(), out, n); },
        [&at](const char* key, char* out, size_t n) { return lgetxattr(at.c_str(), key, out, n); });
  }

 private:
  template <typename List, typename Get>
  std::vector<TreeXattr> Read(std::string_view path, List list, Get get) {
    std::vector<TreeXattr> result;
    if (!any_) return result;
    const ssize_t size = list(names_.data(), names_.size());
    // No attributes here, or no /proc to ask through.
    if (size < 0 && (errno == ENOTSUP || errno == ENOENT || errno == ENOTDIR)) return result;
    if (size < 0) Fail(errno, "listxattr", path);
    for (const char* name = names_.data(); name < names_.data() + size; name += strlen(name) + 1) {
      if (!Storable(name)) continue;
      const ssize_t n = get(name, value_.data(), value_.size());
      // Gone since, or listed but not for us to read.
      if (n < 0 && (errno == ENODATA || errno == EPERM || errno == EACCES)) continue;
      if (n < 0) Fail(errno, "getxattr", path);
      result.push_back({name, std::string(value_.data(), static_cast<size_t>(n))});
    }
    std::sort(result.begin(), result.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
    return result;
  }

  bool any_;
  std::vector<char> names_ = std::vector<char>(kXattrRoom);
  std::vector<char> value_ = std::vector<char>(kXattrRoom);
};

class OpenFile final : public TreeFile {
 public:
  OpenFile(int fd, const struct stat& st, std::string_view path)
      : fd_(fd),
        size_(static_cast<uint64_t>(st.st_size)),
        may_have_holes_(static_cast<uint64_t>(st.st_blocks) * kStatBlock < size_),
        path_(path) {}
  uint64_t Size() const override { return size_; }
  void ReadAt(uint64_t offset, void* out, size_t size) const override {
    auto* to = static_cast<uint8_t*>(out);
    while (size > 0) {
      const ssize_t n = pread(fd_, to, size, static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) Fail(errno, "pread", path_);
      if (n == 0) FailChanged("pread", path_);
      to += n;
      offset += static_cast<uint64_t>(n);
      size -= static_cast<size_t>(n);
    }
  }
  uint64_t NextData(uint64_t offset) const override {
    if (!may_have_holes_) return offset;
    const off_t at = lseek(fd_, static_cast<off_t>(offset), SEEK_DATA);
    if (at >= 0) return std::min(static_cast<uint64_t>(at), size_);
    // ENXIO: only a hole follows, or the file has become shorter. Any other failure: holes are not known here.
    if (errno != ENXIO) return offset;
    if (static_cast<uint64_t>(StatOf(fd_, path_).st_size) < size_) FailChanged("lseek", path_);
    return size_;
  }

 private:
  int fd_;
  uint64_t size_;
  bool may_have_holes_;
  std::string_view path_;
};

std::string ReadTarget(int directory, const char* name, std::string_view path) {
  std::string target(PATH_MAX, '\0');
  const ssize_t n = readlinkat(directory, name, target.data(), target.size());
  if (n < 0 && (IsChange(errno) || errno == EINVAL)) FailChanged("readlink", path);
  if (n < 0) Fail(errno, "readlink", path);
  target.resize(static_cast<size_t>(n));
  return target;
}

/// Counts the links that lie inside the tree: an inode's own count may include others.
class LinkCounter {
 public:
  struct Link {
    uint32_t count;
    uint64_t id;
  };

  /// nullptr: one link only. The folder is gone through when the first candidate comes, most have none.
  const Link* Find(const struct stat& st, const UniqueFd& root, const std::unordered_set<std::string>& exclude) {
    if (st.st_nlink < 2) return nullptr;
    if (!counted_) Count(root, exclude);
    const auto found = links_.find({st.st_dev, st.st_ino});
    return found == links_.end() ? nullptr : &found->second;
  }

 private:
  void Count(const UniqueFd& root, const std::unordered_set<std::string>& exclude) {
    Traversal traversal(root, exclude);
    for (Traversal::Step step; (step = traversal.Next()) != Traversal::Step::kEnd;) {
      const struct stat& st = traversal.status();
      if (step == Traversal::Step::kEntry && st.st_nlink > 1) ++links_[{st.st_dev, st.st_ino}].count;
    }
    std::erase_if(links_, [](const auto& item) { return item.second.count < 2; });
    uint64_t id = 0;
    for (auto& item : links_) item.second.id = ++id;
    counted_ = true;
  }

  std::map<std::pair<dev_t, ino_t>, Link> links_;
  bool counted_ = false;
};

}  // namespace

DirectoryTree::DirectoryTree(const std::string& path, const std::vector<std::string>& exclude)
    : root_(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)), exclude_(exclude.begin(), exclude.end()) {
  if (!root_) Fail(errno, "open", path);
}

void DirectoryTree::Walk(TreeVisitor& visitor) {
  Traversal traversal(root_, exclude_);
  struct statfs system {};
  const bool is_served = fstatfs(root_.get(), &system) == 0 && system.f_type == kFuseMagic;
  uint32_t any_xattrs = 1;
  // What is no scratch of ours leaves it at that.
  if (is_served) ioctl(root_.get(), kScratchXattrs, &any_xattrs);
  XattrReader xattrs(any_xattrs != 0);
  LinkCounter links;
  for (Traversal::Step step; (step = traversal.Next()) != Traversal::Step::kEnd;) {
    if (step == Traversal::Step::kLeave) {
      visitor.LeaveDirectory();
      continue;
    }
    struct stat st = traversal.status();
    const std::string& path = traversal.path();
    UniqueFd fd;
    if (S_ISREG(st.st_mode)) {
      if (is_served) traversal.ReadAhead();
      // Non-blocking, in case a fifo has taken the name.
      fd = OpenAt(traversal.Directory(), traversal.name(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, path);
      const struct stat opened = StatOf(fd.get(), path);
      if (!S_ISREG(opened.st_mode) || !SameInode(opened, st)) FailChanged("open", path);
      st = opened;
    }

    TreeEntry entry;
    entry.path = path;
    entry.mode = st.st_mode;
    entry.uid = st.st_uid;
    entry.gid = st.st_gid;
    entry.mtime = st.st_mtim.tv_sec;
    if (step == Traversal::Step::kEnter) {
      entry.xattrs = xattrs.OfFile(traversal.Directory(), path);
      visitor.EnterDirectory(entry);
      continue;
    }
    if (const LinkCounter::Link* link = links.Find(st, root_, exclude_)) {
      entry.links = link->count;
      entry.link_id = link->id;
    }
    if (S_ISREG(st.st_mode)) {
      entry.xattrs = xattrs.OfFile(fd.get(), path);
      visitor.AddFile(entry, OpenFile(fd.get(), st, path));
      continue;
    }
    entry.xattrs = xattrs.OfEntry(traversal.Directory(), traversal.name(), path);
    if (S_ISLNK(st.st_mode)) entry.target = ReadTarget(traversal.Directory(), traversal.name(), path);
    if (S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode)) entry.rdev = st.st_rdev;
    visitor.AddSpecial(entry);
  }
}

std::optional<uint64_t> DirectoryTree::ContentSize(const std::atomic<bool>& stop) const try {
  Traversal traversal(root_, exclude_);
  std::set<std::pair<dev_t, ino_t>> linked;
  uint64_t sum = 0;
  for (Traversal::Step step; (step = traversal.Next()) != Traversal::Step::kEnd;) {
    if (stop) return std::nullopt;
    const struct stat& st = traversal.status();
    if (step != Traversal::Step::kEntry || !S_ISREG(st.st_mode)) continue;
    if (st.st_nlink > 1 && !linked.insert({st.st_dev, st.st_ino}).second) continue;
    sum += static_cast<uint64_t>(st.st_size);
  }
  return sum;
} catch (const SystemError&) {
  return std::nullopt;
}

ContentCounter::ContentCounter(const DirectoryTree& tree)
    : thread_([this, &tree] {
        if (const std::optional<uint64_t> size = tree.ContentSize(stop_)) {
          total_ = *size;
          known_ = true;
        }
      }) {}

ContentCounter::~ContentCounter() {
  stop_ = true;
  thread_.join();
}

std::optional<uint64_t> ContentCounter::total() const {
  return known_ ? std::optional<uint64_t>(total_) : std::nullopt;
}

}  // namespace sifcrypt
