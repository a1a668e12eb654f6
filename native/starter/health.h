// Asks a container now and then whether it is well: a command in it, which ends with 0 when it is.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <cstdint>

#include "starter/options.h"
#include "starter/service.h"
#include "starter/session.h"

namespace sifcrypt::starter {

/// What the bundle has the command in, as crun's `exec --process` takes it.
constexpr char kHealthCommand[] = "health.json";

class Health {
 public:
  /// `mask`: the command's signals. Of the container that is just starting.
  Health(const Session& session, const RunOptions& options, const sigset_t& mask, Journal& journal);
  /// When OnTime is to be called.
  int64_t next() const { return next_; }
  void OnTime();
  /// True: it was the command.
  bool OnChild(pid_t child, int status);

 private:
  void Ask();
  void OnAnswer(bool well);

  const Session& session_;
  const RunOptions& options_;
  const ServiceOptions& service_;
  const sigset_t mask_;
  Journal& journal_;
  const int64_t started_;
  int64_t next_;
  pid_t command_ = -1;
  bool is_late_ = false;
  int failures_ = 0;
};

}  // namespace sifcrypt::starter
