#include "core/meeting_place.h"

#include <poll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "core/system_error.h"

namespace sifcrypt::meeting {
namespace {

constexpr int kBacklog = 128;
constexpr int kPatienceSeconds = 2;

sockaddr_un AddressIn(int folder, const std::string& name, const char* operation) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  // The folder's path may be of any length.
  const int length = snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d/%s", folder, name.c_str());
  if (length < 0 || static_cast<size_t>(length) >= sizeof address.sun_path)
    throw SystemError(ENAMETOOLONG, operation, name);
  return address;
}

UniqueFd NewSocket(const char* operation) {
  return UniqueFd(CheckErrno(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), operation));
}

}  // namespace

UniqueFd Connect(int folder, const std::string& name, const char* operation) {
  const sockaddr_un address = AddressIn(folder, name, operation);
  UniqueFd connection = NewSocket(operation);
  // Whoever listens may be stopped, and the queue full.
  const timeval patience{kPatienceSeconds, 0};
  const timeval none{};
  CheckErrno(setsockopt(connection.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience), operation);
  if (connect(connection.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
    CheckErrno(setsockopt(connection.get(), SOL_SOCKET, SO_SNDTIMEO, &none, sizeof none), operation);
    return connection;
  }
  if (errno != ENOENT && errno != ECONNREFUSED) throw SystemError(errno, operation, name);
  return {};
}

UniqueFd Listen(int folder, const std::string& name, const char* operation) {
  const sockaddr_un address = AddressIn(folder, name, operation);
  UniqueFd listener = NewSocket(operation);
  CheckErrno(bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), operation);
  CheckErrno(listen(listener.get(), kBacklog), operation);
  return listener;
}

UniqueFd Accept(int listener) {
  UniqueFd connection(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
  ucred peer{};
  socklen_t size = sizeof peer;
  if (!connection) return connection;
  if (getsockopt(connection.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid())
    return connection;
  connection.Reset();
  errno = EPERM;
  return connection;
}

bool LockDeserted(int lock, int listener) {
  if (flock(lock, LOCK_EX | LOCK_NB) != 0) return false;
  pollfd pending{listener, POLLIN, 0};
  if (poll(&pending, 1, 0) <= 0) return true;
  flock(lock, LOCK_UN);
  return false;
}

}  // namespace sifcrypt::meeting
