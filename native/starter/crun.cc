#include "starter/crun.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

#include "core/system_error.h"
#include "core/unique_fd.h"
#include "starter/processes.h"
#include "starter/status.h"

namespace sifcrypt::starter {
namespace {

constexpr int kFailure = 255;
constexpr size_t kMaxLog = 256 << 10;
#ifdef SYS_pidfd_open
constexpr long kPidfdOpen = SYS_pidfd_open;
#else
constexpr long kPidfdOpen = 434;
#endif

/// A read-only mount of the program's file, in whose place nothing stays. crun runs from one, so that no container can write to it: it
/// makes one and starts itself again, unless it finds itself in one. None: then it does.
UniqueFd ReadOnlyProgram(const std::string& program, const std::string& place) {
  UniqueFd found;
  const UniqueFd file(open(place.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!file) return found;
  if (mount(program.c_str(), place.c_str(), nullptr, MS_BIND, nullptr) == 0) {
    if (mount(nullptr, place.c_str(), nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY, nullptr) == 0)
      found.Reset(open(place.c_str(), O_PATH | O_CLOEXEC));
    umount2(place.c_str(), MNT_DETACH);
  }
  unlink(place.c_str());
  return found;
}

[[noreturn]] void Execute(std::vector<std::string>& arguments, int program, const std::string& session,
                          int failure_pipe) {
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  char path[] = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
  // Where crun makes the file it binds itself over; in /tmp one stays when crun is killed at that moment.
  std::string scratch = "_LIBCONTAINER_STATEDIR=" + session;
  char* environment[] = {path, scratch.data(), nullptr};
  if (program >= 0) syscall(SYS_execveat, program, "", argv.data(), environment, AT_EMPTY_PATH);
  execve(argv[0], argv.data(), environment);
  const int error = errno;
  static_cast<void>(!write(failure_pipe, &error, sizeof error));
  _exit(kFailure);
}

}  // namespace

pid_t StartCrun(std::vector<std::string> arguments, const Session& session, const sigset_t& mask,
                const std::function<void()>& prepare) {
  const UniqueFd program = ReadOnlyProgram(arguments.front(), session.Path("crun-" + std::to_string(getpid())));
  int ends[2];
  CheckErrno(pipe2(ends, O_CLOEXEC), "pipe2");
  const UniqueFd failure(ends[0]);
  UniqueFd child_end(ends[1]);
  const pid_t process = ForkChild([&]() -> int {
    prepare();
    signal(SIGPIPE, SIG_DFL);
    sigprocmask(SIG_SETMASK, &mask, nullptr);
    Execute(arguments, program.get(), session.directory(), child_end.get());
  });
  child_end.Reset();
  int error = 0;
  ssize_t n;
  do n = read(failure.get(), &error, sizeof error);
  while (n < 0 && errno == EINTR);
  if (n == static_cast<ssize_t>(sizeof error))
    throw SystemError(error, "crun", arguments.front() + ": " + std::strerror(error));
  return process;
}

void PassOn(const std::vector<int>& descriptors) {
  // crun closes what lies above the last one, and takes what lies between for the payload's.
  const int last = descriptors.empty() ? STDERR_FILENO : descriptors.back();
  for (int fd = STDERR_FILENO + 1; fd <= last; ++fd) fcntl(fd, F_SETFD, FD_CLOEXEC);
  for (const int fd : descriptors) CheckErrno(fcntl(fd, F_SETFD, 0), "fcntl");
}

std::string PassedOn(const std::vector<int>& descriptors) {
  return "--preserve-fds=" + std::to_string(descriptors.empty() ? 0 : descriptors.back() - STDERR_FILENO);
}

int SignalOfStatus(int status) {
  const int signal = status - 128;
  const bool is_deadly = signal > 0 && signal < SIGSYS + 1 && signal != SIGCHLD && signal != SIGCONT &&
                         signal != SIGSTOP && signal != SIGTSTP && signal != SIGTTIN && signal != SIGTTOU &&
                         signal != SIGURG && signal != SIGWINCH;
  return is_deadly ? signal : 0;
}

std::string CrunError(const std::string& log) {
  std::ifstream file(log, std::ios::binary);
  std::string text(kMaxLog, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  return FirstRuntimeError(text);
}

int OpenProcess(pid_t process) { return static_cast<int>(syscall(kPidfdOpen, process, 0)); }

}  // namespace sifcrypt::starter
