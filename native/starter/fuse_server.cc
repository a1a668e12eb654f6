#define FUSE_USE_VERSION 312

#include "starter/fuse_server.h"

#include <fuse3/fuse_lowlevel.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <limits>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/system_error.h"
#include "starter/fuse_answers.h"

namespace sifcrypt::starter {
namespace {

constexpr uint32_t kBlockUnit = 512;
constexpr blksize_t kPreferredReadSize = 4096;
/// How far a search for data or a hole looks; what lies beyond counts as data.
constexpr uint64_t kMaxSeek = uint64_t{1} << 36;
/// "." and ".." come first in a directory; offsets of the others are the reader's cookies plus this.
constexpr uint64_t kDotEntries = 2;

/// Decodes blocks before they are asked for: the next ones of a file that is read from front to back, the later ones of a
/// long read while its first is being decoded, and what holds the next small files where those are read in their order.
class ReadAhead {
 public:
  explicit ReadAhead(std::shared_ptr<const SquashfsReader> reader, unsigned threads) : reader_(std::move(reader)) {
    for (unsigned i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
  }
  ~ReadAhead() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wanted_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  /// To be called before the read is answered.
  void Note(const InodePtr& file, uint64_t offset, size_t size) {
    const uint64_t block = reader_->info().block_size;
    const uint64_t end = offset + size;
    const std::lock_guard lock(mutex_);
    Stream& stream = streams_[file->ref % streams_.size()];
    const bool sequential = stream.ref == file->ref && stream.next == offset && offset > 0;
    stream.ref = file->ref;
    stream.next = end;
    uint64_t at = offset / block * block + block;
    const uint64_t ahead = sequential ? std::max<uint64_t>(size, block) : 0;
    const uint64_t limit = std::min(end + ahead, file->size);
    bool any = false;
    for (; at < limit && queue_.size() < kMaxQueue; at += block, any = true) queue_.push_back({file, at, 0});
    if (const std::optional<uint32_t> now = reader_->FragmentOf(*file); now && end >= file->size && *now != fragment_) {
      const bool in_order = *now == fragment_ + 1;
      fragment_ = *now;
      if (in_order && queue_.size() < kMaxQueue) {
        queue_.push_back({nullptr, 0, fragment_ + 1});
        any = true;
      }
    }
    if (any) wanted_.notify_all();
  }

 private:
  static constexpr size_t kMaxQueue = 16;
  struct Stream {
    InodeRef ref = UINT64_MAX;
    uint64_t next = 0;
  };
  /// A block of a file, or without one a fragment block.
  struct Wanted {
    InodePtr file;
    uint64_t offset = 0;
    uint32_t fragment = 0;
  };

  void Work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wanted_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
      if (stopping_) return;
      const Wanted next = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      try {
        if (next.file)
          reader_->Prefetch(*next.file, next.offset);
        else
          reader_->PrefetchFragment(next.fragment);
      } catch (const std::exception&) {
        // Whoever reads the block gets the error.
      }
      lock.lock();
    }
  }

  std::shared_ptr<const SquashfsReader> reader_;
  std::mutex mutex_;
  std::condition_variable wanted_;
  std::deque<Wanted> queue_;
  std::array<Stream, 64> streams_;
  /// That was read from last; the first has none before it.
  uint32_t fragment_ = UINT32_MAX - 1;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

/// Does the kernel get attributes with the names in a directory? Whoever looks at every file is saved a request for each of them. For
/// whoever wants names it makes inodes in vain, which takes several times as long. So with each listing one file comes without:
/// as long as such are asked for, attributes are wanted.
class AttributeHabit {
 public:
  bool AreWanted() const { return wanted_.load(std::memory_order_relaxed); }

  /// A directory is listed without attributes of its files.
  void NoteListing(InodeRef directory) { listed_.at(SlotOf(directory)) = directory; }
  /// With all but those of this file.
  void NoteLeftOut(InodeRef file) { left_out_.at(SlotOf(file)) = file; }
  /// So many files came with theirs.
  void NoteGiven(size_t files) {
    if (in_vain_.fetch_add(files, std::memory_order_relaxed) + files >= kPatience) wanted_ = false;
  }
  /// A file of a directory is asked for by its name.
  void NoteLookup(InodeRef directory, InodeRef file) {
    if (left_out_.at(SlotOf(file)) != file && (wanted_ || listed_.at(SlotOf(directory)) != directory)) return;
    in_vain_ = 0;
    wanted_ = true;
  }

 private:
  /// As many files as `xargs` takes from `find`, by names of 32 bytes, before it starts what reads them.
  static constexpr size_t kPatience = 4096;
  /// Of those noted last: what falls into one slot forgets the other.
  static constexpr size_t kSlots = 4096;
  using Noted = std::array<std::atomic<InodeRef>, kSlots>;
  static size_t SlotOf(InodeRef ref) { return static_cast<size_t>(ref * 0x9e3779b97f4a7c15u >> 52); }

  std::atomic<bool> wanted_ = true;
  std::atomic<size_t> in_vain_ = 0;
  Noted left_out_{};
  Noted listed_{};
};

struct Server : FuseFileSystem {
  Server(std::shared_ptr<const SquashfsReader> squashfs, SquashfsView given)
      : reader(std::move(squashfs)),
        view(given),
        root(given.root.value_or(reader->Root())),
        read_ahead(reader, ReadAheadThreads()) {}

  static unsigned ReadAheadThreads() { return std::clamp(std::thread::hardware_concurrency(), 2u, 5u) - 1; }

  fuse_ino_t InoOf(InodeRef ref) const { return ref == root ? FUSE_ROOT_ID : ref + 2; }
  InodePtr InodeOf(fuse_ino_t ino) const { return reader->GetInode(ino == FUSE_ROOT_ID ? root : ino - 2); }

  struct stat StatOf(const Inode& inode) const {
    struct stat attributes {};
    attributes.st_ino = inode.inode_number;
    attributes.st_mode = FileTypeBits(inode.type) | inode.mode;
    attributes.st_nlink = inode.nlink;
    attributes.st_uid = view.uid.value_or(inode.uid);
    attributes.st_gid = view.gid.value_or(inode.gid);
    attributes.st_rdev = inode.rdev;
    attributes.st_size = static_cast<off_t>(inode.size);
    attributes.st_blocks = static_cast<blkcnt_t>(inode.size / kBlockUnit + (inode.size % kBlockUnit != 0));
    attributes.st_blksize = kPreferredReadSize;
    attributes.st_atim.tv_sec = attributes.st_mtim.tv_sec = attributes.st_ctim.tv_sec = inode.mtime;
    return attributes;
  }

  fuse_entry_param EntryOf(const Inode& inode) const {
    fuse_entry_param entry{};
    entry.ino = InoOf(inode.ref);
    entry.attr = StatOf(inode);
    entry.attr_timeout = entry.entry_timeout = kForever;
    return entry;
  }

  std::shared_ptr<const SquashfsReader> reader;
  SquashfsView view;
  InodeRef root;
  ReadAhead read_ahead;
  AttributeHabit habit;
};

/// The kernel learns of a damaged image as of a damaged disk.
template <typename Body>
void Answer(fuse_req_t request, Body body) noexcept {
  const auto meaning = [](const SystemError& failure) { return failure.error() == ENOMEM ? ENOMEM : EIO; };
  AnswerBy<Server>(request, meaning, body);
}

void OnInit(void* data, fuse_conn_info* connection) {
  Connect(*static_cast<FuseFileSystem*>(data), connection, {FUSE_CAP_READDIRPLUS_AUTO, FUSE_CAP_AUTO_INVAL_DATA});
}

void OnLookup(fuse_req_t request, fuse_ino_t parent, const char* name) {
  Answer(request, [&](Server& server) {
    if (std::strlen(name) > SquashfsReader::kMaxNameLength) {
      fuse_reply_err(request, ENAMETOOLONG);
      return;
    }
    const InodePtr directory = server.InodeOf(parent);
    fuse_entry_param entry{};
    entry.entry_timeout = kForever;  // with inode number 0: remembered that there is none
    if (const auto ref = server.reader->Lookup(*directory, name)) {
      const InodePtr inode = server.reader->GetInode(*ref);
      entry = server.EntryOf(*inode);
      if (inode->type != InodeType::kDirectory) server.habit.NoteLookup(directory->ref, *ref);
    }
    fuse_reply_entry(request, &entry);
  });
}

void OnGetAttr(fuse_req_t request, fuse_ino_t ino, fuse_file_info*) {
  Answer(request, [&](Server& server) {
    const struct stat attributes = server.StatOf(*server.InodeOf(ino));
    fuse_reply_attr(request, &attributes, kForever);
  });
}

void OnReadLink(fuse_req_t request, fuse_ino_t ino) {
  Answer(request, [&](Server& server) {
    const InodePtr inode = server.InodeOf(ino);
    if (inode->type == InodeType::kSymlink)
      fuse_reply_readlink(request, inode->target.c_str());
    else
      fuse_reply_err(request, EINVAL);
  });
}

void OnRead(fuse_req_t request, fuse_ino_t ino, size_t size, off_t offset, fuse_file_info*) {
  Answer(request, [&](Server& server) {
    const InodePtr file = server.InodeOf(ino);
    size = std::min<size_t>(size, kFuseMaxRead);
    server.read_ahead.Note(file, static_cast<uint64_t>(offset), size);
    const std::vector<PinnedBytes> pieces = server.reader->ReadPinned(*file, static_cast<uint64_t>(offset), size);
    std::vector<iovec> parts;
    parts.reserve(pieces.size());
    for (const PinnedBytes& piece : pieces) parts.push_back({const_cast<uint8_t*>(piece.data), piece.size});
    fuse_reply_iov(request, parts.data(), static_cast<int>(parts.size()));
  });
}

void OnSeek(fuse_req_t request, fuse_ino_t ino, off_t offset, int whence, fuse_file_info*) {
  Answer(request, [&](Server& server) {
    const InodePtr file = server.InodeOf(ino);
    const auto start = static_cast<uint64_t>(offset);
    if (start >= file->size) {
      fuse_reply_err(request, ENXIO);
      return;
    }
    bool hole = false;
    const uint64_t end = server.reader->ExtentEnd(*file, start, kMaxSeek, &hole);
    if (hole == (whence == SEEK_HOLE))
      fuse_reply_lseek(request, offset);
    else if (whence == SEEK_DATA && end >= file->size)
      fuse_reply_err(request, ENXIO);
    else if (whence == SEEK_HOLE && end - start >= kMaxSeek)
      fuse_reply_lseek(request, static_cast<off_t>(file->size));
    else
      fuse_reply_lseek(request, static_cast<off_t>(end));
  });
}

void OnStatFs(fuse_req_t request, fuse_ino_t) {
  Answer(request, [&](Server& server) {
    const SquashfsReader::Info& info = server.reader->info();
    struct statvfs answer {};
    answer.f_bsize = answer.f_frsize = info.block_size;
    answer.f_blocks = info.bytes_used / info.block_size + (info.bytes_used % info.block_size != 0);
    answer.f_files = info.inode_count;
    answer.f_namemax = SquashfsReader::kMaxNameLength;
    fuse_reply_statfs(request, &answer);
  });
}

void OnGetXattr(fuse_req_t request, fuse_ino_t ino, const char* name, size_t size) {
  Answer(request, [&](Server& server) {
    if (!server.view.has_xattrs) {
      fuse_reply_err(request, ENOSYS);
      return;
    }
    const InodePtr inode = server.InodeOf(ino);
    if (inode->has_xattrs()) {
      for (const Xattr& xattr : server.reader->Xattrs(*inode))
        if (xattr.name == name) return ReplyXattr(request, xattr.value, size);
    }
    fuse_reply_err(request, ENODATA);
  });
}

void OnListXattr(fuse_req_t request, fuse_ino_t ino, size_t size) {
  Answer(request, [&](Server& server) {
    if (!server.view.has_xattrs) {
      fuse_reply_err(request, ENOSYS);
      return;
    }
    std::string names;
    const InodePtr inode = server.InodeOf(ino);
    if (inode->has_xattrs())
      for (const Xattr& xattr : server.reader->Xattrs(*inode)) names.append(xattr.name).push_back('\0');
    ReplyXattr(request, names, size);
  });
}

template <bool plus>
void OnReadDir(fuse_req_t request, fuse_ino_t ino, size_t size, off_t offset, fuse_file_info*) {
  Answer(request, [&](Server& server) {
    const InodePtr directory = server.InodeOf(ino);
    auto position = static_cast<uint64_t>(offset);
    Listing<plus> listing(request, size);
    for (const char* name : {".", ".."}) {
      if (position >= kDotEntries || (position == 1 && name[1] == '\0')) continue;
      fuse_entry_param entry{};
      entry.attr.st_ino = name[1] == '\0' ? directory->inode_number : directory->parent_number;
      entry.attr.st_mode = S_IFDIR;
      if (!listing.Add(name, entry, ++position)) return listing.Reply();
    }
    const bool has_attributes = plus && server.habit.AreWanted();
    bool leaves_one_out = has_attributes && offset == 0;
    size_t given = 0;
    std::string name;
    if (plus && !has_attributes) server.habit.NoteListing(directory->ref);
    server.reader->ReadDir(*directory, position - kDotEntries, [&](const DirectoryEntry& found) {
      if (found.next_cookie > static_cast<uint64_t>(std::numeric_limits<off_t>::max()) - kDotEntries)
        throw FormatError("readdir", "position out of range");
      fuse_entry_param entry{};
      // Directories are looked into.
      const bool is_directory = found.type == InodeType::kDirectory;
      if (plus && (is_directory || (has_attributes && !leaves_one_out))) {
        entry = server.EntryOf(*server.reader->ReadInode(found.ref));
        if (!is_directory) ++given;
      } else {
        entry.attr.st_ino = found.inode_number;
        entry.attr.st_mode = FileTypeBits(found.type);
        if (leaves_one_out) server.habit.NoteLeftOut(found.ref);
        leaves_one_out = false;
      }
      name.assign(found.name);
      return listing.Add(name, entry, found.next_cookie + kDotEntries);
    });
    server.habit.NoteGiven(given);
    listing.Reply();
  });
}

fuse_lowlevel_ops Operations() {
  fuse_lowlevel_ops operations = OpeningOperations();
  operations.init = OnInit;
  operations.lookup = OnLookup;
  operations.getattr = OnGetAttr;
  operations.readlink = OnReadLink;
  operations.read = OnRead;
  operations.lseek = OnSeek;
  operations.statfs = OnStatFs;
  operations.getxattr = OnGetXattr;
  operations.listxattr = OnListXattr;
  operations.readdir = OnReadDir<false>;
  operations.readdirplus = OnReadDir<true>;
  return operations;
}

}  // namespace

std::unique_ptr<FuseSession> ServeSquashfs(std::shared_ptr<const SquashfsReader> reader, SquashfsView view,
                                           UniqueFd device) {
  return std::make_unique<FuseSession>(Operations(), std::make_unique<Server>(std::move(reader), view),
                                       std::move(device));
}

}  // namespace sifcrypt::starter
