#include "starter/namespaces.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cstring>
#include <optional>
#include <string>

#include "core/system_error.h"
#include "core/unique_fd.h"
#include "starter/spawn.h"

namespace sifcrypt::starter {
namespace {

constexpr char kCgroups[] = "/sys/fs/cgroup";
constexpr char kUnifiedCgroups[] = "/sys/fs/cgroup/unified";

void WriteText(const std::string& path, const std::string& text) {
  const UniqueFd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd || write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    throw SystemError(errno, "userns", path + ": " + std::strerror(errno));
}

bool IsCgroup2(const char* path) {
  struct statfs info {};
  return statfs(path, &info) == 0 && info.f_type == CGROUP2_SUPER_MAGIC;
}

/// `program`: newuidmap or newgidmap, which may map what /etc/subuid and /etc/subgid give the caller.
void WriteIdMap(const std::string& program, pid_t process, const std::vector<IdRange>& map) {
  std::vector<std::string> arguments{std::to_string(process)};
  for (const IdRange& range : map)
    for (const uint32_t number : {range.inside, range.outside, range.count})
      arguments.push_back(std::to_string(number));
  RunProgram(FindProgram(program, "userns"), arguments, "userns");
}

}  // namespace

bool EnterNamespaces(bool many_ids, const Channel& main, int more) {
  const uid_t uid = geteuid();
  const gid_t gid = getegid();
  const bool own_user_namespace = uid != 0;
  CheckErrno(unshare(more | CLONE_NEWNS | (own_user_namespace ? CLONE_NEWUSER : 0)), "userns");
  if (own_user_namespace && many_ids) {
    const auto mapped = main.Send({.kind = Message::Kind::kMapIds}) ? main.Receive() : std::nullopt;
    if (!mapped || mapped->kind != Message::Kind::kMapIds)
      throw SystemError(EPIPE, "userns", "the ids were not mapped");
  } else if (own_user_namespace) {
    WriteText("/proc/self/setgroups", "deny");
    WriteText("/proc/self/uid_map", "0 " + std::to_string(uid) + " 1");
    WriteText("/proc/self/gid_map", "0 " + std::to_string(gid) + " 1");
  }
  // Nothing of ours gets out; what the host mounts later still comes in.
  CheckErrno(mount(nullptr, "/", nullptr, MS_REC | MS_SLAVE, nullptr), "userns");
  return own_user_namespace;
}

void MapIds(pid_t process, const std::vector<IdRange>& uids, const std::vector<IdRange>& gids,
            const Channel& process_channel) {
  WriteIdMap("newuidmap", process, uids);
  WriteIdMap("newgidmap", process, gids);
  process_channel.Send({.kind = Message::Kind::kMapIds});
}

void ShowUnifiedCgroups() {
  if (!IsCgroup2(kCgroups) && IsCgroup2(kUnifiedCgroups))
    CheckErrno(mount(kUnifiedCgroups, kCgroups, nullptr, MS_BIND, nullptr), "mount");
}

}  // namespace sifcrypt::starter
