// Signals to a process that is known by more than its number, which another one may have by now.
#pragma once

#include <sys/types.h>

#include <string>

namespace sifcrypt {

/// The value that comes along with such a signal: what it ends is not to be started again.
constexpr int kLastSignal = 1;

/// Sends a signal to the process that has this number and started at this time (in the kernel's ticks since boot, as in
/// /proc/PID/stat). False: there is none. SystemError "pidfd_send_signal".
bool SignalProcess(pid_t process, const std::string& start_time, int signal);

}  // namespace sifcrypt
