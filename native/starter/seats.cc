#include "starter/seats.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/meeting_place.h"
#include "core/system_error.h"

namespace sifcrypt::starter {
namespace {

constexpr char kOperation[] = "share";
/// As lib/container/shared-container.ts names it.
constexpr char kLock[] = ".lock";

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

void Seats::Open() { listener_ = meeting::Listen(folder_.get(), name_, kOperation); }

bool Seats::Leave() {
  if (are_taken() || !listener_ || !meeting::LockDeserted(lock_.get(), listener_.get())) return false;
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

void Seats::AddTo(std::vector<pollfd>& events) const {
  events.push_back({listener_.get(), POLLIN, 0});
  for (const UniqueFd& seat : taken_) events.push_back({seat.get(), POLLIN, 0});
}

void Seats::OnEvents(const pollfd* events) {
  const bool has_come = events++->revents != 0;
  // Nobody says anything: what can be read is the end.
  for (UniqueFd& seat : taken_)
    if (events++->revents != 0) seat.Reset();
  std::erase_if(taken_, [](const UniqueFd& seat) { return !seat; });
  if (!has_come) return;
  if (UniqueFd seat = meeting::Accept(listener_.get())) taken_.push_back(std::move(seat));
}

}  // namespace sifcrypt::starter
