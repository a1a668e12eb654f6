#include "starter/namespaces.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <optional>
#include <string>

#include "core/system_error.h"
#include "core/unique_fd.h"
#include "starter/processes.h"
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

/// What is inside there is the same inside here.
std::string SameIds(const std::vector<IdRange>& ranges) {
  if (ranges.empty()) return "0 0 1";
  std::string map;
  for (const IdRange& range : ranges) {
    const std::string first = std::to_string(range.inside);
    map += first + " " + first + " " + std::to_string(range.count) + "\n";
  }
  return map;
}

}  // namespace

void EnterNamespacesBelow(int parent, const std::vector<IdRange>& uids, const std::vector<IdRange>& gids, int more) {
  CheckErrno(setns(parent, CLONE_NEWUSER), "userns");
  const pid_t self = getpid();
  std::pair<Channel, Channel> ends = Channel::Pair();
  // newuidmap knows the machine's ids only. Root of the one above may map all that there is of them.
  const pid_t helper = ForkChild([&] {
    if (!ends.second.Receive()) return 0;
    try {
      const std::string folder = "/proc/" + std::to_string(self);
      if (uids.empty()) WriteText(folder + "/setgroups", "deny");
      WriteText(folder + "/uid_map", SameIds(uids));
      WriteText(folder + "/gid_map", SameIds(gids));
      ends.second.Send({.kind = Message::Kind::kMapIds});
    } catch (const SystemError& failure) {
      ends.second.SendFailure(failure, "userns");
    }
    return 0;
  });
  ends.second.Close();
  CheckErrno(unshare(more | CLONE_NEWNS | CLONE_NEWUSER), "userns");
  ends.first.Send({.kind = Message::Kind::kMapIds});
  const auto answer = ends.first.Receive();
  while (waitpid(helper, nullptr, __WALL) < 0 && errno == EINTR) {
  }
  if (!answer) throw SystemError(EPIPE, "userns", "the ids were not mapped");
  if (answer->kind != Message::Kind::kMapIds) throw SystemError(answer->error, "userns", answer->text);
  CheckErrno(mount(nullptr, "/", nullptr, MS_REC | MS_SLAVE, nullptr), "userns");
}

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

void TranslateOwner(std::optional<Owner>& owner) {
  if (geteuid() == 0 || !owner) return;
  if (owner->uid == geteuid()) owner->uid = 0;
  if (owner->gid == getegid()) owner->gid = 0;
}

void ShowUnifiedCgroups() {
  if (!IsCgroup2(kCgroups) && IsCgroup2(kUnifiedCgroups))
    CheckErrno(mount(kUnifiedCgroups, kCgroups, nullptr, MS_BIND, nullptr), "mount");
}

}  // namespace sifcrypt::starter
