#include "starter/stragglers.h"

#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "core/system_error.h"
#include "core/unique_fd.h"
#include "starter/crun.h"
#include "starter/processes.h"

namespace sifcrypt::starter {
namespace {

constexpr int kAttempts = 10;
#ifdef SYS_pidfd_send_signal
constexpr long kPidfdSendSignal = SYS_pidfd_send_signal;
#else
constexpr long kPidfdSendSignal = 424;
#endif

using Namespace = std::pair<dev_t, ino_t>;

/// Zeros: it is gone, or not this user's to look at.
Namespace MountNamespaceOf(pid_t process) {
  struct stat info {};
  if (stat(("/proc/" + std::to_string(process) + "/ns/mnt").c_str(), &info) != 0) return {};
  return {info.st_dev, info.st_ino};
}

bool IsThere(pid_t process) { return access(("/proc/" + std::to_string(process)).c_str(), F_OK) == 0; }

/// Is one of those above it, or itself, one of these? Where that cannot be said it is.
bool ComesOf(pid_t process, const std::vector<pid_t>& owners) {
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    pid_t one = process;
    for (;;) {
      if (std::find(owners.begin(), owners.end(), one) != owners.end()) return true;
      const pid_t parent = ParentOf(one);
      // Of another process namespace, or the first of this one.
      if (parent == 0) return false;
      // It has ended meanwhile, and what it has started has another parent now.
      if (parent < 0) break;
      one = parent;
    }
    if (!IsThere(process)) return true;
  }
  return true;
}

void Kill(const std::function<std::vector<pid_t>()>& owners, int patience_ms) {
  std::set<Namespace> own;
  for (const pid_t process : DescendantsOf(getpid())) own.insert(MountNamespaceOf(process));
  // What has gone over to the machine's has not made it.
  for (const pid_t process : {getpid(), pid_t{1}}) own.erase(MountNamespaceOf(process));
  own.erase(Namespace{});
  const auto is_inside = [&own](pid_t process) { return own.count(MountNamespaceOf(process)) > 0; };
  const int64_t give_up = NowMs() + patience_ms;
  do {
    bool has_found = false;
    std::vector<pid_t> known = owners();
    known.push_back(getpid());
    for (const pid_t process : AllProcesses()) {
      if (!is_inside(process) || ComesOf(process, known)) continue;
      // Its number cannot come to mean another one while this is open. One at a time: there may be more of them than descriptors.
      const UniqueFd held(OpenProcess(process));
      if (!held || !is_inside(process)) continue;
      known = owners();
      known.push_back(getpid());
      if (ComesOf(process, known)) continue;
      // In namespaces of their own, but its.
      SignalBelow(process, SIGKILL);
      has_found |= syscall(kPidfdSendSignal, held.get(), SIGKILL, nullptr, 0) == 0;
    }
    if (!has_found) return;
    const timespec pause{0, 5'000'000};
    nanosleep(&pause, nullptr);
  } while (NowMs() < give_up);
}

}  // namespace

void KillStragglers(const std::function<std::vector<pid_t>()>& owners, int patience_ms) {
  try {
    Kill(owners, patience_ms);
  } catch (const SystemError&) {
    // Without memory or a descriptor they cannot be seen. It is no reason to end what the others have.
  }
}

}  // namespace sifcrypt::starter
