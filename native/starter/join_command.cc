#include "starter/join_command.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/system_error.h"
#include "core/unique_fd.h"
#include "starter/channel.h"
#include "starter/crun.h"
#include "starter/seats.h"
#include "starter/session.h"
#include "starter/status.h"
#include "starter/terminal_size.h"

namespace sifcrypt::starter {
namespace {

constexpr int kFailure = 255;
constexpr int kGraceMs = 1000;
constexpr int kOrphansMs = 2000;
/// So soon after a payload that was killed what it was in has ended, if that is why.
constexpr int kSharedEndMs = 200;
constexpr int kContainerMs = 5000;
constexpr size_t kMaxText = 256 << 10;
/// Of the folders that lib/container/instance.ts names.
constexpr char kFolderPrefix[] = "join-";
std::string ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxText, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  return text;
}

[[noreturn]] void NoInstance(const std::string& why) { throw SystemError(ESRCH, "join", why); }

/// Is this process the starter that it is said to be?
void CheckStarter(pid_t process, const std::string& id) {
  const std::string folder = "/proc/" + std::to_string(process);
  struct stat owner {};
  struct stat program {};
  struct stat own {};
  if (stat(folder.c_str(), &owner) != 0) NoInstance("it has ended");
  if (owner.st_uid != geteuid()) NoInstance("its process is another user's");
  if (stat((folder + "/exe").c_str(), &program) != 0 || stat("/proc/self/exe", &own) != 0 ||
      program.st_dev != own.st_dev || program.st_ino != own.st_ino)
    NoInstance("its process is not sifcrypt-starter of this version");
  const std::string wanted = std::string("--id=") + id;
  const std::string command = ReadText(folder + "/cmdline");
  if (command.find(std::string(1, '\0') + "run" + '\0') == std::string::npos ||
      command.find(std::string(1, '\0') + wanted + '\0') == std::string::npos)
    NoInstance("its process runs another container");
}

/// Two descriptors of the same namespace are the same inode.
bool SameNamespace(const std::string& one, const std::string& other) {
  struct stat first {};
  struct stat second {};
  return stat(one.c_str(), &first) == 0 && stat(other.c_str(), &second) == 0 && first.st_dev == second.st_dev &&
         first.st_ino == second.st_ino;
}

std::vector<pid_t> ChildrenOf(pid_t process) {
  const std::string path = "/proc/" + std::to_string(process) + "/task/" + std::to_string(process) + "/children";
  std::ifstream file(path);
  std::vector<pid_t> children;
  for (pid_t child; file >> child;) children.push_back(child);
  return children;
}

/// The starter's child that lives in the session's mount namespace.
std::string SessionProcess(pid_t starter) {
  // Others of its children are where it is itself, which need not be where this process is.
  const std::string outside = "/proc/" + std::to_string(starter) + "/ns/mnt";
  for (const pid_t child : ChildrenOf(starter)) {
    std::string folder = "/proc/" + std::to_string(child);
    if (!SameNamespace(folder + "/ns/mnt", outside) && access((folder + "/ns/mnt").c_str(), F_OK) == 0) return folder;
  }
  NoInstance("its session is gone");
}

/// In a child, which then is in the session as the starter's own processes are.
void EnterSession(const std::string& process) {
  const UniqueFd mounts(CheckErrno(open((process + "/ns/mnt").c_str(), O_RDONLY | O_CLOEXEC), "join"));
  if (!SameNamespace(process + "/ns/user", "/proc/self/ns/user")) {
    const UniqueFd user(CheckErrno(open((process + "/ns/user").c_str(), O_RDONLY | O_CLOEXEC), "join"));
    CheckErrno(setns(user.get(), CLONE_NEWUSER), "join");
  }
  if (!SameNamespace(process + "/ns/net", "/proc/self/ns/net")) {
    const UniqueFd network(CheckErrno(open((process + "/ns/net").c_str(), O_RDONLY | O_CLOEXEC), "join"));
    CheckErrno(setns(network.get(), CLONE_NEWNET), "join");
  }
  CheckErrno(setns(mounts.get(), CLONE_NEWNS), "join");
}

/// What joined commands that were killed have left. Who has one of these folders in use has locked it.
void ClearUp(const std::string& files) {
  std::error_code ignored;
  std::vector<std::filesystem::path> left;
  for (const auto& entry : std::filesystem::directory_iterator(files, ignored)) {
    if (!entry.path().filename().string().starts_with(kFolderPrefix)) continue;
    const UniqueFd folder(open(entry.path().c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (folder && flock(folder.get(), LOCK_EX | LOCK_NB) == 0) left.push_back(entry.path());
  }
  for (const std::filesystem::path& path : left) std::filesystem::remove_all(path, ignored);
}

/// Makes a folder that is locked as long as it is used. One at a time makes or clears up.
UniqueFd MakeLockedFolder(const std::string& files, const std::string& name) {
  const UniqueFd all(CheckErrno(open(files.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC), "join"));
  CheckErrno(flock(all.get(), LOCK_EX), "join");
  ClearUp(files);
  const std::string path = files + "/" + name;
  CheckErrno(mkdir(path.c_str(), 0755), "join");
  UniqueFd folder(CheckErrno(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC), "join"));
  CheckErrno(flock(folder.get(), LOCK_EX), "join");
  return folder;
}

/// A pipe for the runtime. It closes what lies above the descriptors that the command gets, and takes what lies between for the command's.
std::pair<UniqueFd, UniqueFd> MakePipe(const std::vector<int>& preserved) {
  int ends[2];
  CheckErrno(pipe2(ends, O_CLOEXEC), "pipe2");
  const UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  const int above = preserved.empty() ? STDERR_FILENO + 1 : preserved.back() + 1;
  return {UniqueFd(CheckErrno(fcntl(reader.get(), F_DUPFD_CLOEXEC, above), "fcntl")), std::move(writer)};
}

/// Who has ended is not told, and says why.
void Tell(int pipe, std::string_view text) {
  // With room for all of it nobody waits for a runtime that is stopped; where no pipe may be so large, for as long as that is.
  fcntl(pipe, F_SETPIPE_SZ, static_cast<int>(std::min<size_t>(text.size(), INT_MAX)));
  while (!text.empty()) {
    const ssize_t n = write(pipe, text.data(), text.size());
    if (n < 0 && errno == EPIPE) return;
    if (n < 0 && errno == EINTR) continue;
    text.remove_prefix(static_cast<size_t>(CheckErrno(n, "join")));
  }
}

class Joining {
 public:
  Joining(const JoinOptions& options, const SignalQueue& signals, const Status& status)
      : options_(options), signals_(signals), status_(status), session_(options.session) {}

  int Run() {
    starter_.Reset(CheckErrno(OpenProcess(options_.pid), "join"));
    CheckStarter(options_.pid, options_.id);
    const std::string process = SessionProcess(options_.pid);
    CheckErrno(prctl(PR_SET_CHILD_SUBREAPER, 1), "prctl");
    if (options_.seat_fd >= 0) TakeSeat(options_.seat_fd);
    std::pair<Channel, Channel> channel = Channel::Pair();
    // In the session all the time: it writes there before the command runs and takes it away after.
    const pid_t helper = ForkChild([&] { return HelperProcess(channel.second, process); });
    channel.second.Close();
    std::vector<int> kept{signals_.fd(), status_.fd(), options_.watch_fd, channel.first.fd(), starter_.get()};
    if (options_.seat_fd >= 0) kept.push_back(options_.seat_fd);
    CloseAllBut(kept);
    DetachStandardStreams();
    return Supervise(helper, channel.first);
  }

 private:
  /// The runtime writes it when the container is there; an instance may just be starting.
  void WaitForContainer() const {
    const std::string state = session_.Path("state/" + options_.id + "/status");
    const int64_t give_up = NowMs() + kContainerMs;
    while (access(state.c_str(), F_OK) != 0) {
      if (NowMs() >= give_up) NoInstance("its container is gone");
      const timespec pause{0, 5'000'000};
      nanosleep(&pause, nullptr);
    }
  }

  /// Its child is the OCI runtime.
  int HelperProcess(const Channel& main, const std::string& process) {
    const std::string folder = options_.folder;
    try {
      // What else the caller has open is not the command's; it would get it from the runtime.
      std::vector<int> kept{main.fd(), options_.bundle_fd};
      kept.insert(kept.end(), options_.preserved.begin(), options_.preserved.end());
      if (options_.seat_fd >= 0) {
        kept.push_back(options_.seat_fd);
        CheckErrno(fcntl(options_.seat_fd, F_SETFD, FD_CLOEXEC), "fcntl");
      }
      CloseAllBut(kept);
      UniqueFd bundle(options_.bundle_fd);
      CheckErrno(fcntl(bundle.get(), F_SETFD, FD_CLOEXEC), "fcntl");
      CheckErrno(prctl(PR_SET_CHILD_SUBREAPER, 1), "prctl");
      umask(022);
      EnterSession(process);
      WaitForContainer();
      const UniqueFd held = MakeLockedFolder(session_.Path("files"), folder);
      const std::string log = session_.Path("files/" + folder + "/crun.log");
      // It has looked at the container by the time it is told what to run there: that comes when the bundle has ended, and so the command,
      // which has held secrets.
      std::pair<UniqueFd, UniqueFd> told = MakePipe(options_.preserved);
      const pid_t runtime =
          StartCrun({options_.crun, "--log=file:" + log, "--log-format=json", "--cgroup-manager=disabled",
                     "--root=" + session_.Path("state"), "exec", PassedOn(options_.preserved),
                     "--process=/proc/self/fd/" + std::to_string(told.first.get()), options_.id},
                    session_, signals_.original_mask(), [&] {
                      PassOn(options_.preserved);
                      CheckErrno(fcntl(told.first.get(), F_SETFD, 0), "fcntl");
                    });
      told.first.Reset();
      DetachStandardStreams();
      for (const int fd : options_.preserved) close(fd);
      const std::string command = session_.ReadProcess(std::move(bundle), folder);
      // Without the process that supervises it this one ends the command.
      OutliveParent();
      Tell(told.second.get(), command);
      told.second.Reset();
      main.Send({.kind = Message::Kind::kStarted, .code = runtime});
      const int status = WaitFor(runtime, main);
      KillDescendants(kOrphansMs);
      const std::string message = CrunError(log);
      std::error_code ignored;
      std::filesystem::remove_all(session_.Path("files/" + folder), ignored);
      main.Send({.kind = Message::Kind::kEnded,
                 .code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status),
                 .text = message});
      return 0;
    } catch (const SystemError& failure) {
      main.SendFailure(failure, StepOf(failure));
    }
    return kFailure;
  }

  /// Until it has ended, or its supervisor has.
  static int WaitFor(pid_t runtime, const Channel& main) {
    const UniqueFd ended(CheckErrno(OpenProcess(runtime), "join"));
    int status = 0;
    pollfd events[] = {{ended.get(), POLLIN, 0}, {main.fd(), POLLIN, 0}};
    while (waitpid(runtime, &status, WNOHANG | __WALL) == 0 && events[1].revents == 0)
      poll(events, std::size(events), -1);
    return status;
  }

  int Supervise(pid_t helper, const Channel& channel) {
    const UniqueFd helper_end(CheckErrno(OpenProcess(helper), "join"));
    pid_t runtime = -1;
    bool watching = true;
    int death_signal = 0;
    int64_t deadline = -1;
    std::optional<Message> end, failure;
    for (bool open = true; open;) {
      pollfd events[] = {{signals_.fd(), POLLIN, 0},
                         {watching ? options_.watch_fd : -1, POLLIN, 0},
                         {channel.fd(), POLLIN, 0},
                         {starter_.get(), POLLIN, 0}};
      const int timeout = deadline < 0 ? -1 : static_cast<int>(std::max<int64_t>(0, deadline - NowMs()));
      if (poll(events, std::size(events), timeout) < 0 && errno != EINTR) throw SystemError(errno, "poll");
      for (SignalQueue::Signal signal; (signal = signals_.Next()).number != 0;) {
        if (signal.number == SIGCHLD) continue;
        if (runtime <= 0) {
          // There is nobody yet to pass it on to.
          if (EndsProcess(signal.number) && death_signal == 0) death_signal = signal.number;
        } else if (signal.number == SIGWINCH)
          CopyTerminalSize(runtime, Payload(runtime).front());
        else if (signal.from_process)
          SignalAll(Payload(runtime), signal.number);
      }
      if (events[2].revents != 0) {
        const auto message = channel.Receive();
        if (!message)
          open = false;
        else if (message->kind == Message::Kind::kStarted) {
          runtime = message->code;
          status_.Ready(getpid());
        } else
          (message->kind == Message::Kind::kEnded ? end : failure) = message;
      }
      char ignored[64];
      if (watching && events[1].revents != 0 && read(options_.watch_fd, ignored, sizeof ignored) <= 0) {
        watching = false;
        if (runtime > 0) SignalAll(Payload(runtime), SIGTERM);
        deadline = NowMs() + kGraceMs;
      }
      // Without its instance it has no file system any more.
      const bool orphaned = events[3].revents != 0 && !end;
      if (orphaned && !failure) failure = Orphaned();
      if (orphaned || death_signal != 0 || (deadline >= 0 && NowMs() >= deadline)) {
        kill(helper, SIGKILL);
        break;
      }
    }
    // It has closed the channel, and is all but gone: whoever has to be looked for takes longer.
    pollfd gone_helper{helper_end.get(), POLLIN, 0};
    if (end) poll(&gone_helper, 1, kOrphansMs);
    KillDescendants(kOrphansMs);
    if (options_.seat_fd >= 0) LeaveSeat(options_.seat_fd);
    if (death_signal != 0) DieBySignal(death_signal);
    if (options_.seat_fd >= 0 && end && !failure && SignalOfStatus(end->code) != 0) {
      pollfd gone{starter_.get(), POLLIN, 0};
      if (poll(&gone, 1, kSharedEndMs) > 0) failure = Orphaned();
    }
    if (failure) status_.Error(failure->step, failure->error, failure->text);
    if (failure || !end) return kFailure;
    // The runtime's own failures end with 1; so can a command, which writes nothing in that log.
    if (end->code == EXIT_FAILURE && !end->text.empty()) {
      status_.Exit(kFailure, 0, end->text);
      return kFailure;
    }
    // As if it were alone.
    status_.Exit(end->code, options_.seat_fd < 0 ? 0 : SignalOfStatus(end->code), {});
    return end->code;
  }

  Message Orphaned() const {
    return {.error = EIO,
            .step = "server",
            .text = options_.seat_fd < 0 ? "the instance has ended" : "the shared container has ended"};
  }

  /// crun (1.8) passes no signals on in `exec`: what it started gets them.
  static std::vector<pid_t> Payload(pid_t runtime) {
    const std::vector<pid_t> children = ChildrenOf(runtime);
    return children.empty() ? std::vector<pid_t>{runtime} : children;
  }

  const JoinOptions& options_;
  const SignalQueue& signals_;
  const Status& status_;
  const Session session_;
  UniqueFd starter_;
};

}  // namespace

int JoinCommand(const JoinOptions& options, const SignalQueue& signals) {
  const Status status{UniqueFd(options.status_fd)};
  try {
    return Joining(options, signals, status).Run();
  } catch (const SystemError& failure) {
    status.Error(StepOf(failure), failure.error(), failure.what());
  } catch (const std::exception& failure) {
    status.Error("server", ENOMEM, failure.what());
  }
  KillDescendants(kOrphansMs);
  return kFailure;
}

}  // namespace sifcrypt::starter
