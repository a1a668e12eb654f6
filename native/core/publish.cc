#include "core/publish.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <unistd.h>

#include "core/unique_fd.h"

namespace sifcrypt::publish {
namespace {

std::string RandomSibling(const std::string& path) {
  uint8_t random[12];
  if (getrandom(random, sizeof random, 0) != static_cast<ssize_t>(sizeof random)) throw SystemError(EIO, "getrandom");
  std::string name = path + ".";
  for (const uint8_t byte : random) {
    char hex[3];
    snprintf(hex, sizeof hex, "%02x", byte);
    name += hex;
  }
  return name;
}

void SyncFolder(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
  const UniqueFd fd(CheckErrno(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC), "open"));
  // Some file systems do not sync folders (EINVAL); the file itself was synced before.
  if (fsync(fd.get()) != 0 && errno != EINVAL && errno != ENOTSUP) throw SystemError(errno, "fsync");
}

}  // namespace

void LinkInto(int fd, const std::string& path, bool replace) {
  CheckErrno(fsync(fd), "fsync");
  const std::string source = "/proc/self/fd/" + std::to_string(fd);
  if (!replace) {
    CheckErrno(linkat(AT_FDCWD, source.c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW), "linkat");
  } else {
    // link(2) cannot replace and rename(2) needs a name: a random one, alive for two system calls.
    const std::string temporary = RandomSibling(path);
    CheckErrno(linkat(AT_FDCWD, source.c_str(), AT_FDCWD, temporary.c_str(), AT_SYMLINK_FOLLOW), "linkat");
    if (rename(temporary.c_str(), path.c_str()) != 0) {
      const int error = errno;
      unlink(temporary.c_str());
      throw SystemError(error, "rename");
    }
  }
  SyncFolder(path);
}

void Unmount(const std::string& path, bool lazy) {
  CheckErrno(umount2(path.c_str(), UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)), "umount2");
}

}  // namespace sifcrypt::publish
