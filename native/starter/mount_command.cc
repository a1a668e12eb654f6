#include "starter/mount_command.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "core/system_error.h"
#include "core/unique_fd.h"
#include "starter/channel.h"
#include "starter/fuse_mount.h"
#include "starter/image.h"
#include "starter/serve.h"
#include "starter/status.h"

namespace sifcrypt::starter {
namespace {

constexpr int kFailure = 255;

std::string RealPath(const std::string& path) {
  const std::unique_ptr<char, decltype(&free)> real(realpath(path.c_str(), nullptr), free);
  if (!real) throw SystemError(errno, "mount", path + ": " + std::strerror(errno));
  return real.get();
}

/// A process that unmounts at the end, also when this one is killed. It knows nothing of the image, is not in our
/// process group, and keeps the privileges that this one gives up.
class Guard {
 public:
  explicit Guard(const std::string& target) {
    std::pair<Channel, Channel> ends = Channel::Pair();
    channel_ = std::move(ends.first);
    const Channel& theirs = ends.second;
    // Looked at here: by the time the other process gets to it there may be a mount.
    const std::string before = FuseMountDevice(target);
    process_ = ForkChild([&] {
      OutliveParent();
      setsid();
      CloseAllBut({theirs.fd()});
      DetachStandardStreams();
      std::string device;
      while (const auto message = theirs.Receive()) device = message->text;
      // Without word of it there may be a mount all the same: the end can come right after it was made.
      if (device.empty()) device = FuseMountDevice(target);
      if (device != before) UnmountFuse(target, device);
      return 0;
    });
  }
  ~Guard() { Unmount(); }
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;
  void Watch(const std::string& device) const { channel_.Send({.text = device}); }
  /// Idempotent; nothing when it is unmounted already.
  void Unmount() {
    channel_.Close();
    while (waitpid(process_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }

 private:
  Channel channel_;
  pid_t process_ = -1;
};

/// What asks this process to end: a signal, or the end of the watched pipe.
class EndRequests {
 public:
  EndRequests(const SignalQueue& signals, int watch_fd) : signals_(signals), watch_fd_(watch_fd) {}

  /// Waits for `fd` to become readable. False: it is to end first.
  bool WaitFor(int fd) const {
    pollfd events[] = {{fd, POLLIN, 0}, {signals_.fd(), POLLIN, 0}, {watch_fd_, POLLIN, 0}};
    for (;;) {
      if (poll(events, std::size(events), -1) < 0 && errno != EINTR) throw SystemError(errno, "poll");
      bool end = false;
      while (const int signal = signals_.Next().number) end |= EndsProcess(signal);
      char ignored[64];
      if (events[2].revents != 0) end |= read(watch_fd_, ignored, sizeof ignored) <= 0;
      if (end) return false;
      if (events[0].revents != 0) return true;
    }
  }

 private:
  const SignalQueue& signals_;
  int watch_fd_;
};

int Serve(const MountOptions& options, const EndRequests& end_requests, const Status& status) {
  const std::string target = RealPath(options.target);
  Guard guard(target);
  const OpenSquashfs squashfs(options.image);
  UniqueFd device =
      geteuid() == 0 ? MountFuse(target, options.source_name) : MountFuseUnprivileged(target, options.source_name);
  guard.Watch(FuseMountDevice(target));
  DropPrivileges();
  const std::unique_ptr<FuseServer> server = squashfs.Serve(std::move(device));
  status.Ready(getpid());
  if (!end_requests.WaitFor(server->ended_fd())) guard.Unmount();
  return 0;
}

}  // namespace

int MountCommand(const MountOptions& options, const SignalQueue& signals) {
  const Status status{UniqueFd(options.status_fd)};
  try {
    const EndRequests end_requests(signals, options.watch_fd);
    ProtectSecrets();
    // The parent may take its time to get the key, or never do.
    if (options.image.encrypted() && !end_requests.WaitFor(options.image.key_fd)) return kFailure;
    if (options.image.engine == Engine::kUserspace) return Serve(options, end_requests, status);
    MountWithKernel(options.image, options.target);
    status.Ready(getpid());
    return 0;
  } catch (const SystemError& failure) {
    status.Error(StepOf(failure), failure.error(), failure.what());
  } catch (const std::exception& failure) {
    status.Error("server", ENOMEM, failure.what());
  }
  return kFailure;
}

}  // namespace sifcrypt::starter
