// Where processes of one user come in, for who waits for more than that. Who cannot be let in for want of a descriptor or memory stays in
// the queue, and would wake poll(2) again at once: so nobody is looked for then for a while.
#pragma once

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "core/meeting_place.h"
#include "core/unique_fd.h"
#include "starter/processes.h"

namespace sifcrypt::starter {

class Door {
 public:
  Door() = default;
  explicit Door(UniqueFd listener) : listener_(std::move(listener)) {}

  int fd() const { return listener_.get(); }
  void Close() { listener_.Reset(); }
  pollfd event() {
    if (NowMs() >= rests_until_) rests_until_ = 0;
    return {rests_until_ != 0 ? -1 : listener_.get(), POLLIN, 0};
  }
  /// When poll(2) has to end to look again, if it was told of the last event(): also where the rest has ended since. Milliseconds, or -1.
  int timeout() const {
    return rests_until_ != 0 ? static_cast<int>(std::max<int64_t>(0, rests_until_ - NowMs())) : -1;
  }
  /// Whoever has come; none: nobody of this user's, or there was no room.
  UniqueFd LetIn() {
    constexpr int kRestMs = 100;
    UniqueFd connection = meeting::Accept(listener_.get());
    if (!connection && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM))
      rests_until_ = NowMs() + kRestMs;
    return connection;
  }

 private:
  UniqueFd listener_;
  /// 0: it does not.
  int64_t rests_until_ = 0;
};

}  // namespace sifcrypt::starter
