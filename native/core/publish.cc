#include "core/publish.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <unistd.h>

#include "core/unique_fd.h"

namespace sifcrypt::publish {
namespace {

std::string FolderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

/// Not longer because the final name is long.
std::string RandomName() {
  uint8_t random[12];
  if (getrandom(random, sizeof random, 0) != static_cast<ssize_t>(sizeof random)) throw SystemError(EIO, "getrandom");
  std::string name = ".sifcrypt-";
  for (const uint8_t byte : random) {
    char hex[3];
    snprintf(hex, sizeof hex, "%02x", byte);
    name += hex;
  }
  return name;
}

/// A folder, open to be synced. Invalid where one may write but not read: there is no other way to sync it.
UniqueFd OpenFolder(const std::string& path) {
  UniqueFd folder(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder && errno != EACCES) throw SystemError(errno, "open");
  return folder;
}

void SyncFolder(const UniqueFd& folder) {
  // Some file systems do not sync folders (EINVAL); the file itself was synced before.
  if (folder && fsync(folder.get()) != 0 && errno != EINVAL && errno != ENOTSUP) throw SystemError(errno, "fsync");
}

}  // namespace

void LinkInto(int fd, const std::string& path, bool replace) {
  CheckErrno(fsync(fd), "fsync");
  // Now: what fails after the file has its name would look as if there were none.
  const UniqueFd folder = OpenFolder(FolderOf(path));
  const std::string source = "/proc/self/fd/" + std::to_string(fd);
  if (!replace) {
    CheckErrno(linkat(AT_FDCWD, source.c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW), "linkat");
  } else {
    // link(2) cannot replace and rename(2) needs a name: a random one, alive for two system calls.
    const std::string temporary = FolderOf(path) + '/' + RandomName();
    CheckErrno(linkat(AT_FDCWD, source.c_str(), AT_FDCWD, temporary.c_str(), AT_SYMLINK_FOLLOW), "linkat");
    if (rename(temporary.c_str(), path.c_str()) != 0) {
      const int error = errno;
      unlink(temporary.c_str());
      throw SystemError(error, "rename");
    }
  }
  SyncFolder(folder);
}

bool Lock(int fd) {
  while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return false;
    if (errno != EINTR) throw SystemError(errno, "flock");
  }
  return true;
}

Holder LockRange(int fd, int64_t start, int64_t length, bool exclusive) {
  const auto range = [&](int type) {
    struct flock lock {};
    lock.l_type = static_cast<short>(type);
    lock.l_whence = SEEK_SET;
    lock.l_start = start;
    lock.l_len = length;
    return lock;
  };
  // What would keep a lock of this type away from us.
  const auto blocker = [&](int type) {
    struct flock lock = range(type);
    CheckErrno(fcntl(fd, F_OFD_GETLK, &lock), "fcntl");
    return lock.l_type;
  };
  for (;;) {
    struct flock lock = range(exclusive ? F_WRLCK : F_RDLCK);
    if (fcntl(fd, F_OFD_SETLK, &lock) == 0) return Holder::kNone;
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != EACCES) throw SystemError(errno, "fcntl");
    if (!exclusive) return Holder::kWriter;
    switch (blocker(F_WRLCK)) {
      case F_UNLCK:
        continue;  // gone meanwhile
      case F_WRLCK:
        return Holder::kWriter;
      default:
        // It is the first that is told, and a writer may be behind it: only such a one keeps readers away.
        return blocker(F_RDLCK) == F_UNLCK ? Holder::kReaders : Holder::kWriter;
    }
  }
}

void Unmount(const std::string& path, bool lazy) {
  CheckErrno(umount2(path.c_str(), UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)), "umount2");
}

}  // namespace sifcrypt::publish
