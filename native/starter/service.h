// What a service has beyond a payload: it is started again, asked whether it is well, and what has become of it stands in a file that its
// user's commands read. What it writes is kept in files of a limited size.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

#include "starter/channel.h"
#include "starter/options.h"
#include "starter/processes.h"

namespace sifcrypt::starter {

/// The file: one line of JSON of a fixed size, written over in one piece.
class Journal {
 public:
  explicit Journal(int fd) : fd_(fd) {}
  enum class Health { kUnknown, kStarting, kHealthy, kUnhealthy };

  void Started();
  void Restarting(int code);
  void Ended(int code);
  /// It ended by something else.
  void Failed(const std::string& reason);
  void Is(Health health);
  int restarts() const { return restarts_; }

 private:
  void Write() const;

  int fd_;
  const char* state_ = "running";
  Health health_ = Health::kUnknown;
  int code_ = -1;
  int restarts_ = 0;
  int64_t started_ = 0;
  int64_t ended_ = 0;
  std::string failure_;
};

/// When a payload that has ended is started again: in how many milliseconds, or -1: not at all.
class RestartPolicy {
 public:
  explicit RestartPolicy(const ServiceOptions& options) : options_(options) {}
  int64_t Delay(int code, int restarts, int64_t ran_ms);

 private:
  const ServiceOptions& options_;
  int64_t delay_ms_ = 0;
};

/// Keeps what comes out of two pipes, until both have ended. A process of its own; SystemError "log" is told to `main`.
int LogProcess(const LogOptions& options, const Channel& main, UniqueFd out, UniqueFd err);

}  // namespace sifcrypt::starter
