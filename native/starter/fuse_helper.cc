#include "starter/fuse_helper.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <utility>

#include "core/system_error.h"
#include "core/unique_fd.h"
#include "starter/processes.h"
#include "starter/spawn.h"

namespace sifcrypt::starter {
namespace {

constexpr int kFailure = 255;
constexpr int64_t kMountMs = 20'000;
constexpr int64_t kEndMs = 5'000;
constexpr long kPeriodNs = 2'000'000;
constexpr size_t kMaxComplaint = 600;

[[noreturn]] void Execute(const std::string& program, std::vector<std::string>& arguments) {
  std::vector<char*> argv{const_cast<char*>(program.c_str())};
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  char path[] = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
  char* environment[] = {path, nullptr};
  execve(argv[0], argv.data(), environment);
  _exit(kFailure);
}

/// What it wrote until now, as one line.
std::string ReadComplaint(int fd) {
  char text[kMaxComplaint];
  const ssize_t n = read(fd, text, sizeof text);
  std::string complaint(text, n > 0 ? static_cast<size_t>(n) : 0);
  while (!complaint.empty() && complaint.back() == '\n') complaint.pop_back();
  for (char& c : complaint)
    if (c == '\n') c = ' ';
  return complaint;
}

void Pause() {
  const timespec pause{0, kPeriodNs};
  nanosleep(&pause, nullptr);
}

dev_t DeviceOf(const std::string& path, const char* operation) {
  struct stat info {};
  CheckErrno(stat(path.c_str(), &info), operation);
  return info.st_dev;
}

bool HasEnded(pid_t process) {
  const pid_t found = waitpid(process, nullptr, WNOHANG);
  return found == process || (found < 0 && errno == ECHILD);
}

}  // namespace

FuseHelper::FuseHelper(const std::string& name, std::vector<std::string> arguments, std::string target,
                       const std::string& directory, int kept, const char* operation)
    : name_(name), target_(std::move(target)) {
  const std::string program = FindProgram(name, operation);
  const dev_t before = DeviceOf(target_, operation);
  int ends[2];
  CheckErrno(pipe2(ends, O_CLOEXEC | O_NONBLOCK), "pipe2");
  const UniqueFd complaints(ends[0]);
  UniqueFd child_end(ends[1]);
  process_ = ForkChild([&]() -> int {
    setpgid(0, 0);
    if (chdir(directory.c_str()) != 0) return kFailure;
    DetachStandardStreams();
    dup2(child_end.get(), STDOUT_FILENO);
    dup2(child_end.get(), STDERR_FILENO);
    if (kept >= 0) fcntl(kept, F_SETFD, 0);
    CloseAllBut({kept});
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    signal(SIGPIPE, SIG_DFL);
    Execute(program, arguments);
  });
  child_end.Reset();
  const int64_t give_up = NowMs() + kMountMs;
  while (DeviceOf(target_, operation) == before) {
    const bool ended = HasEnded(process_);
    if (!ended && NowMs() < give_up) {
      Pause();
      continue;
    }
    if (!ended) kill(process_, SIGKILL);
    process_ = -1;
    const std::string complaint = ReadComplaint(complaints.get());
    throw SystemError(EIO, operation, name + ": " + (complaint.empty() ? "it does not mount" : complaint));
  }
}

FuseHelper::FuseHelper(FuseHelper&& other) noexcept
    : name_(std::move(other.name_)), target_(std::move(other.target_)), process_(std::exchange(other.process_, -1)) {}

FuseHelper::~FuseHelper() {
  if (process_ < 0) return;
  if (umount2(target_.c_str(), UMOUNT_NOFOLLOW) != 0) umount2(target_.c_str(), UMOUNT_NOFOLLOW | MNT_DETACH);
  const int64_t give_up = NowMs() + kEndMs;
  while (!HasEnded(process_)) {
    if (NowMs() >= give_up) kill(process_, SIGKILL);
    Pause();
  }
}

}  // namespace sifcrypt::starter
