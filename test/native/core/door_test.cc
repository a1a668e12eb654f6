// Who waits for a door that rests is woken when that ends, whenever he asks for how long. Prints what failed and exits 1, or nothing and
// exits 0.
#include "starter/door.h"

#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <utility>

#include "check.h"

namespace {
int64_t now = 1000;
}  // namespace

/// Instead of the starter's.
int64_t sifcrypt::starter::NowMs() { return now; }

namespace sifcrypt {
namespace {

void TestRest() {
  UniqueFd listener(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  // The kernel gives it a name.
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  socklen_t size = sizeof address.sun_family;
  Check(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), size) == 0 && listen(listener.get(), 1) == 0,
        "there is a door");
  size = sizeof address;
  getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size);
  const UniqueFd guest(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  Check(connect(guest.get(), reinterpret_cast<sockaddr*>(&address), size) == 0, "somebody comes");

  starter::Door door(std::move(listener));
  Check(door.event().fd == door.fd() && door.timeout() == -1, "a door is looked at as long as it takes");
  rlimit before{};
  getrlimit(RLIMIT_NOFILE, &before);
  const rlimit none{0, before.rlim_max};
  setrlimit(RLIMIT_NOFILE, &none);
  Check(!door.LetIn(), "nobody is let in without a descriptor");
  setrlimit(RLIMIT_NOFILE, &before);
  now += 99;
  Check(door.event().fd == -1, "then nobody is looked for");
  Check(door.timeout() == 1, "until the rest has ended");
  now += 1;
  Check(door.timeout() == 0, "which is at once where it has ended after that");
  Check(door.event().fd == door.fd() && door.timeout() == -1, "a door that has rested is looked at again");
  Check(static_cast<bool>(door.LetIn()), "who has waited is let in");
}

}  // namespace
}  // namespace sifcrypt

int main() {
  sifcrypt::TestRest();
  return sifcrypt::failures == 0 ? 0 : 1;
}
