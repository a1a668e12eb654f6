#define FUSE_USE_VERSION 312

#include "starter/scratch_server.h"

#include <fuse3/fuse_lowlevel.h>
#include <sys/stat.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <new>
#include <string>
#include <utility>

#include "core/system_error.h"
#include "starter/fuse_answers.h"

namespace sifcrypt::starter {
namespace {

struct Server : FuseFileSystem {
  Server(std::unique_ptr<ScratchTree> given, ScratchRights theirs)
      : tree(std::move(given)), rights(std::move(theirs)) {}
  /// The filling that pieces are written to there.
  std::shared_ptr<ScratchFilling> FillingOf(fuse_ino_t ino) {
    const std::lock_guard lock(mutex);
    return filling && filling->file() == ino ? filling : nullptr;
  }
  void SetFilling(std::shared_ptr<ScratchFilling> given) {
    const std::lock_guard lock(mutex);
    filling = std::move(given);
  }

  std::unique_ptr<ScratchTree> tree;
  ScratchRights rights;
  std::mutex mutex;
  std::shared_ptr<ScratchFilling> filling;
  /// What a program wrote through a mapping could not be kept, and nobody was there to be told.
  std::atomic<bool> lost = false;
};

template <typename Body>
void Answer(fuse_req_t request, Body body) noexcept {
  const auto meaning = [](const SystemError& failure) { return failure.error(); };
  AnswerBy<Server>(request, meaning, [&](Server& server) { body(server, *server.tree); });
}

fuse_entry_param EntryOf(const struct stat& attributes) {
  fuse_entry_param entry{};
  entry.ino = attributes.st_ino;
  entry.attr = attributes;
  entry.attr_timeout = entry.entry_timeout = kForever;
  return entry;
}

void ReplyEntry(fuse_req_t request, ScratchTree& tree, const struct stat& attributes) {
  const fuse_entry_param entry = EntryOf(attributes);
  // Who asked has been interrupted: the kernel does not know of it.
  if (fuse_reply_entry(request, &entry) != 0) tree.Forget(entry.ino, 1);
}

ScratchTree::New NewOf(fuse_req_t request, mode_t mode, dev_t rdev = 0) {
  const fuse_ctx* caller = fuse_req_ctx(request);
  return {mode, rdev, caller->uid, caller->gid, {}};
}

void OnInit(void* data, fuse_conn_info* connection) {
  // Set-uid bits are taken away, and files cut short, by requests of their own.
  Connect(*static_cast<FuseFileSystem*>(data), connection,
          {FUSE_CAP_READDIRPLUS_AUTO, FUSE_CAP_AUTO_INVAL_DATA, FUSE_CAP_HANDLE_KILLPRIV, FUSE_CAP_ATOMIC_O_TRUNC});
}

void OnLookup(fuse_req_t request, fuse_ino_t parent, const char* name) {
  Answer(request, [&](Server&, ScratchTree& tree) {
    if (const auto found = tree.Lookup(parent, name)) return ReplyEntry(request, tree, *found);
    fuse_entry_param none{};
    none.entry_timeout = kForever;
    fuse_reply_entry(request, &none);
  });
}

void OnForget(fuse_req_t request, fuse_ino_t ino, uint64_t uses) {
  static_cast<Server*>(static_cast<FuseFileSystem*>(fuse_req_userdata(request)))->tree->Forget(ino, uses);
  fuse_reply_none(request);
}

void OnGetAttr(fuse_req_t request, fuse_ino_t ino, fuse_file_info*) {
  Answer(request, [&](Server&, ScratchTree& tree) {
    const struct stat attributes = tree.Attributes(ino);
    fuse_reply_attr(request, &attributes, kForever);
  });
}

void OnSetAttr(fuse_req_t request, fuse_ino_t ino, struct stat* wanted, int which, fuse_file_info*) {
  Answer(request, [&](Server&, ScratchTree& tree) {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    ScratchTree::Change change;
    if (which & FUSE_SET_ATTR_MODE) change.mode = wanted->st_mode;
    if (which & FUSE_SET_ATTR_UID) change.uid = wanted->st_uid;
    if (which & FUSE_SET_ATTR_GID) change.gid = wanted->st_gid;
    if (which & FUSE_SET_ATTR_SIZE) change.size = static_cast<uint64_t>(wanted->st_size);
    if (which & FUSE_SET_ATTR_ATIME) change.atime = which & FUSE_SET_ATTR_ATIME_NOW ? now : wanted->st_atim;
    if (which & FUSE_SET_ATTR_MTIME) change.mtime = which & FUSE_SET_ATTR_MTIME_NOW ? now : wanted->st_mtim;
    const struct stat attributes = tree.SetAttributes(ino, change);
    fuse_reply_attr(request, &attributes, kForever);
  });
}

void OnReadLink(fuse_req_t request, fuse_ino_t ino) {
  Answer(request, [&](Server&, ScratchTree& tree) { fuse_reply_readlink(request, tree.Target(ino).c_str()); });
}

void OnMkNod(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode, dev_t rdev) {
  Answer(request, [&](Server&, ScratchTree& tree) {
    ReplyEntry(request, tree, tree.Make(parent, name, NewOf(request, mode, rdev)));
  });
}

void OnMkDir(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode) {
  OnMkNod(request, parent, name, S_IFDIR | (mode & ~static_cast<mode_t>(S_IFMT)), 0);
}

void OnSymlink(fuse_req_t request, const char* target, fuse_ino_t parent, const char* name) {
  Answer(request, [&](Server&, ScratchTree& tree) {
    ScratchTree::New wanted = NewOf(request, S_IFLNK | 0777);
    wanted.target = target;
    ReplyEntry(request, tree, tree.Make(parent, name, wanted));
  });
}

void OnCreate(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode, fuse_file_info* file) {
  Answer(request, [&](Server&, ScratchTree& tree) {
    const mode_t bits = S_IFREG | (mode & ~static_cast<mode_t>(S_IFMT));
    const fuse_entry_param entry = EntryOf(tree.Make(parent, name, NewOf(request, bits)));
    file->keep_cache = 1;
    if (fuse_reply_create(request, &entry, file) != 0) tree.Forget(entry.ino, 1);
  });
}

void OnUnlink(fuse_req_t request, fuse_ino_t parent, const char* name) {
  Answer(request, [&](Server&, ScratchTree& tree) {
    tree.Unlink(parent, name);
    fuse_reply_err(request, 0);
  });
}

void OnRmDir(fuse_req_t request, fuse_ino_t parent, const char* name) {
  Answer(request, [&](Server&, ScratchTree& tree) {
    tree.RemoveDirectory(parent, name);
    fuse_reply_err(request, 0);
  });
}

void OnRename(fuse_req_t request, fuse_ino_t parent, const char* name, fuse_ino_t new_parent, const char* new_name,
              unsigned flags) {
  Answer(request, [&](Server&, ScratchTree& tree) {
    tree.Rename(parent, name, new_parent, new_name, flags);
    fuse_reply_err(request, 0);
  });
}

void OnLink(fuse_req_t request, fuse_ino_t ino, fuse_ino_t parent, const char* name) {
  Answer(request, [&](Server&, ScratchTree& tree) { ReplyEntry(request, tree, tree.Link(ino, parent, name)); });
}

void OnRead(fuse_req_t request, fuse_ino_t ino, size_t size, off_t offset, fuse_file_info*) {
  Answer(request, [&](Server&, ScratchTree& tree) {
    size = std::min<size_t>(size, kFuseMaxRead);
    // Not std::make_unique, which would clear it first, and not make_unique_for_overwrite, which GCC 10 has not.
    const std::unique_ptr<char[]> bytes(new char[size]);
    const size_t n = tree.Read(ino, static_cast<uint64_t>(offset), bytes.get(), size);
    fuse_reply_buf(request, bytes.get(), n);
  });
}

/// The kernel has looked at nothing but whether something could be opened: owners, modes and devices are root's to give.
void CheckRoot(fuse_req_t request) {
  if (fuse_req_ctx(request)->uid != 0) throw SystemError(EPERM, "scratch");
}

void OnWrite(fuse_req_t request, fuse_ino_t ino, const char* data, size_t size, off_t offset, fuse_file_info* file) {
  Answer(request, [&](Server& server, ScratchTree& tree) {
    if (const auto filling = server.FillingOf(ino)) {
      CheckRoot(request);
      if (filling->Take(static_cast<uint64_t>(offset), data, size)) server.SetFilling(nullptr);
      fuse_reply_write(request, size);
      return;
    }
    try {
      const size_t written = tree.Write(ino, static_cast<uint64_t>(offset), data, size);
      if (file->writepage && written < size) server.lost = true;
      fuse_reply_write(request, written);
    } catch (const SystemError&) {
      if (file->writepage) server.lost = true;
      throw;
    }
  });
}

void OnFallocate(fuse_req_t request, fuse_ino_t ino, int mode, off_t offset, off_t size, fuse_file_info*) {
  Answer(request, [&](Server&, ScratchTree& tree) {
    tree.Allocate(ino, mode, static_cast<uint64_t>(offset), static_cast<uint64_t>(size));
    fuse_reply_err(request, 0);
  });
}

void OnSeek(fuse_req_t request, fuse_ino_t ino, off_t offset, int whence, fuse_file_info*) {
  Answer(request, [&](Server&, ScratchTree& tree) {
    fuse_reply_lseek(request, static_cast<off_t>(tree.Seek(ino, static_cast<uint64_t>(offset), whence)));
  });
}

void OnStatFs(fuse_req_t request, fuse_ino_t) {
  Answer(request, [&](Server& server, ScratchTree& tree) {
    struct statvfs statistics = tree.Statistics();
    // Nothing more may be made, so that whoever looks at the end knows.
    if (server.lost) statistics.f_ffree = statistics.f_favail = 0;
    fuse_reply_statfs(request, &statistics);
  });
}

/// Lists of other users' rights would have to be enforced: there are none, as in the images that are built.
bool IsAccessList(const char* name) { return std::strncmp(name, "system.posix_acl_", 17) == 0; }

void OnSetXattr(fuse_req_t request, fuse_ino_t ino, const char* name, const char* value, size_t size, int flags) {
  Answer(request, [&](Server&, ScratchTree& tree) {
    if (IsAccessList(name)) throw SystemError(EOPNOTSUPP, "scratch");
    tree.SetXattr(ino, name, std::string(value, size), flags);
    fuse_reply_err(request, 0);
  });
}

void OnGetXattr(fuse_req_t request, fuse_ino_t ino, const char* name, size_t size) {
  Answer(request, [&](Server&, ScratchTree& tree) {
    if (IsAccessList(name)) throw SystemError(EOPNOTSUPP, "scratch");
    const auto value = tree.Xattr(ino, name);
    if (!value) throw SystemError(ENODATA, "scratch");
    ReplyXattr(request, *value, size);
  });
}

void OnListXattr(fuse_req_t request, fuse_ino_t ino, size_t size) {
  Answer(request, [&](Server&, ScratchTree& tree) { ReplyXattr(request, tree.XattrNames(ino), size); });
}

void OnRemoveXattr(fuse_req_t request, fuse_ino_t ino, const char* name) {
  Answer(request, [&](Server&, ScratchTree& tree) {
    tree.RemoveXattr(ino, name);
    fuse_reply_err(request, 0);
  });
}

template <bool plus>
void OnReadDir(fuse_req_t request, fuse_ino_t ino, size_t size, off_t offset, fuse_file_info*) {
  Answer(request, [&](Server&, ScratchTree& tree) {
    Listing<plus> listing(request, size);
    const auto add = [&](const std::string& name, const struct stat& attributes, uint64_t next) {
      return listing.Add(name, EntryOf(attributes), next);
    };
    auto place = static_cast<uint64_t>(offset);
    for (const uint64_t dots : {1, 2}) {
      if (place >= dots) continue;
      struct stat attributes {};
      attributes.st_ino = dots == 1 ? ino : tree.ParentOf(ino);
      attributes.st_mode = S_IFDIR;
      // The kernel does not count these two.
      if (!add(dots == 1 ? "." : "..", attributes, dots)) break;
      place = dots;
    }
    if (place >= ScratchTree::kFirstPlace - 1) tree.List(ino, place, plus, add);
    listing.Reply();
  });
}

void OnIoctl(fuse_req_t request, fuse_ino_t ino, unsigned command, void*, fuse_file_info*, unsigned, const void* given,
             size_t size, size_t) {
  Answer(request, [&](Server& server, ScratchTree& tree) {
    if (command == kScratchXattrs) {
      const uint32_t any = tree.has_xattrs() ? 1 : 0;
      fuse_reply_ioctl(request, 0, &any, sizeof any);
      return;
    }
    ScratchTree::Id pieces = 0;
    if (command != kScratchFill || size != sizeof pieces) throw SystemError(ENOTTY, "scratch");
    CheckRoot(request);
    std::memcpy(&pieces, given, sizeof pieces);
    server.SetFilling(std::make_shared<ScratchFilling>(tree, ino, pieces, server.rights));
    fuse_reply_ioctl(request, 0, nullptr, 0);
  });
}

fuse_lowlevel_ops Operations() {
  fuse_lowlevel_ops operations = OpeningOperations();
  operations.init = OnInit;
  operations.lookup = OnLookup;
  operations.forget = OnForget;
  operations.getattr = OnGetAttr;
  operations.setattr = OnSetAttr;
  operations.readlink = OnReadLink;
  operations.mknod = OnMkNod;
  operations.mkdir = OnMkDir;
  operations.symlink = OnSymlink;
  operations.create = OnCreate;
  operations.unlink = OnUnlink;
  operations.rmdir = OnRmDir;
  operations.rename = OnRename;
  operations.link = OnLink;
  operations.read = OnRead;
  operations.write = OnWrite;
  operations.fallocate = OnFallocate;
  operations.ioctl = OnIoctl;
  operations.lseek = OnSeek;
  operations.statfs = OnStatFs;
  operations.setxattr = OnSetXattr;
  operations.getxattr = OnGetXattr;
  operations.listxattr = OnListXattr;
  operations.removexattr = OnRemoveXattr;
  operations.readdir = OnReadDir<false>;
  operations.readdirplus = OnReadDir<true>;
  return operations;
}

}  // namespace

std::unique_ptr<FuseSession> ServeScratchTree(std::unique_ptr<ScratchTree> tree, ScratchRights rights,
                                              UniqueFd device) {
  return std::make_unique<FuseSession>(Operations(), std::make_unique<Server>(std::move(tree), std::move(rights)),
                                       std::move(device));
}

}  // namespace sifcrypt::starter
