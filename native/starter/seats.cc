#include "starter/seats.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <string_view>
#include <utility>

#include "core/meeting_place.h"
#include "core/system_error.h"
#include "starter/processes.h"

namespace sifcrypt::starter {
namespace {

constexpr char kOperation[] = "share";
/// As lib/container/shared-container.ts names it.
constexpr char kLock[] = ".lock";
/// What a command says last. First it says which process it is.
constexpr char kLeaves[] = "leaves";

/// Each seat is a descriptor.
void AllowManyDescriptors() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

Seats::Seats(const std::string& place) : name_(place.substr(place.rfind('/') + 1)) {
  const std::string folder = place.substr(0, place.rfind('/'));
  folder_.Reset(CheckErrno(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), kOperation));
  lock_.Reset(CheckErrno(openat(folder_.get(), (name_ + kLock).c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC), kOperation));
  AllowManyDescriptors();
}

void Seats::Open() { door_ = Door(meeting::Listen(folder_.get(), name_, kOperation)); }

bool Seats::Leave() {
  if (are_taken() || door_.fd() < 0 || !meeting::LockDeserted(lock_.get(), door_.fd())) return false;
  // Of a lock that was taken away, what has its name is somebody else's, and so is what lies beside it.
  struct stat own {};
  struct stat there {};
  const std::string lock = name_ + kLock;
  if (fstat(lock_.get(), &own) == 0 && fstatat(folder_.get(), lock.c_str(), &there, AT_SYMLINK_NOFOLLOW) == 0 &&
      own.st_dev == there.st_dev && own.st_ino == there.st_ino)
    for (const std::string& left : {name_, lock}) unlinkat(folder_.get(), left.c_str(), 0);
  Close();
  return true;
}

void Seats::AddTo(std::vector<pollfd>& events) {
  events.push_back(door_.event());
  for (const Seat& seat : taken_) events.push_back({seat.connection.get(), POLLIN, 0});
}

void Seats::OnEvents(const pollfd* events) {
  const bool has_come = events++->revents != 0;
  for (Seat& seat : taken_)
    if (events++->revents != 0) Hear(seat);
  std::erase_if(taken_, [](const Seat& seat) { return !seat.connection; });
  if (has_come) LetIn();
}

void Seats::LetIn() {
  if (UniqueFd connection = door_.LetIn()) taken_.push_back({std::move(connection)});
}

void Seats::Hear(Seat& seat) {
  for (;;) {
    char text[32];
    const ssize_t n = recv(seat.connection.get(), text, sizeof text, MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (n <= 0) {
      has_lost_ |= seat.process > 0;
      return seat.connection.Reset();
    }
    const std::string_view word(text, static_cast<size_t>(n));
    if (word == kLeaves)
      seat.process = -1;
    else
      std::from_chars(word.data(), word.data() + word.size(), seat.process);
  }
}

bool Seats::TakeLost() { return std::exchange(has_lost_, false); }

std::vector<pid_t> Seats::processes() {
  for (pollfd come = door_.event(); come.fd >= 0 && poll(&come, 1, 0) > 0; come = door_.event()) LetIn();
  std::vector<pid_t> found;
  for (Seat& seat : taken_) {
    Hear(seat);
    if (seat.process > 0) found.push_back(seat.process);
  }
  std::erase_if(taken_, [](const Seat& seat) { return !seat.connection; });
  return found;
}

void TakeSeat(int seat) {
  const std::string process = std::to_string(getpid());
  CheckErrno(send(seat, process.data(), process.size(), MSG_NOSIGNAL), kOperation);
}

void LeaveSeat(int seat) { send(seat, kLeaves, std::strlen(kLeaves), MSG_NOSIGNAL | MSG_DONTWAIT); }

}  // namespace sifcrypt::starter
