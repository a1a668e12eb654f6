#include "starter/processes.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "core/process_signal.h"
#include "core/system_error.h"

namespace sifcrypt::starter {
namespace {

constexpr int kHandled[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH, SIGCONT, SIGTSTP, SIGCHLD};
constexpr int kFailure = 255;

struct CloseDirectory {
  void operator()(DIR* directory) const { closedir(directory); }
};
using Directory = std::unique_ptr<DIR, CloseDirectory>;

/// The entries of a folder that are numbers.
std::vector<int> NumbersIn(const char* path) {
  std::vector<int> numbers;
  const Directory directory(opendir(path));
  if (!directory) throw SystemError(errno, "opendir", path);
  while (const dirent* entry = readdir(directory.get())) {
    const char* end = entry->d_name + std::strlen(entry->d_name);
    int number = 0;
    const auto [stop, error] = std::from_chars(entry->d_name, end, number);
    if (error == std::errc{} && stop == end && number != dirfd(directory.get())) numbers.push_back(number);
  }
  return numbers;
}

/// True when there are no children any more.
bool ReapAll() {
  pid_t child;
  do child = waitpid(-1, nullptr, WNOHANG | __WALL);
  while (child > 0 || (child < 0 && errno == EINTR));
  return child < 0;
}

void Pause() {
  const timespec pause{0, 5'000'000};
  nanosleep(&pause, nullptr);
}

}  // namespace

SignalQueue::SignalQueue() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : kHandled) sigaddset(&set, signal);
  CheckErrno(sigprocmask(SIG_BLOCK, &set, &original_), "sigprocmask");
  fd_.Reset(CheckErrno(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK), "signalfd"));
  // A parent that inherits SIG_IGN for SIGCHLD to us must not make the kernel reap our children.
  signal(SIGCHLD, SIG_DFL);
}

SignalQueue::Signal SignalQueue::Next() const {
  signalfd_siginfo info{};
  if (read(fd_.get(), &info, sizeof info) != static_cast<ssize_t>(sizeof info)) return {};
  return {static_cast<int>(info.ssi_signo), info.ssi_code <= 0,
          info.ssi_code == SI_QUEUE && info.ssi_int == kLastSignal};
}

bool EndsProcess(int signal) { return signal == SIGTERM || signal == SIGINT || signal == SIGHUP || signal == SIGQUIT; }

void DieBySignal(int number) {
  const rlimit none{0, 0};
  setrlimit(RLIMIT_CORE, &none);
  signal(number, SIG_DFL);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, number);
  raise(number);
  sigprocmask(SIG_UNBLOCK, &set, nullptr);
  _exit(128 + number);
}

pid_t ForkChild(const std::function<int()>& body) {
  const pid_t parent = getpid();
  const pid_t child = CheckErrno(fork(), "fork");
  if (child != 0) return child;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  // The first process of a PID namespace knows none.
  if (const pid_t known = getppid(); known != parent && known != 0) _exit(kFailure);
  try {
    _exit(body());
  } catch (const std::exception&) {
    _exit(kFailure);
  }
}

void OutliveParent() { prctl(PR_SET_PDEATHSIG, 0); }

void CloseAllBut(std::vector<int> kept) {
  for (const int fd : NumbersIn("/proc/self/fd"))
    if (fd > STDERR_FILENO && std::find(kept.begin(), kept.end(), fd) == kept.end()) close(fd);
}

void DetachStandardStreams() {
  const UniqueFd nothing(CheckErrno(open("/dev/null", O_RDWR | O_CLOEXEC), "open"));
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) CheckErrno(dup2(nothing.get(), fd), "dup2");
}

std::vector<pid_t> AllProcesses() { return NumbersIn("/proc"); }

pid_t ParentOf(pid_t process) {
  char path[40];
  snprintf(path, sizeof path, "/proc/%d/stat", process);
  const UniqueFd fd(open(path, O_RDONLY | O_CLOEXEC));
  char text[512];
  const ssize_t n = fd ? read(fd.get(), text, sizeof text) : -1;
  if (n <= 0) return -1;
  // "pid (name) state ppid": the name may hold anything, its end is the last parenthesis; the state is one letter.
  const std::string_view stat(text, static_cast<size_t>(n));
  const size_t after_name = stat.rfind(") ");
  constexpr size_t kToParent = 4;
  pid_t parent = -1;
  if (after_name == std::string_view::npos || after_name + kToParent >= stat.size()) return -1;
  if (std::from_chars(stat.data() + after_name + kToParent, stat.data() + stat.size(), parent).ec != std::errc{})
    return -1;
  return parent;
}

std::vector<pid_t> DescendantsOf(pid_t root) {
  std::multimap<pid_t, pid_t> children;
  for (const pid_t process : AllProcesses())
    if (const pid_t parent = ParentOf(process); parent > 0) children.emplace(parent, process);
  std::vector<pid_t> found;
  pid_t parent = root;
  for (size_t next = 0;; parent = found[next++]) {
    const auto [first, last] = children.equal_range(parent);
    for (auto child = first; child != last; ++child) found.push_back(child->second);
    // Looked at one after the other, two processes can each seem to be the other's child.
    children.erase(first, last);
    if (next == found.size()) return found;
  }
}

void SignalAll(const std::vector<pid_t>& processes, int signal) {
  for (const pid_t process : processes) kill(process, signal);
}

void SignalBelow(pid_t root, int signal) {
  try {
    SignalAll(DescendantsOf(root), signal);
  } catch (const SystemError&) {
  }
}

void WaitForChildren(int patience_ms) {
  const int64_t give_up = NowMs() + patience_ms;
  while (!ReapAll() && NowMs() < give_up) Pause();
}

void KillDescendants(int patience_ms, const std::vector<pid_t>& spared) {
  const int64_t give_up = NowMs() + patience_ms;
  while (!ReapAll() && NowMs() < give_up) {
    try {
      std::vector<pid_t> doomed = DescendantsOf(getpid());
      std::erase_if(doomed,
                    [&](pid_t process) { return std::find(spared.begin(), spared.end(), process) != spared.end(); });
      if (doomed.empty()) return;
      SignalAll(doomed, SIGKILL);
    } catch (const SystemError&) {
      // Without memory or a descriptor they cannot be seen: the next time.
    }
    Pause();
  }
}

int64_t NowMs() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * int64_t{1000} + now.tv_nsec / 1'000'000;
}

}  // namespace sifcrypt::starter
