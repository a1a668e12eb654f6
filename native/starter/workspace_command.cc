#include "starter/workspace_command.h"

#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "core/block_store.h"
#include "core/scratch_tree.h"
#include "core/system_error.h"
#include "core/unique_fd.h"
#include "starter/channel.h"
#include "starter/confine.h"
#include "starter/fuse_mount.h"
#include "starter/image.h"
#include "starter/namespaces.h"
#include "starter/options.h"
#include "starter/scratch_server.h"
#include "starter/scratch_volume.h"
#include "starter/status.h"

namespace sifcrypt::starter {
namespace {

constexpr int kFailure = 255;
constexpr int kEndMs = 8000;
constexpr int kUndoMs = 5000;
/// How long removing what an ordinary folder holds may take.
constexpr int kRemovalMs = 120'000;
/// The text of a message that asks for one more try, without a PID namespace.
constexpr char kNoProc[] = "no proc";
/// For so much of its memory the scratch may have one more file; what describes one takes a part of that again.
constexpr uint64_t kMemoryPerNode = 1024;
constexpr uint64_t kLeastNodes = 1 << 16;

/// An unnamed file in this folder.
UniqueFd OpenSpill(const std::string& folder) {
  const auto fail = [&folder]() -> int { throw SystemError(errno, "scratch", folder + ": " + std::strerror(errno)); };
  UniqueFd file(open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (file) return file;
  // Some file systems have no unnamed files from the start (open(2): O_TMPFILE).
  if (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT) fail();
  std::string name = folder + "/.sifcrypt-XXXXXX";
  file.Reset(mkostemp(name.data(), O_CLOEXEC));
  if (!file || unlink(name.c_str()) != 0) fail();
  return file;
}

std::vector<ScratchRights::Range> InsideOf(const std::vector<IdRange>& map) {
  std::vector<ScratchRights::Range> ranges;
  for (const IdRange& range : map) ranges.push_back({range.inside, range.count});
  return ranges;
}

/// The ids of this process's user namespace.
std::vector<ScratchRights::Range> KnownIds(const char* map) {
  std::ifstream lines(map);
  std::vector<ScratchRights::Range> ranges;
  ScratchRights::Range range;
  for (uint32_t outside = 0; lines >> range.first >> outside >> range.count;) ranges.push_back(range);
  return ranges;
}

/// The process that holds the scratch, and its key. It stays outside of the namespaces, as all servers do.
int ServeScratch(const WorkspaceOptions& options, const SignalQueue& signals, UniqueFd device, UniqueFd spill) {
  setpgid(0, 0);
  CloseAllBut({device.get(), spill.get()});
  DetachStandardStreams();
  sigprocmask(SIG_SETMASK, &signals.original_mask(), nullptr);
  ProtectSecrets();
  // Without a map of ids root is who it was, in whatever user namespace that is, and everybody else is root alone.
  const bool is_unchanged = geteuid() == 0 && options.uid_map.empty();
  ScratchRights rights{false, KnownIds("/proc/self/uid_map"), KnownIds("/proc/self/gid_map")};
  rights.is_root = is_unchanged && rights.users.size() == 1 && rights.users.front().count == UINT32_MAX;
  if (!is_unchanged) rights = {false, InsideOf(options.uid_map), InsideOf(options.gid_map)};
  auto store = std::make_unique<BlockStore>(options.memory, std::move(spill), options.disk);
  auto tree = std::make_unique<ScratchTree>(std::move(store), kLeastNodes + options.memory / kMemoryPerNode);
  GiveUpPrivileges(Calls::kServer);
  const std::unique_ptr<FuseSession> server = ServeScratchTree(std::move(tree), std::move(rights), std::move(device));
  pollfd event{server->ended_fd(), POLLIN, 0};
  while (poll(&event, 1, -1) < 0 && errno == EINTR) {
  }
  // Memory goes with the process.
  _exit(0);
}

/// The process that makes the namespaces, and the one in them that everything else descends from.
class Workspace {
 public:
  Workspace(const WorkspaceOptions& options, const SignalQueue& signals, const Channel& main, bool pid_namespace)
      : options_(options), signals_(signals), main_(main), pid_namespace_(pid_namespace) {}

  int Run() {
    try {
      setpgid(0, 0);
      const bool many_ids = !options_.uid_map.empty();
      if (EnterNamespaces(many_ids, main_) && many_ids) BecomeRoot();
      if (!options_.volume.empty()) MountVolume(OpenSpill(options_.volume), options_.disk, options_.session);
      if (pid_namespace_) CheckErrno(unshare(CLONE_NEWPID), "userns");
      if (!pid_namespace_) return Inside();
      const pid_t first = ForkInside();
      CloseAllButLife();
      DetachStandardStreams();
      int status = 0;
      while (waitpid(first, &status, 0) < 0 && errno == EINTR) {
      }
      return WIFEXITED(status) ? WEXITSTATUS(status) : kFailure;
    } catch (const SystemError& failure) {
      main_.SendFailure(failure, StepOf(failure));
    }
    return kFailure;
  }

 private:
  /// The namespace's own: files of other ids are made by it.
  static void BecomeRoot() {
    CheckErrno(setgroups(0, nullptr), "userns");
    CheckErrno(setresgid(0, 0, 0), "userns");
    CheckErrno(setresuid(0, 0, 0), "userns");
    // Changing ids has taken the parent's death signal away.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_DUMPABLE, 1);
  }

  /// By number: the other process mounts another /proc, in which this one has none.
  void CloseAllButLife() const {
    rlimit limit{};
    CheckErrno(getrlimit(RLIMIT_NOFILE, &limit), "getrlimit");
    const int end = static_cast<int>(std::min<rlim_t>(limit.rlim_cur, 1 << 20));
    const int life = life_.get();
#ifdef SYS_close_range
    if (syscall(SYS_close_range, STDERR_FILENO + 1, life - 1, 0) == 0 || life == STDERR_FILENO + 1)
      if (syscall(SYS_close_range, life + 1, ~0U, 0) == 0) return;
#endif
    for (int fd = STDERR_FILENO + 1; fd < end; ++fd)
      if (fd != life) close(fd);
  }

  /// The first process of the PID namespace. ForkChild does not do: there the parent has no number.
  pid_t ForkInside() {
    int ends[2];
    CheckErrno(pipe2(ends, O_CLOEXEC), "pipe2");
    const UniqueFd parent(ends[0]);
    life_.Reset(ends[1]);
    const pid_t child = CheckErrno(fork(), "fork");
    if (child != 0) return child;
    life_.Reset();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    pollfd event{parent.get(), POLLIN, 0};
    if (poll(&event, 1, 0) != 0) _exit(kFailure);
    _exit(Inside());
  }

  int Inside() {
    try {
      if (pid_namespace_ && mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr) != 0) {
        main_.Send({.error = errno, .step = "mount", .text = kNoProc});
        return kFailure;
      }
      ShowUnifiedCgroups();
      MountScratch();
      CheckErrno(prctl(PR_SET_CHILD_SUBREAPER, 1), "prctl");
      const pid_t program = ForkChild([this] { return Execute(); });
      main_.Send({.kind = Message::Kind::kStarted});
      // Descriptors that it has must end with it.
      CloseAllBut({main_.fd()});
      DetachStandardStreams();
      return Wait(program);
    } catch (const SystemError& failure) {
      main_.SendFailure(failure, StepOf(failure));
    }
    return kFailure;
  }

  UniqueFd MountDevice() const {
    try {
      return MountFuse(options_.session, "sifcrypt-scratch", 0);
    } catch (const SystemError& failure) {
      throw SystemError(failure.error(), "scratch", failure.what());
    }
  }

  void MountScratch() const {
    const char* session = options_.session.c_str();
    if (!options_.folder.empty()) {
      CheckErrno(mount(options_.folder.c_str(), session, nullptr, MS_BIND, nullptr), "scratch");
    } else if (!options_.spill.empty()) {
      const UniqueFd device = MountDevice();
      if (!main_.Send({.kind = Message::Kind::kDevice}, device.get())) throw SystemError(EPIPE, "scratch");
    } else if (options_.volume.empty()) {
      const std::string data = "mode=0755,size=" + std::to_string(options_.memory);
      // Linux 6.4, and not in a user namespace: pages that are never written to a swap device.
      const std::string best = data + ",noswap";
      if (mount("tmpfs", session, "tmpfs", 0, best.c_str()) != 0)
        CheckErrno(mount("tmpfs", session, "tmpfs", 0, data.c_str()), "scratch");
    }
    CheckErrno(mount(nullptr, session, nullptr, MS_PRIVATE, nullptr), "scratch");
  }

  int Execute() const {
    sigprocmask(SIG_SETMASK, &signals_.original_mask(), nullptr);
    signal(SIGPIPE, SIG_DFL);
    close(main_.fd());
    close(signals_.fd());
    std::vector<std::string> arguments = options_.program;
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    execv(argv[0], argv.data());
    return kFailure;
  }

  /// Reaps whatever comes to this process, until the program itself has ended.
  static int Wait(pid_t program) {
    for (;;) {
      int status = 0;
      const pid_t child = waitpid(-1, &status, 0);
      if (child < 0 && errno != EINTR) return kFailure;
      if (child != program) continue;
      return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
  }

  const WorkspaceOptions& options_;
  const SignalQueue& signals_;
  const Channel& main_;
  const bool pid_namespace_;
  /// Closed by this process's end.
  UniqueFd life_;
};

/// What the main process knows when the workspace has ended.
struct End {
  int code = kFailure;
  bool again = false;
};

class Keeper {
 public:
  /// With `patience_ms` the program is the last thing to do: nobody can end it before.
  Keeper(const WorkspaceOptions& options, const SignalQueue& signals, const Status& status, int patience_ms = 0)
      : options_(options),
        signals_(signals),
        status_(status),
        is_last_(patience_ms > 0),
        deadline_(is_last_ ? NowMs() + patience_ms : -1) {}

  End Run(bool pid_namespace) {
    if (!options_.spill.empty()) spill_ = OpenSpill(options_.spill);
    std::pair<Channel, Channel> channel = Channel::Pair();
    child_ = ForkChild([&] {
      close(options_.watch_fd);
      close(options_.status_fd);
      channel.first.Close();
      spill_.Reset();
      return Workspace(options_, signals_, channel.second, pid_namespace).Run();
    });
    channel.second.Close();
    channel_ = std::move(channel.first);
    bool watching = !is_last_;
    End end;
    while (child_ > 0) {
      pollfd events[] = {
          {signals_.fd(), POLLIN, 0}, {watching ? options_.watch_fd : -1, POLLIN, 0}, {channel_.fd(), POLLIN, 0}};
      const int timeout = deadline_ < 0 ? -1 : static_cast<int>(std::max<int64_t>(0, deadline_ - NowMs()));
      if (poll(events, std::size(events), timeout) < 0 && errno != EINTR) throw SystemError(errno, "poll");
      if (events[2].revents != 0) OnMessage(end);
      for (SignalQueue::Signal signal; (signal = signals_.Next()).number != 0;)
        if (EndsProcess(signal.number)) Terminate();
      Reap(end);
      char ignored[64];
      if (events[1].revents != 0 && read(options_.watch_fd, ignored, sizeof ignored) <= 0) {
        watching = false;
        Terminate();
      }
      if (deadline_ >= 0 && NowMs() >= deadline_) {
        SignalBelow(getpid(), SIGKILL);
        deadline_ = NowMs() + kEndMs;
      }
    }
    // Left may be the helper that undoes a mapping half made.
    if (!started_ && !options_.volume.empty()) WaitForChildren(kUndoMs);
    KillDescendants(kEndMs);
    return end;
  }

 private:
  void OnMessage(End& end) {
    UniqueFd device;
    const auto message = channel_.Receive(&device);
    if (!message) return channel_.Close();
    if (message->kind == Message::Kind::kDevice) return StartServer(std::move(device));
    if (message->kind == Message::Kind::kStarted) return OnStarted();
    if (message->kind == Message::Kind::kMapIds) return MapChildIds();
    if (message->text == kNoProc)
      end.again = true;
    else
      status_.Error(message->step, message->error, message->text);
  }

  void MapChildIds() {
    try {
      MapIds(child_, options_.uid_map, options_.gid_map, channel_);
    } catch (const SystemError& failure) {
      status_.Error(StepOf(failure), failure.error(), failure.what());
      Terminate();
    }
  }

  void StartServer(UniqueFd device) {
    server_ = ForkChild([&] { return ServeScratch(options_, signals_, std::move(device), std::move(spill_)); });
    spill_.Reset();
  }

  void OnStarted() {
    started_ = true;
    // What the program has, this process must not keep open: pipes would not end.
    CloseAllBut({signals_.fd(), status_.fd(), options_.watch_fd, channel_.fd()});
    DetachStandardStreams();
    if (!is_last_) status_.Ready(getpid());
  }

  void Reap(End& end) {
    int status = 0;
    for (pid_t child; (child = waitpid(-1, &status, WNOHANG | __WALL)) > 0;) {
      if (child == server_) {
        server_ = -1;
        // It ends by itself when nobody is left who could use it.
        const bool ended = WIFEXITED(status) && WEXITSTATUS(status) == 0;
        if (child_ > 0 && !ended) status_.Error("scratch", EIO, "the process that holds it was killed");
        Terminate();
      }
      if (child != child_) continue;
      child_ = -1;
      pollfd event{channel_.fd(), POLLIN, 0};
      while (channel_.fd() >= 0 && poll(&event, 1, 0) > 0) OnMessage(end);
      end.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
  }

  void Terminate() {
    if (deadline_ < 0) deadline_ = NowMs();
  }

  const WorkspaceOptions& options_;
  const SignalQueue& signals_;
  const Status& status_;
  const bool is_last_;
  int64_t deadline_;
  Channel channel_;
  UniqueFd spill_;
  pid_t child_ = -1;
  bool started_ = false;
  pid_t server_ = -1;
};

}  // namespace

int WorkspaceCommand(const WorkspaceOptions& options, const SignalQueue& signals) {
  const Status status{UniqueFd(options.status_fd)};
  try {
    CheckErrno(prctl(PR_SET_CHILD_SUBREAPER, 1), "prctl");
    End end = Keeper(options, signals, status).Run(true);
    // A /proc of its own is refused where the one that is there hides something: in another container.
    if (end.again) end = Keeper(options, signals, status).Run(false);
    // Here, since it outlives whoever started it, and by the ids of the workspace, which files in it may belong to.
    if (!options.folder.empty()) {
      WorkspaceOptions removal = options;
      removal.program = {"/bin/rm", "-rf", "--one-file-system", "--", options.folder};
      Keeper(removal, signals, status, kRemovalMs).Run(false);
    }
    return end.code;
  } catch (const SystemError& failure) {
    status.Error(StepOf(failure), failure.error(), failure.what());
  }
  KillDescendants(kEndMs);
  return kFailure;
}

}  // namespace sifcrypt::starter
