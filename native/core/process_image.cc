#include "core/process_image.h"

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <utility>

namespace sifcrypt {
namespace {

void WriteAll(int fd, const void* bytes, size_t size) {
  const auto* at = static_cast<const char*>(bytes);
  while (size > 0) {
    const ssize_t written = write(fd, at, size);
    if (written < 0 && errno == EINTR) continue;
    CheckErrno(written, "write");
    at += written;
    size -= static_cast<size_t>(written);
  }
}

/// Attributes of a process that starts as if nobody had touched its signals.
class FreshSignals {
 public:
  FreshSignals() {
    sigset_t set;
    posix_spawnattr_init(&attributes_);
    sigemptyset(&set);
    posix_spawnattr_setsigmask(&attributes_, &set);
    sigfillset(&set);
    posix_spawnattr_setsigdefault(&attributes_, &set);
    posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  }
  ~FreshSignals() { posix_spawnattr_destroy(&attributes_); }
  FreshSignals(const FreshSignals&) = delete;
  FreshSignals& operator=(const FreshSignals&) = delete;
  const posix_spawnattr_t* get() const { return &attributes_; }

 private:
  posix_spawnattr_t attributes_;
};

/// Lets programs inherit descriptors for as long as it exists.
class Inheritance {
 public:
  explicit Inheritance(const std::vector<int>& descriptors) {
    for (const int fd : descriptors) {
      const int flags = CheckErrno(fcntl(fd, F_GETFD), "fcntl");
      if ((flags & FD_CLOEXEC) == 0) continue;
      changed_.push_back(fd);
      CheckErrno(fcntl(fd, F_SETFD, flags & ~FD_CLOEXEC), "fcntl");
    }
  }
  ~Inheritance() {
    for (const int fd : changed_) fcntl(fd, F_SETFD, FD_CLOEXEC);
  }
  Inheritance(const Inheritance&) = delete;
  Inheritance& operator=(const Inheritance&) = delete;

 private:
  std::vector<int> changed_;
};

std::atomic<pid_t> holder;

/// In another thread, which blocks nothing: the one that does gets it, and has it pending when it is another program.
void PassToHolder(int number) {
  const int error = errno;
  syscall(SYS_tgkill, getpid(), holder.load(), number);
  errno = error;
}

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& text : strings) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

}  // namespace

UniqueFd MemoryFile(const char* name, const void* bytes, size_t size) {
  UniqueFd file(CheckErrno(memfd_create(name, MFD_CLOEXEC), "memfd_create"));
  WriteAll(file.get(), bytes, size);
  CheckErrno(lseek(file.get(), 0, SEEK_SET), "lseek");
  return file;
}

Pipe MakePipe() {
  int ends[2];
  CheckErrno(pipe2(ends, O_CLOEXEC), "pipe2");
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

UniqueFd FilledPipe(const void* bytes, size_t size) {
  if (size > PIPE_BUF) throw SystemError(EMSGSIZE, "pipe2");
  Pipe pipe = MakePipe();
  WriteAll(pipe.writer.get(), bytes, size);
  return std::move(pipe.reader);
}

pid_t StartProcess(const std::string& file, const std::vector<std::string>& arguments,
                   const std::vector<std::string>& environment, const std::vector<int>& inherited) {
  std::vector<std::string> own_arguments = arguments;
  std::vector<std::string> own_environment = environment;
  const std::vector<char*> argv = Pointers(own_arguments);
  const std::vector<char*> envp = Pointers(own_environment);
  const FreshSignals signals;
  const Inheritance inheritance(inherited);
  pid_t child = -1;
  if (const int error = posix_spawn(&child, file.c_str(), nullptr, signals.get(), argv.data(), envp.data()))
    throw SystemError(error, "posix_spawn");
  return child;
}

void WaitForProcess(pid_t child) {
  while (waitpid(child, nullptr, 0) < 0)
    if (errno != EINTR) throw SystemError(errno, "waitpid");
}

void BlockSignals() {
  sigset_t all;
  sigfillset(&all);
  if (const int error = pthread_sigmask(SIG_SETMASK, &all, nullptr)) throw SystemError(error, "pthread_sigmask");
  holder = static_cast<pid_t>(syscall(SYS_gettid));
  for (const int number : {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2}) {
    struct sigaction action {};
    CheckErrno(sigaction(number, nullptr, &action), "sigaction");
    if ((action.sa_flags & SA_SIGINFO) == 0 && (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN)) continue;
    action = {};
    action.sa_handler = PassToHolder;
    action.sa_flags = SA_RESTART;
    CheckErrno(sigaction(number, &action, nullptr), "sigaction");
  }
}

void ReplaceProcess(const std::string& file, const std::vector<std::string>& arguments,
                    const std::vector<std::string>& environment, const std::vector<int>& kept) {
  std::vector<std::string> own_arguments = arguments;
  std::vector<std::string> own_environment = environment;
  const std::vector<char*> argv = Pointers(own_arguments);
  const std::vector<char*> envp = Pointers(own_environment);
  // What can be checked is checked first: there is no way back from the rest.
  CheckErrno(access(file.c_str(), X_OK), "execve");
  for (const int fd : kept) CheckErrno(fcntl(fd, F_SETFD, 0), "fcntl");
  for (int number = 1; number < NSIG; ++number) signal(number, SIG_DFL);
  execve(file.c_str(), argv.data(), envp.data());
  throw SystemError(errno, "execve");
}

PseudoTerminal OpenPseudoTerminal(uint16_t columns, uint16_t rows) {
  PseudoTerminal pair;
  pair.controller.Reset(CheckErrno(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC), "posix_openpt"));
  CheckErrno(grantpt(pair.controller.get()), "grantpt");
  CheckErrno(unlockpt(pair.controller.get()), "unlockpt");
  char name[PATH_MAX];
  if (const int error = ptsname_r(pair.controller.get(), name, sizeof name)) throw SystemError(error, "ptsname_r");
  pair.terminal.Reset(CheckErrno(open(name, O_RDWR | O_NOCTTY | O_CLOEXEC), "open"));
  termios settings{};
  CheckErrno(tcgetattr(pair.terminal.get(), &settings), "tcgetattr");
  // The container has a terminal of its own behind it, whose settings count.
  cfmakeraw(&settings);
  CheckErrno(tcsetattr(pair.terminal.get(), TCSANOW, &settings), "tcsetattr");
  ResizeTerminal(pair.controller.get(), columns, rows);
  return pair;
}

void ResizeTerminal(int terminal, uint16_t columns, uint16_t rows) {
  const winsize size{rows, columns, 0, 0};
  CheckErrno(ioctl(terminal, TIOCSWINSZ, &size), "ioctl");
}

}  // namespace sifcrypt
