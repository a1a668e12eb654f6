// The `attend` command: what a caller becomes once it has nothing to do any more but to wait for its starter.
#pragma once

#include <string>
#include <vector>

#include "starter/processes.h"

namespace sifcrypt::starter {

/// `--report-fd=N [--retry-on=STEP:ERRNO,…] run … [-- run …]`. It starts the starter with those arguments and its own
/// `--status-fd` and `--watch-fd`, passes signals on and ends as the starter does. When that fails for one of the reasons to
/// retry before there is a payload, it starts the second one. What is to be said about a failure another program says: the
/// descriptor gives its environment and arguments (the number of variables, they, the arguments; each ends with NUL), to
/// which come the number of the attempt and a descriptor with what the starter told.
int AttendCommand(const std::vector<std::string>& arguments, const SignalQueue& signals);

}  // namespace sifcrypt::starter
