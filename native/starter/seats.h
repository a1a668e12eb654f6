// Commands that share a container: each holds a connection to its starter, which the kernel closes however that command ends. There is
// no first among them: the container lives as long as one of them does.
#pragma once

#include <poll.h>
#include <sys/types.h>

#include <string>
#include <vector>

#include "core/unique_fd.h"
#include "starter/door.h"

namespace sifcrypt::starter {

class Seats {
 public:
  /// Of nobody.
  Seats() = default;
  /// `place`: of the socket, absolute; the lock beside it is there. SystemError "share".
  explicit Seats(const std::string& place);

  bool exist() const { return static_cast<bool>(lock_); }
  bool are_taken() const { return !taken_.empty(); }
  /// Lets commands in. SystemError "share".
  void Open();
  /// Nobody comes in any more. Who is there stays.
  void Close() { door_.Close(); }
  /// True when nobody is there and nobody is about to come: whoever does then finds neither socket nor lock.
  bool Leave();

  void AddTo(std::vector<pollfd>& events);
  /// What AddTo has added, after poll(2).
  void OnEvents(const pollfd* events);
  /// How many AddTo adds.
  size_t count() const { return taken_.size() + 1; }
  /// When poll(2) has to end, whatever happens: then somebody is let in who could not be. Milliseconds, or -1.
  int timeout() const { return door_.timeout(); }

  /// Has a command gone without taking leave since this was last asked? Then what it ran may still be there.
  bool TakeLost();
  /// The processes that all there now have named, from which comes whatever they run.
  std::vector<pid_t> processes();

 private:
  struct Seat {
    UniqueFd connection;
    pid_t process = -1;
  };
  void LetIn();
  void Hear(Seat& seat);

  UniqueFd folder_;
  std::string name_;
  UniqueFd lock_;
  Door door_;
  std::vector<Seat> taken_;
  bool has_lost_ = false;
};

/// Takes a seat for what comes of this process; before anything does.
void TakeSeat(int seat);

/// Nothing is left of what has come of it.
void LeaveSeat(int seat);

}  // namespace sifcrypt::starter
