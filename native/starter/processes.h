// Processes, descriptors and signals: what the commands of the starter share.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <functional>
#include <initializer_list>
#include <vector>

#include "core/unique_fd.h"

namespace sifcrypt::starter {

/// The signals that this program takes from a descriptor instead of being interrupted by them.
class SignalQueue {
 public:
  /// Blocks them; to be called before there are threads.
  SignalQueue();
  int fd() const { return fd_.get(); }
  struct Signal {
    int number = 0;
    /// False: the kernel sent it (terminal), so the foreground process group has it already.
    bool from_process = false;
    /// What it ends is not to be started again (core/process_signal.h).
    bool last = false;
  };
  /// Without waiting; number 0: no more.
  Signal Next() const;
  /// What a new program is to start with.
  const sigset_t& original_mask() const { return original_; }

 private:
  sigset_t original_;
  UniqueFd fd_;
};

/// TERM, INT, HUP, QUIT: a request to end.
bool EndsProcess(int signal);

/// Ends this process by the signal, as if it had never been blocked.
[[noreturn]] void DieBySignal(int signal);

/// A child that runs `body` and exits with what it returns. The parent's death kills it, unless it calls OutliveParent.
pid_t ForkChild(const std::function<int()>& body);

/// The parent's death does not kill this process any more.
void OutliveParent();

/// Closes every descriptor above 2 but these.
void CloseAllBut(std::vector<int> kept);

/// Standard input, output and error become /dev/null: a pipe there must not be held open by a helper.
void DetachStandardStreams();

/// All that can be seen from here.
std::vector<pid_t> AllProcesses();

/// 0: there is none above it; -1: there is no such process, or it cannot be seen for the moment, without memory or a descriptor.
pid_t ParentOf(pid_t process);

/// All descendants of `root`, nearest first.
std::vector<pid_t> DescendantsOf(pid_t root);

void SignalAll(const std::vector<pid_t>& processes, int signal);

/// To all descendants; to none where they cannot be seen for the moment, without memory or a descriptor: whoever wants their end asks
/// again.
void SignalBelow(pid_t root, int signal);

/// Reaps children until none is left, for as long as `patience_ms`.
void WaitForChildren(int patience_ms);

/// The same, and kills all descendants of this process, which must be a subreaper; children that are spared stay.
void KillDescendants(int patience_ms, const std::vector<pid_t>& spared = {});

/// Milliseconds of a clock that only goes forward.
int64_t NowMs();

}  // namespace sifcrypt::starter
