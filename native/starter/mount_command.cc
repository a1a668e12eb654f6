#include "starter/mount_command.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "core/system_error.h"
#include "core/unique_fd.h"
#include "starter/channel.h"
#include "starter/confine.h"
#include "starter/fuse_mount.h"
#include "starter/image.h"
#include "starter/mount_guard.h"
#include "starter/processes.h"
#include "starter/serve.h"
#include "starter/status.h"

namespace sifcrypt::starter {
namespace {

constexpr int kFailure = 255;

/// What asks this process to end: a signal, or the end of the watched pipe.
class EndRequests {
 public:
  EndRequests(const SignalQueue& signals, int watch_fd) : signals_(signals), watch_fd_(watch_fd) {}

  /// Waits for `events_wanted` of `fd`. False: it is to end first.
  bool WaitFor(int fd, short events_wanted = POLLIN) const {
    pollfd events[] = {{fd, events_wanted, 0}, {signals_.fd(), POLLIN, 0}, {watch_fd_, POLLIN, 0}};
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

/// What serves the tree of the image, or the view of it.
template <typename Open>
std::function<std::unique_ptr<FuseSession>(UniqueFd)> Serving(std::shared_ptr<const Open> open) {
  return [open = std::move(open)](UniqueFd device) { return open->Serve(std::move(device)); };
}

std::function<std::unique_ptr<FuseSession>(UniqueFd)> Opened(const MountOptions& options) {
  if (options.view.is_wanted()) return Serving(std::make_shared<const OpenView>(options.view, options.image));
  return Serving(std::make_shared<const OpenSquashfs>(options.image));
}

int Serve(const MountOptions& options, const EndRequests& end_requests, const Status& status) {
  const std::string target = RealPath(options.target);
  MountGuard guard(target);
  // What is wrong with the image is said before anything is mounted.
  const std::function<std::unique_ptr<FuseSession>(UniqueFd)> serve = Opened(options);
  UniqueFd device = geteuid() == 0 ? MountFuse(target, options.source_name)
                                   : MountFuseUnprivileged(target, options.source_name, guard.fd());
  guard.Watch(MountIdentity(target));
  GiveUpPrivileges(Calls::kServer);
  const std::unique_ptr<FuseSession> server = serve(std::move(device));
  status.Ready(getpid());
  if (!end_requests.WaitFor(server->ended_fd())) guard.Unmount();
  return 0;
}

/// The mount needs no process. Whoever is to take it back when its caller ends does need one.
int MountByKernel(const MountOptions& options, const EndRequests& end_requests, const Status& status) {
  const std::string target = RealPath(options.target);
  MountGuard guard(target);
  // Readable when a mount has come or gone.
  const UniqueFd mounts(CheckErrno(open("/proc/self/mounts", O_RDONLY | O_CLOEXEC), "mount"));
  MountWithKernel(options.image, target);
  const std::string identity = MountIdentity(target);
  guard.Watch(identity);
  status.Ready(getpid());
  bool mounted = true;
  if (options.watch_fd >= 0) {
    while (mounted && end_requests.WaitFor(mounts.get(), POLLPRI)) mounted = MountIdentity(target) == identity;
    if (mounted) return 0;  // the guard unmounts
  }
  guard.Dismiss();
  return 0;
}

}  // namespace

int MountCommand(const MountOptions& options, const SignalQueue& signals) {
  const Status status{UniqueFd(options.status_fd)};
  try {
    // It outlives its caller: what that has left open to every program, a lock or a pipe, must not last as long as the mount.
    CloseAllBut({options.status_fd, options.watch_fd, options.image.range.fd, options.image.key_fd,
                 options.image.metadata_fd, options.view.head_fd, signals.fd()});
    const EndRequests end_requests(signals, options.watch_fd);
    ProtectSecrets();
    // The parent may take its time to get the key, or never do.
    if (options.image.encrypted() && !end_requests.WaitFor(options.image.key_fd)) return kFailure;
    if (options.image.engine == Engine::kUserspace) return Serve(options, end_requests, status);
    return MountByKernel(options, end_requests, status);
  } catch (const SystemError& failure) {
    status.Error(StepOf(failure), failure.error(), failure.what());
  } catch (const std::exception& failure) {
    status.Error("server", ENOMEM, failure.what());
  }
  return kFailure;
}

}  // namespace sifcrypt::starter
