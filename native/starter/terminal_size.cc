#include "starter/terminal_size.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <string>
#include <utility>

#include "core/unique_fd.h"

namespace sifcrypt::starter {
namespace {

UniqueFd InputOf(pid_t process) {
  const std::string path = "/proc/" + std::to_string(process) + "/fd/0";
  UniqueFd fd(open(path.c_str(), O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC));
  return fd && isatty(fd.get()) == 1 ? std::move(fd) : UniqueFd();
}

}  // namespace

void CopyTerminalSize(pid_t from, pid_t to) {
  if (from <= 0 || to <= 0) return;
  const UniqueFd outer = InputOf(from);
  const UniqueFd inner = InputOf(to);
  winsize size{};
  if (outer && inner && ioctl(outer.get(), TIOCGWINSZ, &size) == 0)
    static_cast<void>(ioctl(inner.get(), TIOCSWINSZ, &size));
}

}  // namespace sifcrypt::starter
