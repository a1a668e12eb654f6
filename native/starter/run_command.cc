#include "starter/run_command.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/system_error.h"
#include "core/unique_fd.h"
#include "starter/channel.h"
#include "starter/confine.h"
#include "starter/image.h"
#include "starter/image_server.h"
#include "starter/namespaces.h"
#include "starter/network.h"
#include "starter/network_keeper.h"
#include "starter/runtime.h"
#include "starter/seats.h"
#include "starter/serve.h"
#include "starter/service.h"
#include "starter/session.h"
#include "starter/status.h"
#include "starter/stragglers.h"

namespace sifcrypt::starter {
namespace {

constexpr int kFailure = 255;
/// How long the container process may take to undo things, and the server to notice that nobody uses it any more.
constexpr int kUndoMs = 8000;
constexpr int kServerEndMs = 100;
constexpr int kOrphansMs = 5000;
/// How long the payload may take to end on SIGTERM when its caller has gone.
constexpr int kGraceMs = 1000;
/// Whoever is just connecting holds the lock that long.
constexpr int kLockMs = 20;

/// Standard output and error as they were, for those who come later.
class Outputs {
 public:
  Outputs() : out_(UniqueFd::Duplicate(STDOUT_FILENO)), error_(UniqueFd::Duplicate(STDERR_FILENO)) {}
  void Restore() const {
    dup2(out_.get(), STDOUT_FILENO);
    dup2(error_.get(), STDERR_FILENO);
  }

 private:
  UniqueFd out_;
  UniqueFd error_;
};

/// False: meanwhile it was asked to end.
bool WaitToRestart(int64_t delay_ms, const SignalQueue& signals, const Channel& main) {
  for (const int64_t end = NowMs() + delay_ms; NowMs() < end;) {
    pollfd events[] = {{signals.fd(), POLLIN, 0}, {main.fd(), POLLIN, 0}};
    // A negative time would be one without end.
    const int timeout = static_cast<int>(std::max<int64_t>(0, end - NowMs()));
    if (poll(events, std::size(events), timeout) < 0 && errno != EINTR) throw SystemError(errno, "poll");
    while (const int number = signals.Next().number)
      if (EndsProcess(number)) return false;
    if (events[1].revents == 0) continue;
    const auto message = main.Receive();
    if (!message || message->kind == Message::Kind::kLast || message->kind == Message::Kind::kTerminate) return false;
    if (message->kind == Message::Kind::kSignal && EndsProcess(message->code)) return false;
  }
  return true;
}

/// Starts the payload, and again as long as it is to be.
Runtime::Result RunUntilItEnds(const Session& session, const RunOptions& options, const SignalQueue& signals,
                               pid_t group, const Channel& main) {
  Journal journal(options.service.journal_fd);
  RestartPolicy policy(options.service);
  std::optional<Outputs> outputs;
  if (options.service.restart != ServiceOptions::Restart::kNo) outputs.emplace();
  for (bool is_first = true;; is_first = false) {
    Runtime runtime(session, options, signals, group, journal);
    runtime.Start();
    const int64_t started = NowMs();
    journal.Started();
    if (is_first) {
      for (const int fd : options.preserved) close(fd);
      OutliveParent();
      main.Send({.kind = Message::Kind::kStarted});
    }
    Runtime::Result result = runtime.Wait(main);
    const bool has_failed = !result.message.empty();
    const int64_t delay =
        runtime.is_last() || has_failed ? -1 : policy.Delay(result.code, journal.restarts(), NowMs() - started);
    if (delay >= 0) {
      journal.Restarting(result.code);
      if (WaitToRestart(delay, signals, main)) {
        outputs->Restore();
        continue;
      }
    }
    if (has_failed)
      journal.Failed(result.message);
    else
      journal.Ended(result.code);
    return result;
  }
}

/// The process that makes the session and waits in it for the OCI runtime. It has a process group of its own, so that
/// a signal to the caller's whole group leaves somebody to clean up; and it inherits the orphans of the runtime.
int ContainerProcess(const RunOptions& options, const SignalQueue& signals, const Channel& main,
                     std::vector<Channel> servers, const Channel& network, UniqueFd networks,
                     const std::string& directory) {
  const pid_t group = getpgrp();
  setpgid(0, 0);
  umask(022);
  std::vector<int> kept{options.image.range.fd, options.bundle_fd, signals.fd(), main.fd()};
  // Other programs that are started here must not have them.
  for (const int fd : options.preserved) {
    kept.push_back(fd);
    CheckErrno(fcntl(fd, F_SETFD, FD_CLOEXEC), "fcntl");
  }
  for (const Channel& server : servers) kept.push_back(server.fd());
  for (const int fd : {network.fd(), networks.get(), options.service.journal_fd})
    if (fd >= 0) kept.push_back(fd);
  bool holds_key = false;
  bool holds_kernel_key = false;
  const auto keep = [&](const ImageOptions& image) {
    kept.push_back(image.range.fd);
    if (image.engine == Engine::kUserspace || !image.encrypted()) return;
    holds_key = true;
    holds_kernel_key |= image.engine == Engine::kKernel;
    kept.insert(kept.end(), {image.key_fd, image.metadata_fd});
  };
  keep(options.image);
  for (const LayerOptions& other : OtherImages(options)) {
    keep(other.image);
    kept.push_back(other.lock_fd);
  }
  CloseAllBut(kept);
  CheckErrno(prctl(PR_SET_CHILD_SUBREAPER, 1), "prctl");
  // Outside, so that a failure is told before what it leaves is taken away: a server that ends would be told of first.
  Session session(directory);
  try {
    session.Enter(options, main, networks.get());
    ShowUnifiedCgroups();
    networks.Reset();
    if (network.fd() >= 0) HandOverNetwork(network);
    if (holds_key) CheckErrno(prctl(PR_SET_DUMPABLE, 0), "prctl");
    // What the session lies over may hold it.
    const UniqueFd folder = options.image.is_folder() ? Session::OpenFolder(options.image) : UniqueFd();
    session.MountScratch(true);
    if (folder) {
      session.BindFolder(folder.get(), options.writable);
    } else {
      const auto root_server = options.image.NeedsServer() ? servers.begin() : servers.end();
      const Channel none;
      session.MountImage(options.image, root_server == servers.end() ? none : *root_server,
                         AccessBelow(options.layers));
      if (root_server != servers.end()) servers.erase(root_server);
    }
    // It is composed meanwhile. Its end comes when the command, which has held secrets, has become another program.
    session.ReadBundle(UniqueFd(options.bundle_fd));
    session.MountLayers(options.layers, servers);
    session.MakeMountPoints();
    if (!options.writable) session.MountOverlay();
    session.CheckRoot();
    servers.erase(servers.begin(),
                  servers.begin() + std::count_if(options.layers.begin(), options.layers.end(), NeedsServer));
    session.MountBinds(options.bind_images, servers);
    // Commands join the session of a process that they may look at. What was unpacked had its key in a process of its own.
    if (holds_key && !holds_kernel_key) CheckErrno(prctl(PR_SET_DUMPABLE, 1), "prctl");
    // A folder that is written to is its owner's to arrange.
    if (!options.writable) session.MakePlaces();
    servers.clear();
    close(options.image.range.fd);
    for (const LayerOptions& other : OtherImages(options))
      for (const int fd : {other.image.range.fd, other.lock_fd})
        if (fd >= 0) close(fd);
    if (network.fd() >= 0 && !WaitForNetwork(network)) return kFailure;
    const Runtime::Result result = RunUntilItEnds(session, options, signals, group, main);
    main.Send({.kind = Message::Kind::kEnded, .code = result.code, .signal = result.signal, .text = result.message});
    // Only now: its servers end with their mounts, and before the payload's end that would be a failure.
    session.Close();
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
  bool IsGone() const {
    pollfd event{terminal_.get(), POLLIN, 0};
    return terminal_ && poll(&event, 1, 0) > 0 && (event.revents & POLLHUP) != 0;
  }
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
  /// A process that serves an image, the one to run or one over it; or the network.
  struct Server {
    pid_t id = -1;
    Channel channel;
    std::string name;
  };

  void Start();
  void MapContainerIds();
  bool HasServers() const;
  void KillServers() const;
  void OnSignal(const SignalQueue::Signal& signal);
  void OnContainerMessages();
  void OnServerMessage(Server& server);
  void Reap();
  void Terminate(int grace_ms);
  /// The last of those who share it has gone.
  bool IsDeserted() { return seats_.exist() && started_ && !terminating_ && !watching_ && !seats_.are_taken(); }
  void EndServers();

  const RunOptions& options_;
  const SignalQueue& signals_;
  const Status& status_;
  const TerminalSettings terminal_;
  Channel container_channel_;
  pid_t container_ = -1;
  std::vector<Server> servers_;
  Seats seats_;
  /// Its caller is there, or whoever has that end.
  bool watching_ = true;
  bool started_ = false;
  bool terminating_ = false;
  bool killed_ = false;
  int64_t deadline_ = -1;
  int death_signal_ = 0;
  std::vector<int> early_signals_;
  std::optional<Message> failure_;
  std::optional<Message> end_;
};

void Supervisor::Start() {
  const std::unique_ptr<char, decltype(&free)> directory(realpath(options_.session.c_str(), nullptr), free);
  if (!directory) throw SystemError(errno, "mount", options_.session + ": " + std::strerror(errno));
  KeeperConnection keeper;
  if (!options_.network.named.empty()) keeper = ConnectToKeeper(options_.network);
  CheckErrno(prctl(PR_SET_CHILD_SUBREAPER, 1), "prctl");
  std::pair<Channel, Channel> container = Channel::Pair();
  std::vector<Channel> devices;
  // Its body, and its channel to the container process, whose other end is returned.
  const auto start = [&](std::string name,
                         const std::function<int(const Channel& main, const Channel& container)>& body) {
    std::pair<Channel, Channel> server = Channel::Pair();
    std::pair<Channel, Channel> device = Channel::Pair();
    const pid_t id = ForkChild([&] { return body(server.second, device.second); });
    servers_.push_back({id, std::move(server.first), std::move(name)});
    return std::move(device.first);
  };
  const auto serve = [&](const ImageOptions& image) {
    devices.push_back(start("the server of the image", [&](const Channel& main, const Channel& device) {
      return ServeImage(image, signals_, main, device);
    }));
  };
  if (options_.log.exists()) {
    int out[2], error[2];
    CheckErrno(pipe2(out, O_CLOEXEC), "pipe2");
    UniqueFd out_reader(out[0]), out_writer(out[1]);
    CheckErrno(pipe2(error, O_CLOEXEC), "pipe2");
    UniqueFd error_reader(error[0]), error_writer(error[1]);
    start("what keeps the log", [&](const Channel& main, const Channel&) {
      return LogProcess(options_.log, main, std::move(out_reader), std::move(error_reader));
    });
    // All that are started from here on write there.
    dup2(out_writer.get(), STDOUT_FILENO);
    dup2(error_writer.get(), STDERR_FILENO);
  }
  if (options_.image.NeedsServer()) serve(options_.image);
  for (const LayerOptions& other : OtherImages(options_))
    if (NeedsServer(other)) serve(other.image);
  Channel network;
  if (options_.network.exists())
    network = start("the network", [&](const Channel& main, const Channel& other) {
      return NetworkProcess(options_.network, signals_, main, other, keeper.channel, directory.get());
    });
  container_ = ForkChild([&] {
    return ContainerProcess(options_, signals_, container.second, std::move(devices), network, std::move(keeper.user),
                            directory.get());
  });
  container_channel_ = std::move(container.first);
}

bool Supervisor::HasServers() const {
  return std::any_of(servers_.begin(), servers_.end(), [](const Server& server) { return server.id > 0; });
}

void Supervisor::KillServers() const {
  for (const Server& server : servers_)
    if (server.id > 0) kill(server.id, SIGKILL);
}

void Supervisor::MapContainerIds() {
  try {
    MapIds(container_, options_.uid_map, options_.gid_map, container_channel_);
  } catch (const SystemError& failure) {
    if (!failure_) failure_ = Message{.error = failure.error(), .step = StepOf(failure), .text = failure.what()};
    Terminate(0);
  }
}

int Supervisor::Run() {
  Start();
  // What the children have, this process must not keep open: pipes would not end.
  std::vector<int> kept{signals_.fd(), status_.fd(), options_.watch_fd, container_channel_.fd(), terminal_.fd()};
  for (const int fd : {options_.service.journal_fd, options_.held_fd})
    if (fd >= 0) kept.push_back(fd);
  for (const Server& server : servers_) kept.push_back(server.channel.fd());
  CloseAllBut(kept);
  DetachStandardStreams();
  if (!options_.shared.empty()) seats_ = Seats(options_.shared);
  while (container_ > 0) {
    std::vector<pollfd> events{{signals_.fd(), POLLIN, 0},
                               {watching_ ? options_.watch_fd : -1, POLLIN, 0},
                               {container_channel_.fd(), POLLIN, 0}};
    const size_t fixed = events.size();
    for (const Server& server : servers_) events.push_back({server.id > 0 ? server.channel.fd() : -1, POLLIN, 0});
    const size_t seats = events.size();
    seats_.AddTo(events);
    int timeout = deadline_ < 0 ? -1 : static_cast<int>(std::max<int64_t>(0, deadline_ - NowMs()));
    for (const int other : {IsDeserted() ? kLockMs : -1, seats_.timeout()})
      if (other >= 0) timeout = timeout < 0 ? other : std::min(timeout, other);
    if (poll(events.data(), events.size(), timeout) < 0 && errno != EINTR) throw SystemError(errno, "poll");
    for (size_t i = fixed; i < seats; ++i)
      if (events[i].revents != 0) OnServerMessage(servers_[i - fixed]);
    seats_.OnEvents(&events[seats]);
    while (seats_.TakeLost()) KillStragglers([this] { return seats_.processes(); }, kOrphansMs);
    if (events[2].revents != 0) OnContainerMessages();
    for (SignalQueue::Signal signal; (signal = signals_.Next()).number != 0;) OnSignal(signal);
    Reap();
    char ignored[64];
    if (events[1].revents != 0) {
      watching_ = false;
      // A word instead of the end: it is to go on without its parent. As it does for those who share it.
      if (read(options_.watch_fd, ignored, sizeof ignored) <= 0 && !(seats_.exist() && started_)) Terminate(kGraceMs);
    }
    if (IsDeserted() && seats_.Leave()) Terminate(kGraceMs);
    if (deadline_ >= 0 && NowMs() >= deadline_) {
      // A server that does not answer can keep others from dying.
      KillServers();
      if (container_ > 0) kill(container_, SIGKILL);
      deadline_ = NowMs() + kUndoMs;
    }
  }
  EndServers();
  // Left is only what has lost its container process: a payload, or the helper that undoes a mapping half made.
  if (!started_) WaitForChildren(kOrphansMs);
  KillDescendants(kOrphansMs);
  if (death_signal_ != 0 && (!started_ || killed_)) DieBySignal(death_signal_);
  if (started_ && (!end_ || end_->code == 128 + SIGKILL)) terminal_.Restore();
  if (failure_) {
    status_.Error(failure_->step, failure_->error, failure_->text);
    Journal(options_.service.journal_fd).Failed(failure_->text);
  }
  if (failure_ || !end_) return kFailure;
  status_.Exit(end_->code, end_->signal, end_->text);
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
    return;
  }
  const int number = signal.number;
  if (signal.last) container_channel_.Send({.kind = Message::Kind::kLast});
  const bool typed = !signal.from_process && (number == SIGINT || number == SIGQUIT || number == SIGTSTP);
  // The payload's group is no job of the terminal's, so SIGTSTP would have no effect there.
  if (!options_.has_terminal && (typed || number == SIGCONT))
    container_channel_.Send({.kind = Message::Kind::kGroupSignal, .code = number == SIGTSTP ? SIGSTOP : number});
  else if (signal.from_process || number == SIGWINCH)
    container_channel_.Send({.kind = Message::Kind::kSignal, .code = number});
  if (number == SIGHUP && options_.has_terminal && terminal_.IsGone())
    container_channel_.Send({.kind = Message::Kind::kHangUp});
}

void Supervisor::OnContainerMessages() {
  pollfd event{container_channel_.fd(), POLLIN, 0};
  while (event.fd >= 0 && poll(&event, 1, 0) > 0) {
    const auto message = container_channel_.Receive();
    if (!message) return container_channel_.Close();  // its death is seen by Reap
    if (message->kind == Message::Kind::kFailed && !failure_) failure_ = message;
    if (message->kind == Message::Kind::kEnded) end_ = message;
    if (message->kind == Message::Kind::kMapIds) MapContainerIds();
    if (message->kind != Message::Kind::kStarted) continue;
    started_ = true;
    // It was killed before that was known: for whoever asked for its end it has not begun.
    if (killed_) continue;
    if (seats_.exist()) seats_.Open();
    try {
      status_.Ready(getpid());
    } catch (const SystemError& failure) {
      failure_ = {.error = failure.error(), .step = failure.operation(), .text = failure.what()};
      Terminate(0);
    }
    for (const int number : early_signals_) container_channel_.Send({.kind = Message::Kind::kSignal, .code = number});
  }
}

void Supervisor::OnServerMessage(Server& server) {
  const auto message = server.channel.Receive();
  if (!message) return server.channel.Close();
  // The cause of whatever the container process is going to complain about.
  failure_ = message;
  Terminate(0);
}

void Supervisor::Reap() {
  int status = 0;
  for (pid_t child; (child = waitpid(-1, &status, WNOHANG | __WALL)) > 0;) {
    const auto server =
        std::find_if(servers_.begin(), servers_.end(), [&](const Server& one) { return one.id == child; });
    const bool is_server = server != servers_.end();
    if (!is_server && child != container_) continue;
    OnContainerMessages();
    (is_server ? server->id : container_) = -1;
    if (failure_ || end_ || terminating_) continue;
    const std::string name = is_server ? server->name : "the container process";
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
  seats_.Close();
  deadline_ = NowMs() + kUndoMs;
  OnContainerMessages();
  if (started_) {
    container_channel_.Send({.kind = Message::Kind::kTerminate, .code = grace_ms});
  } else {
    // There is no payload yet, and the kernel undoes what a dead process had mounted.
    killed_ = true;
    if (container_ > 0) kill(container_, SIGKILL);
    KillServers();
  }
}

void Supervisor::EndServers() {
  const int64_t patience = NowMs() + kServerEndMs;
  while (HasServers()) {
    // Nobody uses the images any more: their servers end by themselves, and wipe their keys.
    pollfd event{signals_.fd(), POLLIN, 0};
    const int64_t left = patience - NowMs();
    if (left <= 0) KillServers();
    poll(&event, 1, static_cast<int>(std::max<int64_t>(left, 1)));
    while (signals_.Next().number != 0) {
    }
    Reap();
  }
}

}  // namespace

int RunCommand(RunOptions options, const SignalQueue& signals) {
  const Status status{UniqueFd(options.status_fd)};
  // Whoever comes first among those who share it has no more to do with it than others: it is nobody's child.
  if (!options.shared.empty() && CheckErrno(fork(), "fork") > 0) _exit(0);
  TranslateOwner(options.image.owner);
  for (LayerOptions& layer : options.layers) TranslateOwner(layer.image.owner);
  for (LayerOptions& image : options.bind_images) TranslateOwner(image.image.owner);
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
