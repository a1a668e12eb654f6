#include "starter/run_command.h"

#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/system_error.h"
#include "core/unique_fd.h"
#include "starter/channel.h"
#include "starter/image.h"
#include "starter/runtime.h"
#include "starter/serve.h"
#include "starter/session.h"
#include "starter/status.h"

namespace sifcrypt::starter {
namespace {

constexpr int kFailure = 255;
/// How long the container process may take to undo things, and the server to notice that nobody uses it any more.
constexpr int kUndoMs = 8000;
constexpr int kServerEndMs = 100;
constexpr int kOrphansMs = 5000;
/// How long the payload may take to end on SIGTERM when its caller has gone.
constexpr int kGraceMs = 1000;

/// The process that serves the image by FUSE. It holds the key, stays outside the private namespaces (inside it would
/// keep them alive) and in a process group of its own, where the terminal's signals do not reach it.
int ServerProcess(const RunOptions& options, const SignalQueue& signals, const Channel& main,
                  const Channel& container) {
  setpgid(0, 0);
  std::vector<int> kept{options.image.image_fd, main.fd(), container.fd()};
  if (options.image.encrypted()) kept.push_back(options.image.key_fd);
  // Blocks that are not authentic are told of there.
  const UniqueFd log = options.image.gocryptfs_file.empty() ? UniqueFd() : UniqueFd(dup(STDERR_FILENO));
  if (log) kept.push_back(log.get());
  CloseAllBut(kept);
  DetachStandardStreams();
  if (log) dup2(log.get(), STDERR_FILENO);
  sigprocmask(SIG_SETMASK, &signals.original_mask(), nullptr);
  try {
    ProtectSecrets();
    const OpenSquashfs squashfs(options.image);
    UniqueFd device;
    container.Receive(&device);
    if (!device) return 0;  // the container process has failed, and says why
    DropPrivileges();
    const std::unique_ptr<FuseServer> server = squashfs.Serve(std::move(device));
    pollfd events[] = {{server->ended_fd(), POLLIN, 0}, {main.fd(), POLLIN, 0}};
    while (poll(events, std::size(events), -1) < 0 && errno == EINTR) {
    }
    return 0;
  } catch (const SystemError& failure) {
    main.SendFailure(failure, StepOf(failure));
  } catch (const std::exception& failure) {
    main.Send({.error = ENOMEM, .step = "server", .text = failure.what()});
  }
  return kFailure;
}

/// The process that makes the session and waits in it for the OCI runtime. It has a process group of its own, so that
/// a signal to the caller's whole group leaves somebody to clean up; and it inherits the orphans of the runtime.
int ContainerProcess(const RunOptions& options, const SignalQueue& signals, const Channel& main, const Channel& server,
                     const std::string& directory) {
  const pid_t group = getpgrp();
  setpgid(0, 0);
  umask(022);
  std::vector<int> kept{options.image.image_fd, options.bundle_fd, signals.fd(), main.fd(), server.fd()};
  const bool by_kernel = options.image.engine == Engine::kKernel;
  if (by_kernel && options.image.encrypted())
    kept.insert(kept.end(), {options.image.key_fd, options.image.metadata_fd});
  CloseAllBut(kept);
  CheckErrno(prctl(PR_SET_CHILD_SUBREAPER, 1), "prctl");
  try {
    Session session(directory);
    session.Enter();
    if (by_kernel && options.image.encrypted()) CheckErrno(prctl(PR_SET_DUMPABLE, 0), "prctl");
    session.MountScratch();
    session.ReadBundle(UniqueFd(options.bundle_fd));
    session.MountImage(options.image, server);
    session.MountOverlay();
    close(server.fd());
    close(options.image.image_fd);
    Runtime runtime(session, options, signals, group);
    runtime.Start();
    OutliveParent();
    main.Send({.kind = Message::Kind::kStarted});
    const Runtime::Result result = runtime.Wait(main);
    main.Send({.kind = Message::Kind::kEnded, .code = result.code, .text = result.message});
    return 0;
  } catch (const SystemError& failure) {
    main.SendFailure(failure, StepOf(failure));
  } catch (const std::exception& failure) {
    main.Send({.error = ENOMEM, .step = "crun", .text = failure.what()});
  }
  return kFailure;
}

/// A terminal's settings: a runtime that is killed leaves them as a full-screen program wants them.
class TerminalSettings {
 public:
  TerminalSettings() {
    if (tcgetattr(STDIN_FILENO, &settings_) == 0) terminal_ = UniqueFd::Duplicate(STDIN_FILENO);
  }
  int fd() const { return terminal_.get(); }
  void Restore() const {
    if (!terminal_) return;
    sigset_t background, before;
    sigemptyset(&background);
    sigaddset(&background, SIGTTOU);
    sigprocmask(SIG_BLOCK, &background, &before);
    tcsetattr(terminal_.get(), TCSANOW, &settings_);
    sigprocmask(SIG_SETMASK, &before, nullptr);
  }

 private:
  termios settings_{};
  UniqueFd terminal_;
};

/// The main process: it starts the two others, passes signals on, and sees to it that all end together.
class Supervisor {
 public:
  Supervisor(const RunOptions& options, const SignalQueue& signals, const Status& status)
      : options_(options), signals_(signals), status_(status) {}
  int Run();

 private:
  void Start();
  void OnSignal(const SignalQueue::Signal& signal);
  void OnContainerMessages();
  void OnServerMessage();
  void Reap();
  void Terminate(int grace_ms);
  void EndServer();

  const RunOptions& options_;
  const SignalQueue& signals_;
  const Status& status_;
  const TerminalSettings terminal_;
  Channel container_channel_;
  Channel server_channel_;
  pid_t container_ = -1;
  pid_t server_ = -1;
  bool started_ = false;
  bool terminating_ = false;
  int64_t deadline_ = -1;
  int death_signal_ = 0;
  std::vector<int> early_signals_;
  std::optional<Message> failure_;
  std::optional<Message> end_;
};

void Supervisor::Start() {
  const std::unique_ptr<char, decltype(&free)> directory(realpath(options_.session.c_str(), nullptr), free);
  if (!directory) throw SystemError(errno, "mount", options_.session + ": " + std::strerror(errno));
  CheckErrno(prctl(PR_SET_CHILD_SUBREAPER, 1), "prctl");
  std::pair<Channel, Channel> container = Channel::Pair();
  std::pair<Channel, Channel> server = Channel::Pair();
  const std::pair<Channel, Channel> device = Channel::Pair();
  if (options_.image.engine == Engine::kUserspace)
    server_ = ForkChild([&] { return ServerProcess(options_, signals_, server.second, device.second); });
  container_ =
      ForkChild([&] { return ContainerProcess(options_, signals_, container.second, device.first, directory.get()); });
  container_channel_ = std::move(container.first);
  server_channel_ = std::move(server.first);
}

int Supervisor::Run() {
  Start();
  // What the children have, this process must not keep open: pipes would not end.
  CloseAllBut(
      {signals_.fd(), status_.fd(), options_.watch_fd, container_channel_.fd(), server_channel_.fd(), terminal_.fd()});
  DetachStandardStreams();
  bool watching = true;
  while (container_ > 0) {
    pollfd events[] = {{signals_.fd(), POLLIN, 0},
                       {watching ? options_.watch_fd : -1, POLLIN, 0},
                       {container_channel_.fd(), POLLIN, 0},
                       {server_ > 0 ? server_channel_.fd() : -1, POLLIN, 0}};
    const int timeout = deadline_ < 0 ? -1 : static_cast<int>(std::max<int64_t>(0, deadline_ - NowMs()));
    if (poll(events, std::size(events), timeout) < 0 && errno != EINTR) throw SystemError(errno, "poll");
    if (events[3].revents != 0) OnServerMessage();
    if (events[2].revents != 0) OnContainerMessages();
    for (SignalQueue::Signal signal; (signal = signals_.Next()).number != 0;) OnSignal(signal);
    Reap();
    char ignored[64];
    if (events[1].revents != 0 && read(options_.watch_fd, ignored, sizeof ignored) <= 0) {
      watching = false;
      Terminate(kGraceMs);
    }
    if (deadline_ >= 0 && NowMs() >= deadline_) {
      // A server that does not answer can keep others from dying.
      if (server_ > 0) kill(server_, SIGKILL);
      if (container_ > 0) kill(container_, SIGKILL);
      deadline_ = NowMs() + kUndoMs;
    }
  }
  EndServer();
  // Left is only what has lost its container process: a payload, or the helper that undoes a mapping half made.
  if (!started_) WaitForChildren(kOrphansMs);
  KillDescendants(kOrphansMs);
  if (death_signal_ != 0 && !started_) DieBySignal(death_signal_);
  if (started_ && (!end_ || end_->code == 128 + SIGKILL)) terminal_.Restore();
  if (failure_) status_.Error(failure_->step, failure_->error, failure_->text);
  if (failure_ || !end_) return kFailure;
  status_.Exit(end_->code, end_->text);
  return end_->code;
}

void Supervisor::OnSignal(const SignalQueue::Signal& signal) {
  if (signal.number == SIGCHLD) return;
  if (!started_) {
    if (EndsProcess(signal.number)) {
      if (death_signal_ == 0) death_signal_ = signal.number;
      Terminate(kGraceMs);
    } else if (signal.from_process) {
      early_signals_.push_back(signal.number);
    }
  } else if (signal.from_process) {
    container_channel_.Send({.kind = Message::Kind::kSignal, .code = signal.number});
  }
}

void Supervisor::OnContainerMessages() {
  pollfd event{container_channel_.fd(), POLLIN, 0};
  while (event.fd >= 0 && poll(&event, 1, 0) > 0) {
    const auto message = container_channel_.Receive();
    if (!message) return container_channel_.Close();  // its death is seen by Reap
    if (message->kind == Message::Kind::kFailed && !failure_) failure_ = message;
    if (message->kind == Message::Kind::kEnded) end_ = message;
    if (message->kind != Message::Kind::kStarted) continue;
    started_ = true;
    status_.Ready(getpid());
    for (const int number : early_signals_) container_channel_.Send({.kind = Message::Kind::kSignal, .code = number});
  }
}

void Supervisor::OnServerMessage() {
  const auto message = server_channel_.Receive();
  if (!message) return server_channel_.Close();
  // The cause of whatever the container process is going to complain about.
  failure_ = message;
  Terminate(0);
}

void Supervisor::Reap() {
  int status = 0;
  for (pid_t child; (child = waitpid(-1, &status, WNOHANG | __WALL)) > 0;) {
    if (child != server_ && child != container_) continue;
    OnContainerMessages();
    const bool is_server = child == server_;
    (is_server ? server_ : container_) = -1;
    if (failure_ || end_ || terminating_) continue;
    const std::string name = is_server ? "the server of the image" : "the container process";
    failure_ = {.error = EIO,
                .step = is_server ? "server" : "crun",
                .text = WIFSIGNALED(status) ? name + " was killed by signal " + std::to_string(WTERMSIG(status))
                                            : name + " has ended"};
    if (is_server) Terminate(0);
  }
}

void Supervisor::Terminate(int grace_ms) {
  if (terminating_) return;
  terminating_ = true;
  deadline_ = NowMs() + kUndoMs;
  OnContainerMessages();
  if (started_) {
    container_channel_.Send({.kind = Message::Kind::kTerminate, .code = grace_ms});
  } else {
    // There is no payload yet, and the kernel undoes what a dead process had mounted.
    if (container_ > 0) kill(container_, SIGKILL);
    if (server_ > 0) kill(server_, SIGKILL);
  }
}

void Supervisor::EndServer() {
  const int64_t patience = NowMs() + kServerEndMs;
  while (server_ > 0) {
    // Nobody uses the image any more: the server ends by itself, and wipes its key.
    pollfd event{signals_.fd(), POLLIN, 0};
    const int64_t left = patience - NowMs();
    if (left <= 0) kill(server_, SIGKILL);
    poll(&event, 1, static_cast<int>(std::max<int64_t>(left, 1)));
    while (signals_.Next().number != 0) {
    }
    Reap();
  }
}

}  // namespace

int RunCommand(RunOptions options, const SignalQueue& signals) {
  const Status status{UniqueFd(options.status_fd)};
  if (geteuid() != 0 && options.image.owner) {
    // The session's user namespace knows the caller by other numbers.
    if (options.image.owner->uid == geteuid()) options.image.owner->uid = 0;
    if (options.image.owner->gid == getegid()) options.image.owner->gid = 0;
  }
  try {
    return Supervisor(options, signals, status).Run();
  } catch (const SystemError& failure) {
    status.Error(StepOf(failure), failure.error(), failure.what());
  } catch (const std::exception& failure) {
    status.Error("server", ENOMEM, failure.what());
  }
  KillDescendants(kOrphansMs);
  return kFailure;
}

}  // namespace sifcrypt::starter
