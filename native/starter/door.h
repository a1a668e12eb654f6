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
  bool is_resting() const { return NowMs() < rests_until_; }
  pollfd event() const { return {is_resting() ? -1 : listener_.get(), POLLIN, 0}; }
  /// When poll(2) has to end to look again. Milliseconds, or -1.
  int timeout() const {
    const int64_t left = rests_until_ - NowMs();
    return left > 0 ? static_cast<int>(left) : -1;
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
  int64_t rests_until_ = 0;
};

}  // namespace sifcrypt::starter
