// Who connects to what is about to leave, and who leaves while somebody connects.
#include "core/meeting_place.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <string>
#include <vector>

#include "check.h"
#include "core/system_error.h"
#include "core/unique_fd.h"

namespace sifcrypt {
namespace {

constexpr char kName[] = "place";

UniqueFd OpenLock(const std::string& folder) {
  return UniqueFd(CheckErrno(open((folder + "/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600), "open"));
}

void TestConnections(const std::string& folder, int handle) {
  const UniqueFd lock = OpenLock(folder), other = OpenLock(folder);
  Check(!meeting::Connect(handle, kName, "test"), "nobody listens where nothing is");
  const UniqueFd listener = meeting::Listen(handle, kName, "test");
  CheckError(
      EADDRINUSE, "test", [&] { meeting::Listen(handle, kName, "test"); }, "a second one listens");
  UniqueFd waiting = meeting::Connect(handle, kName, "test");
  Check(static_cast<bool>(waiting), "a connection");
  Check(!meeting::LockDeserted(lock.get(), listener.get()), "one that waits is not left");
  Check(flock(other.get(), LOCK_EX | LOCK_NB) == 0, "and the lock is not kept");
  UniqueFd accepted = meeting::Accept(listener.get());
  Check(static_cast<bool>(accepted), "this user's is let in");
  Check(!meeting::LockDeserted(lock.get(), listener.get()), "one that holds the lock is not left");
  flock(other.get(), LOCK_UN);
  Check(meeting::LockDeserted(lock.get(), listener.get()), "nobody is left");
  Check(flock(other.get(), LOCK_EX | LOCK_NB) != 0, "who leaves has the lock");
  waiting.Reset();
  pollfd event{accepted.get(), POLLIN, 0};
  Check(poll(&event, 1, 0) == 1, "an end is seen");
}

/// Who listens and accepts nobody is stopped, perhaps.
void TestFull(int handle) {
  constexpr char kFull[] = "full";
  const UniqueFd listener = meeting::Listen(handle, kFull, "test");
  std::vector<UniqueFd> waiting;
  CheckError(
      EAGAIN, "test",
      [&] {
        while (waiting.size() < 1000) waiting.push_back(meeting::Connect(handle, kFull, "test"));
      },
      "a queue that is full");
  Check(waiting.size() > 100, "many wait for who listens");
}

void TestLeft(const std::string& folder, int handle) {
  Check(!meeting::Connect(handle, kName, "test"), "nobody listens at what was left");
  const UniqueFd file = OpenLock(folder);
  const std::string longest(200, 'x');
  CheckError(
      ENAMETOOLONG, "test", [&] { meeting::Connect(handle, longest, "test"); }, "a name of any length");
  CheckError(
      ENOTDIR, "test", [&] { meeting::Connect(file.get(), kName, "test"); }, "what is no folder");
}

}  // namespace
}  // namespace sifcrypt

int main() {
  std::string folder = (std::filesystem::temp_directory_path() / "meeting-XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr) return 1;
  {
    const sifcrypt::UniqueFd handle(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    sifcrypt::TestConnections(folder, handle.get());
    sifcrypt::TestFull(handle.get());
    sifcrypt::TestLeft(folder, handle.get());
  }
  std::filesystem::remove_all(folder);
  std::cout << sifcrypt::checks << " checks, " << sifcrypt::failures << " failures\n";
  return sifcrypt::failures == 0 ? 0 : 1;
}
