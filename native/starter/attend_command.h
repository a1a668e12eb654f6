// The `attend` command: what a caller becomes once it has nothing to do any more but to wait for its starter.
#pragma once

#include <string>
#include <vector>

#include "starter/processes.h"

namespace sifcrypt::starter {

/// `--report-fd=N [--retry-on=STEP:ERRNO,…] --begun=PID,STATUS,WATCH [-- run …]`. A starter runs already, as a child: these are
/// the descriptors that it tells on and that it watches. Signals are passed on to it, and this process ends as it does. When it
/// fails for one of the reasons to retry before there is a payload, the next one is started, with those arguments and its own
/// `--status-fd` and `--watch-fd`. What is to be said about a failure another program says: the
/// descriptor gives its environment and arguments (the number of variables, they, the arguments; each ends with NUL), to
/// which come the number of the attempt and a descriptor with what the starter told.
int AttendCommand(const std::vector<std::string>& arguments, const SignalQueue& signals);

}  // namespace sifcrypt::starter
