// The OCI runtime (crun) of one session, from its start to the end of the last process of the payload.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "core/unique_fd.h"
#include "starter/channel.h"
#include "starter/health.h"
#include "starter/options.h"
#include "starter/processes.h"
#include "starter/service.h"
#include "starter/session.h"

namespace sifcrypt::starter {

class Runtime {
 public:
  /// `group`: the process group it joins, so that it has the terminal when its caller has.
  Runtime(const Session& session, const RunOptions& options, const SignalQueue& signals, pid_t group, Journal& journal);
  /// Starts it. SystemError "crun".
  void Start();
  /// Waits for the payload's end, does what `control` says until then, and leaves no process behind but the session's
  /// helpers. Gives the exit status, the signal that ended the payload, if one did, and the runtime's message if it was
  /// the runtime that failed.
  struct Result {
    int code = 0;
    int signal = 0;
    std::string message;
  };
  Result Wait(const Channel& control);
  /// It was asked to end, or has lost what it needs: it is not to be started again.
  bool is_last() const { return is_last_; }

 private:
  enum class Phase { kRunning, kLingering, kTerminating, kKilling };
  void Enter(Phase phase, int64_t delay_ms);
  void Terminate(int grace_ms);
  void OnTimer();
  void OnControl(const Channel& control);
  void OnInitKnown();
  void SignalGroup(int signal) const;
  void SignalPayload(int signal) const;
  /// True when the payload has ended that has lost its runtime.
  bool OnChild(pid_t child, int status);
  /// True when the runtime has ended.
  bool OnSignals();
  /// The signal that ended the payload, given the runtime's exit status.
  int DeathSignal(int code) const;
  void RemoveCgroup() const;

  const Session& session_;
  const RunOptions& options_;
  const SignalQueue& signals_;
  pid_t group_;
  Journal& journal_;
  std::optional<Health> health_;
  bool is_last_ = false;
  /// A fifo in which the runtime writes the process id of the payload's first process.
  UniqueFd pid_file_;
  pid_t init_process_ = -1;
  UniqueFd init_;
  pid_t process_ = -1;
  int status_ = 0;
  std::string lost_helper_;
  /// When the runtime is to be let go of: it cannot live without the terminal that it serves. -1: not at all.
  int64_t hang_up_ = -1;
  bool let_go_ = false;
  bool control_open_ = true;
  Phase phase_ = Phase::kRunning;
  int64_t timer_ = -1;
  int kill_rounds_ = 0;
};

}  // namespace sifcrypt::starter
