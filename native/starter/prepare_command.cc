#include "starter/prepare_command.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/system_error.h"
#include "core/unique_fd.h"
#include "starter/channel.h"
#include "starter/fuse_mount.h"
#include "starter/image_server.h"
#include "starter/namespaces.h"
#include "starter/session.h"
#include "starter/status.h"

namespace sifcrypt::starter {
namespace {

constexpr int kFailure = 255;

/// Makes the session, and keeps it until its parent has.
int SessionProcess(const RunOptions& options, const Channel& main, const Channel& server,
                   const std::string& directory) {
  umask(022);
  const ImageOptions& image = options.image;
  const bool holds_key = image.encrypted() && image.engine != Engine::kUserspace;
  std::vector<int> kept{image.range.fd, options.bundle_fd, main.fd()};
  if (server.fd() >= 0) kept.push_back(server.fd());
  if (holds_key) kept.insert(kept.end(), {image.key_fd, image.metadata_fd});
  CloseAllBut(kept);
  DetachStandardStreams();
  Session session(directory);
  try {
    session.Enter(options, main, -1);
    if (holds_key) CheckErrno(prctl(PR_SET_DUMPABLE, 0), "prctl");
    session.MountScratch(false);
    session.MountImage(image, server, kByMode);
    session.ReadBundle(UniqueFd(options.bundle_fd));
    session.MountOverlay();
    session.CheckRoot();
    session.MakePlaces();
    // Whoever enters has to be able to look at this process. What was unpacked had its key in a process of its own, and root may.
    if (holds_key && image.engine == Engine::kMemory) CheckErrno(prctl(PR_SET_DUMPABLE, 1), "prctl");
    main.Send({.kind = Message::Kind::kStarted});
    main.Receive();
    return 0;
  } catch (const SystemError& failure) {
    main.SendFailure(failure, StepOf(failure));
  } catch (const std::exception& failure) {
    main.Send({.error = ENOMEM, .step = "server", .text = failure.what()});
  }
  return kFailure;
}

class Preparation {
 public:
  Preparation(const RunOptions& options, const SignalQueue& signals, const Status& status)
      : options_(options), signals_(signals), status_(status) {}
  int Run();

 private:
  struct Process {
    pid_t id = -1;
    Channel channel;
  };

  void Start();
  void OnSession();
  void OnServer();
  /// Is it to end?
  bool WasAsked();
  static void End(Process& process);

  const RunOptions& options_;
  const SignalQueue& signals_;
  const Status& status_;
  Process session_;
  Process server_;
  bool is_ready_ = false;
  std::optional<Message> failure_;
};

void Preparation::Start() {
  const std::unique_ptr<char, decltype(&free)> directory(realpath(options_.session.c_str(), nullptr), free);
  if (!directory) throw SystemError(errno, "mount", options_.session + ": " + std::strerror(errno));
  std::pair<Channel, Channel> session = Channel::Pair();
  std::pair<Channel, Channel> device;
  if (options_.image.NeedsServer()) {
    std::pair<Channel, Channel> server = Channel::Pair();
    device = Channel::Pair();
    server_.id = ForkChild([&] {
      OutliveParent();
      return ServeImage(options_.image, signals_, server.second, device.second);
    });
    server_.channel = std::move(server.first);
  }
  session_.id = ForkChild([&] { return SessionProcess(options_, session.second, device.first, directory.get()); });
  session_.channel = std::move(session.first);
}

int Preparation::Run() {
  Start();
  // What the children have, this process must not keep open: pipes would not end.
  std::vector<int> kept{signals_.fd(), status_.fd(), options_.watch_fd, session_.channel.fd()};
  if (server_.id > 0) kept.push_back(server_.channel.fd());
  CloseAllBut(kept);
  DetachStandardStreams();
  while (!failure_) {
    pollfd events[] = {{signals_.fd(), POLLIN, 0},
                       {options_.watch_fd, POLLIN, 0},
                       {server_.channel.fd(), POLLIN, 0},
                       {session_.channel.fd(), POLLIN, 0}};
    if (poll(events, std::size(events), -1) < 0 && errno != EINTR) throw SystemError(errno, "poll");
    // The cause of whatever the session's process is going to complain about comes first.
    if (events[2].revents != 0)
      OnServer();
    else if (events[3].revents != 0)
      OnSession();
    else if (events[0].revents != 0 || events[1].revents != 0)
      if (WasAsked()) break;
  }
  // From here on the namespaces are somebody else's, or nobody's.
  End(session_);
  if (failure_) status_.Error(failure_->step, failure_->error, failure_->text);
  if (is_ready_ && !failure_) return 0;
  if (server_.id > 0) End(server_);
  return kFailure;
}

bool Preparation::WasAsked() {
  while (const int number = signals_.Next().number)
    if (EndsProcess(number)) return true;
  char ignored[64];
  pollfd event{options_.watch_fd, POLLIN, 0};
  return poll(&event, 1, 0) > 0 && read(options_.watch_fd, ignored, sizeof ignored) <= 0;
}

void Preparation::OnServer() {
  failure_ = server_.channel.Receive();
  if (!failure_) failure_ = Message{.error = EIO, .step = "server", .text = "the server of the image has ended"};
}

void Preparation::OnSession() {
  auto message = session_.channel.Receive();
  if (!message || message->kind == Message::Kind::kFailed) {
    if (!message) message = {.error = EIO, .step = "mount", .text = "the process that mounts the image has ended"};
    failure_ = message;
    return;
  }
  if (message->kind == Message::Kind::kMapIds) {
    try {
      MapIds(session_.id, options_.uid_map, options_.gid_map, session_.channel);
    } catch (const SystemError& failure) {
      failure_ = Message{.error = failure.error(), .step = StepOf(failure), .text = failure.what()};
    }
    return;
  }
  if (server_.id > 0) {
    server_.channel.Send({.kind = Message::Kind::kStay});
    const auto answer = server_.channel.Receive();
    if (!answer || answer->kind != Message::Kind::kStay) {
      failure_ =
          answer ? *answer : Message{.error = EIO, .step = "server", .text = "the server of the image has ended"};
      return;
    }
  }
  is_ready_ = true;
  status_.Ready(session_.id);
}

void Preparation::End(Process& process) {
  process.channel.Close();
  kill(process.id, SIGKILL);
  while (waitpid(process.id, nullptr, 0) < 0 && errno == EINTR) {
  }
}

}  // namespace

int PrepareCommand(RunOptions options, const SignalQueue& signals) {
  const Status status{UniqueFd(options.status_fd)};
  TranslateOwner(options.image.owner);
  try {
    return Preparation(options, signals, status).Run();
  } catch (const SystemError& failure) {
    status.Error(StepOf(failure), failure.error(), failure.what());
  } catch (const std::exception& failure) {
    status.Error("server", ENOMEM, failure.what());
  }
  return kFailure;
}

}  // namespace sifcrypt::starter
