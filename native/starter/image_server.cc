#include "starter/image_server.h"

#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <exception>
#include <iterator>
#include <memory>
#include <vector>

#include "core/system_error.h"
#include "core/unique_fd.h"
#include "starter/confine.h"
#include "starter/image.h"
#include "starter/serve.h"
#include "starter/status.h"

namespace sifcrypt::starter {
namespace {

constexpr int kFailure = 255;

/// False: `main` has gone.
bool IsToStay(const Channel& main) {
  const auto message = main.Receive();
  if (!message || message->kind != Message::Kind::kStay) return false;
  OutliveParent();
  main.Send({.kind = Message::Kind::kStay});
  return true;
}

void WaitForEnd(const FuseSession& server, const Channel& main) {
  pollfd events[] = {{server.ended_fd(), POLLIN, 0}, {main.fd(), POLLIN, 0}};
  for (;;) {
    if (poll(events, std::size(events), -1) < 0) continue;  // interrupted
    if (events[0].revents != 0) return;
    if (events[1].revents == 0) continue;
    if (!IsToStay(main)) return;
    events[1].fd = -1;
  }
}

}  // namespace

int ServeImage(const ImageOptions& image, const SignalQueue& signals, const Channel& main, const Channel& container) {
  setpgid(0, 0);
  std::vector<int> kept{image.range.fd, main.fd(), container.fd()};
  if (image.encrypted()) kept.push_back(image.key_fd);
  // Blocks that are not authentic are told of there.
  const UniqueFd log = image.range.authenticates() ? UniqueFd(dup(STDERR_FILENO)) : UniqueFd();
  if (log) kept.push_back(log.get());
  CloseAllBut(kept);
  DetachStandardStreams();
  if (log) dup2(log.get(), STDERR_FILENO);
  sigprocmask(SIG_SETMASK, &signals.original_mask(), nullptr);
  try {
    ProtectSecrets();
    const OpenSquashfs squashfs(image);
    UniqueFd device;
    container.Receive(&device);
    if (!device) return 0;  // the container process has failed, and says why
    GiveUpPrivileges(Calls::kServer);
    const std::unique_ptr<FuseSession> server = squashfs.Serve(std::move(device));
    WaitForEnd(*server, main);
    return 0;
  } catch (const SystemError& failure) {
    main.SendFailure(failure, StepOf(failure));
  } catch (const std::exception& failure) {
    main.Send({.error = ENOMEM, .step = "server", .text = failure.what()});
  }
  return kFailure;
}

}  // namespace sifcrypt::starter
