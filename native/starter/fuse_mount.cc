#include "starter/fuse_mount.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <memory>
#include <sstream>
#include <vector>

#include "core/system_error.h"
#include "starter/channel.h"
#include "starter/spawn.h"

namespace sifcrypt::starter {
namespace {

constexpr char kTypePrefix[] = "fuse.";
/// What is unmounted here: ours under both names, and the kernel's.
constexpr const char* kTypes[] = {"fuse.sifcrypt", "fuse.squashfuse_ll", "squashfs"};
/// Fixed places: no PATH of the caller decides what runs.
constexpr const char* kFusermounts[] = {"/usr/bin/fusermount3", "/bin/fusermount3", "/usr/local/bin/fusermount3",
                                        "/usr/bin/fusermount", "/bin/fusermount"};

std::string FindFusermount() {
  for (const char* path : kFusermounts)
    if (access(path, X_OK) == 0) return path;
  throw SystemError(ENOENT, "fuse", "fusermount3 is not installed");
}

/// Runs fusermount3 with `channel` as its standard input. Throws with what it complained about.
void RunFusermount(const std::vector<std::string>& arguments, int channel) {
  RunProgram(FindFusermount(), arguments, "fuse", channel, "_FUSE_COMMFD=0");
}

void AskForUnmount(const std::vector<std::string>& arguments) {
  const UniqueFd nothing(open("/dev/null", O_RDWR | O_CLOEXEC));
  try {
    RunFusermount(arguments, nothing.get());
  } catch (const SystemError&) {
    // Unmounted by somebody else in the meantime, in use, or nothing that can be done about.
  }
}

/// In fusermount3's list of options a comma ends one, unless a backslash stands before it.
std::string EscapeOption(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    if (c == ',' || c == '\\') escaped += '\\';
    escaped += c;
  }
  return escaped;
}

/// mountinfo writes blanks and backslashes in octal.
std::string DecodePath(const std::string& text) {
  std::string path;
  for (size_t at = 0; at < text.size(); ++at) {
    if (text[at] == '\\' && at + 3 < text.size()) {
      path += static_cast<char>((text[at + 1] - '0') * 64 + (text[at + 2] - '0') * 8 + (text[at + 3] - '0'));
      at += 3;
    } else {
      path += text[at];
    }
  }
  return path;
}

}  // namespace

UniqueFd MountFuse(const std::string& target, const std::string& source, unsigned long flags, const std::string& access,
                   const std::string& subtype) {
  UniqueFd device(open("/dev/fuse", O_RDWR | O_CLOEXEC));
  if (!device) throw SystemError(errno, "fuse", std::string("/dev/fuse: ") + std::strerror(errno));
  const std::string data = "fd=" + std::to_string(device.get()) +
                           ",rootmode=40000,user_id=" + std::to_string(geteuid()) +
                           ",group_id=" + std::to_string(getegid()) + (access.empty() ? "" : ",") + access +
                           ",max_read=" + std::to_string(kFuseMaxRead);
  CheckErrno(mount(source.c_str(), target.c_str(), (kTypePrefix + subtype).c_str(), flags, data.c_str()), "mount");
  return device;
}

UniqueFd MountFuseUnprivileged(const std::string& target, const std::string& source, int kept, unsigned long flags,
                               const std::string& access, const std::string& subtype) {
  // Unlike all others this one is inherited.
  const UniqueFd inherited(CheckErrno(fcntl(kept, F_DUPFD, STDERR_FILENO + 1), "fcntl"));
  auto [ours, theirs] = Channel::Pair();
  RunFusermount({"-o",
                 std::string("ro,nosuid,nodev") + ((flags & MS_NOEXEC) != 0 ? ",noexec" : "") +
                     ((flags & MS_NOATIME) != 0 ? ",noatime" : "") + ",subtype=" + subtype +
                     ",max_read=" + std::to_string(kFuseMaxRead) + (access.empty() ? "" : ",") + access +
                     ",fsname=" + EscapeOption(source),
                 "--", target},
                theirs.fd());
  theirs.Close();
  UniqueFd device;
  ours.Receive(&device);
  if (!device) throw SystemError(EPROTO, "fuse", "fusermount3 gave no device");
  return device;
}

std::string RealPath(const std::string& path) {
  const std::unique_ptr<char, decltype(&free)> real(realpath(path.c_str(), nullptr), free);
  if (!real) throw SystemError(errno, "mount", path + ": " + std::strerror(errno));
  return real.get();
}

std::string MountIdentity(const std::string& target) {
  std::ifstream mounts("/proc/self/mountinfo");
  std::string line, found;
  while (std::getline(mounts, line)) {
    std::istringstream fields(line);
    std::string id, parent, device, root, place, field, type, source;
    fields >> id >> parent >> device >> root >> place;
    if (DecodePath(place) != target) continue;
    while (fields >> field && field != "-") {
    }
    fields >> type >> source;
    const bool is_ours = std::find(std::begin(kTypes), std::end(kTypes), type) != std::end(kTypes);
    found = is_ours ? device + ' ' + source : "";
  }
  return found;
}

void Unmount(const std::string& target, const std::string& identity) {
  if (identity.empty() || MountIdentity(target) != identity) return;
  if (umount2(target.c_str(), UMOUNT_NOFOLLOW) == 0) return;
  if (errno == EBUSY) {
    umount2(target.c_str(), UMOUNT_NOFOLLOW | MNT_DETACH);
    return;
  }
  if (errno == EPERM) AskForUnmount({"-u", "-q", "-z", "--", target});
}

void UnmountUnused(const std::string& target, const std::string& identity) {
  if (identity.empty() || MountIdentity(target) != identity) return;
  if (umount2(target.c_str(), UMOUNT_NOFOLLOW) != 0 && errno == EPERM) AskForUnmount({"-u", "-q", "--", target});
}

}  // namespace sifcrypt::starter
