// sifcrypt-init: the first process of a container that needs one. It is linked statically, so that it runs in any image,
// and uses system calls only.
//
//   sifcrypt-init [--check-NAME=VALUE...] [--init] [--stay] -- PROGRAM [ARGUMENT...]
//   sifcrypt-init [--check-NAME=VALUE...] --stay
//   sifcrypt-init remount-root [--writable] [--suid] [--noexec] FOLDER
//
// The last is an OCI hook, in the container's mount namespace: it is here because this program starts in no time. For the first one
// it makes sure that the confinement that was asked for is there: a runtime that quietly leaves it out has happened
// (CVE-2025-65105, CVE-2025-64750). Then it becomes PROGRAM; with --init it stays process 1 instead: starts PROGRAM, gives
// it the terminal, passes signals on, reaps orphans, and ends with PROGRAM's status. With --stay it goes on when PROGRAM has
// ended, as an instance does, until a signal asks it to end: PROGRAM gets that first. Without one it does nothing but that.
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <initializer_list>

namespace {

constexpr int kFailure = 255;
constexpr int kMaxGroups = 65536;
constexpr int kMaxDescriptor = 1 << 16;
/// Any that is not mapped (/proc/sys/kernel/overflowgid, unless it was changed).
constexpr gid_t kOverflowGroup = 65534;

/// What messages begin with: the name by which the command was called.
const char* Name() {
  const char* name = getenv("_sifcrypt_name");
  return name == nullptr ? "sifcrypt" : name;
}

[[noreturn]] void Fail(const char* what, const char* detail = "") {
  dprintf(STDERR_FILENO, "%s: %s%s\n", Name(), what, detail);
  _exit(kFailure);
}

unsigned long ParseNumber(const char* text, int base) {
  char* end = nullptr;
  errno = 0;
  const unsigned long number = strtoul(text, &end, base);
  if (errno != 0 || end == text || *end != '\0') Fail("sifcrypt-init: not a number: ", text);
  return number;
}

void CheckUser(const char* value) {
  const uid_t wanted = static_cast<uid_t>(ParseNumber(value, 10));
  uid_t real, effective, saved;
  if (getresuid(&real, &effective, &saved) != 0 || real != wanted || effective != wanted || saved != wanted)
    Fail("the user id was not applied: ", value);
}

/// "GID[:GID...]": the first is the group, all of them the supplementary groups.
void CheckGroups(const char* value) {
  static gid_t groups[kMaxGroups];
  const int count = getgroups(kMaxGroups, groups);
  gid_t real, effective, saved;
  if (count < 0 || getresgid(&real, &effective, &saved) != 0) Fail("the groups cannot be read");
  bool first = true;
  static bool wanted_ones[kMaxGroups];
  char text[4096];
  if (snprintf(text, sizeof text, "%s", value) >= static_cast<int>(sizeof text)) Fail("too many groups");
  for (char *rest = text, *part; (part = strsep(&rest, ":")) != nullptr; first = false) {
    const gid_t wanted = static_cast<gid_t>(ParseNumber(part, 10));
    bool found = first && real == wanted && effective == wanted && saved == wanted;
    for (int i = 0; i < count; ++i) {
      if (groups[i] != wanted) continue;
      wanted_ones[i] = true;
      found |= !first;
    }
    if (!found) Fail("the group id was not applied: ", part);
  }
  // Those that a user namespace does not know cannot be taken away in it.
  for (int i = 0; i < count; ++i)
    if (!wanted_ones[i] && groups[i] != kOverflowGroup) Fail("other groups were not dropped");
}

/// "INHERITABLE:PERMITTED:EFFECTIVE:BOUNDING:AMBIENT" would all be the same: no set may hold more than this mask, in hex.
void CheckCapabilities(const char* value) {
  const uint64_t allowed = ParseNumber(value, 16);
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {};
  if (syscall(SYS_capget, &header, data) != 0) Fail("the capabilities cannot be read");
  uint64_t held = 0;
  for (unsigned word = 0; word < _LINUX_CAPABILITY_U32S_3; ++word)
    held |= static_cast<uint64_t>(data[word].effective | data[word].permitted | data[word].inheritable) << (32 * word);
  for (int capability = 0; capability < 64; ++capability) {
    const int bounding = prctl(PR_CAPBSET_READ, capability, 0, 0, 0);
    if (bounding < 0) break;
    const int ambient = prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, capability, 0, 0);
    if (bounding == 1 || ambient == 1) held |= uint64_t{1} << capability;
  }
  if ((held & ~allowed) != 0) Fail("capabilities were not dropped");
}

void CheckNoNewPrivileges(const char*) {
  if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1) Fail("no_new_privs was not set");
}

void CheckSeccomp(const char*) {
  // A filter may refuse the question itself; then there is a filter.
  const int mode = prctl(PR_GET_SECCOMP, 0, 0, 0, 0);
  if (mode == 0 || (mode < 0 && errno == EINVAL)) Fail("the seccomp filter was not applied");
}

/// The label of this process, as whichever security module is first shows it.
void CheckLabel(const char* kind, const char* wanted) {
  char label[4096];
  const int fd = open("/proc/thread-self/attr/current", O_RDONLY | O_CLOEXEC);
  const ssize_t n = fd < 0 ? -1 : read(fd, label, sizeof label - 1);
  if (n <= 0) {
    dprintf(STDERR_FILENO, "%s: the %s label cannot be read back\n", Name(), kind);
    _exit(kFailure);
  }
  close(fd);
  label[n] = '\0';
  label[strcspn(label, "\n")] = '\0';
  // AppArmor appends its mode: "profile (enforce)".
  char* mode = strstr(label, " (");
  const bool complaining = mode != nullptr && strcmp(mode, " (enforce)") != 0;
  if (mode != nullptr) *mode = '\0';
  if (strcmp(label, wanted) == 0 && !complaining) return;
  dprintf(STDERR_FILENO, "%s: the %s label %s was not applied: it is %s\n", Name(), kind, wanted, label);
  _exit(kFailure);
}
void CheckAppArmor(const char* value) { CheckLabel("AppArmor", value); }
void CheckSelinux(const char* value) { CheckLabel("SELinux", value); }

/// "5,9", in ascending order: nothing else up to the last stays open. Between those that it passes on crun leaves its log.
void KeepDescriptors(const char* value) {
  int next = STDERR_FILENO + 1;
  for (const char* part = value; part != nullptr; part = strchr(part, ',')) {
    char* end = nullptr;
    const long kept = strtol(part + (*part == ',' ? 1 : 0), &end, 10);
    if (kept < next || kept > kMaxDescriptor || (*end != ',' && *end != '\0'))
      Fail("not a list of descriptors: ", value);
    while (next < kept) close(next++);
    ++next;
    part = end;
  }
}

struct Check {
  const char* option;
  void (*run)(const char* value);
};
constexpr Check kChecks[] = {
    {"--keep-fds=", KeepDescriptors},
    {"--check-uid=", CheckUser},
    {"--check-gid=", CheckGroups},
    {"--check-capabilities=", CheckCapabilities},
    {"--check-no-new-privs=", CheckNoNewPrivileges},
    {"--check-seccomp=", CheckSeccomp},
    {"--check-apparmor=", CheckAppArmor},
    {"--check-selinux=", CheckSelinux},
};

[[noreturn]] void Become(char** argv) {
  execvp(argv[0], argv);
  const int error = errno;
  dprintf(STDERR_FILENO, "%s: %s: %s\n", Name(), argv[0], strerror(error));
  _exit(kFailure);
}

/// The program gets the terminal, so that a key pressed there reaches it once, and not through this process again.
pid_t Start(char** argv, const sigset_t& original) {
  const pid_t child = fork();
  if (child < 0) Fail("sifcrypt-init: fork: ", strerror(errno));
  if (child != 0) return child;
  setpgid(0, 0);
  if (isatty(STDIN_FILENO) == 1) {
    signal(SIGTTOU, SIG_IGN);
    tcsetpgrp(STDIN_FILENO, getpgrp());
    signal(SIGTTOU, SIG_DFL);
  }
  sigprocmask(SIG_SETMASK, &original, nullptr);
  Become(argv);
}

/// Do such signals end an instance?
bool IsEnding(int signal) { return signal == SIGHUP || signal == SIGINT || signal == SIGQUIT || signal == SIGTERM; }

[[noreturn]] void BeInit(char** argv, bool stay) {
  sigset_t all, original;
  sigfillset(&all);
  // What a defect of this process raises must end it.
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS}) sigdelset(&all, signal);
  sigprocmask(SIG_BLOCK, &all, &original);
  bool running = argv[0] != nullptr;
  const pid_t child = running ? Start(argv, original) : 0;
  bool ending = !stay;
  int result = 0;
  while (running || !ending) {
    siginfo_t info;
    const int signal = sigwaitinfo(&all, &info);
    if (signal < 0) continue;
    if (signal != SIGCHLD) {
      if (running) kill(child, signal);
      ending |= IsEnding(signal);
      continue;
    }
    int status = 0;
    for (pid_t ended; (ended = waitpid(-1, &status, WNOHANG)) > 0;) {
      if (ended != child) continue;
      running = false;
      if (!stay) result = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    }
  }
  _exit(result);
}

/// Restores what crun drops: nosuid, nodev and noexec of the root file system's mount.
int RemountRoot(int argc, char** argv) {
  unsigned long flags = MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV;
  if (argc < 1) Fail("sifcrypt-init: remount-root: needs a folder");
  for (int at = 0; at < argc - 1; ++at) {
    if (strcmp(argv[at], "--writable") == 0)
      flags &= ~static_cast<unsigned long>(MS_RDONLY);
    else if (strcmp(argv[at], "--suid") == 0)
      flags &= ~static_cast<unsigned long>(MS_NOSUID);
    else if (strcmp(argv[at], "--noexec") == 0)
      flags |= MS_NOEXEC;
    else
      Fail("sifcrypt-init: remount-root: unknown argument: ", argv[at]);
  }
  // The container's state comes on standard input; to the runtime a hook that leaves before the end has failed.
  char state[4096];
  while (read(STDIN_FILENO, state, sizeof state) > 0) {
  }
  if (mount(nullptr, argv[argc - 1], nullptr, flags, nullptr) != 0)
    Fail("the root cannot be remounted: ", strerror(errno));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  constexpr int kFirst = 2;
  if (argc > 1 && strcmp(argv[1], "remount-root") == 0) return RemountRoot(argc - kFirst, argv + kFirst);
  bool init = false;
  bool stay = false;
  int at = 1;
  for (; at < argc && strcmp(argv[at], "--") != 0; ++at) {
    if (strcmp(argv[at], "--init") == 0) {
      init = true;
      continue;
    }
    if (strcmp(argv[at], "--stay") == 0) {
      stay = true;
      continue;
    }
    const Check* found = nullptr;
    for (const Check& check : kChecks)
      if (strncmp(argv[at], check.option, strlen(check.option)) == 0) found = &check;
    if (found == nullptr) Fail("sifcrypt-init: unknown argument: ", argv[at]);
    found->run(argv[at] + strlen(found->option));
  }
  if (at == argc && stay) BeInit(argv + at, stay);
  if (at + 1 >= argc) Fail("sifcrypt-init: no program");
  if (init || stay) BeInit(argv + at + 1, stay);
  Become(argv + at + 1);
}
