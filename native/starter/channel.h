// How the processes of one starter talk: short messages over a socket pair. A closed end means that its owner is gone.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "core/system_error.h"
#include "core/unique_fd.h"

namespace sifcrypt::starter {

struct Message {
  enum class Kind : uint32_t {
    /// The server or the container process failed: step, error, text.
    kFailed,
    /// The OCI runtime runs.
    kStarted,
    /// The payload has ended: code, the signal that did it or 0, and what the runtime had to say.
    kEnded,
    /// The container process waits for its user namespace's ids, and goes on when it gets the same back.
    kMapIds,
    /// A FUSE device to serve comes along.
    kDevice,
    /// A word of what is asked for.
    kWord,
    /// Pass signal `code` on to the runtime.
    kSignal,
    /// Pass signal `code` on to the payload and what it has started: what a terminal does to a foreground group.
    kGroupSignal,
    /// The process goes on without the one at this end.
    kStay,
    /// When the payload has ended it is not to be started again.
    kLast,
    /// The payload's terminal has gone.
    kHangUp,
    /// End the payload, within `code` milliseconds, and undo everything.
    kTerminate,
  };
  Kind kind = Kind::kFailed;
  int error = 0;
  int code = 0;
  int signal = 0;
  std::string step;
  std::string text;
};

class Channel {
 public:
  Channel() = default;
  static std::pair<Channel, Channel> Pair();
  /// One end of a connection: a SOCK_SEQPACKET.
  explicit Channel(UniqueFd fd) : fd_(std::move(fd)) {}

  int fd() const { return fd_.get(); }
  void Close() { fd_.Reset(); }

  /// With `descriptor` >= 0 that goes along. False when the other end is gone.
  bool Send(const Message& message, int descriptor = -1) const;
  bool SendFailure(const SystemError& failure, const std::string& step) const;
  /// Waits. nullopt when the other end is gone.
  std::optional<Message> Receive(UniqueFd* descriptor = nullptr) const;

 private:
  UniqueFd fd_;
};

}  // namespace sifcrypt::starter
