// The `join` command: one more command in the container of a starter that runs already.
#pragma once

#include "starter/options.h"
#include "starter/processes.h"

namespace sifcrypt::starter {

/// The exit status: the command's, or 255. The starter is found by its process id and must be this program, of this user,
/// with this container's id; what a state file says is not taken for granted.
int JoinCommand(const JoinOptions& options, const SignalQueue& signals);

}  // namespace sifcrypt::starter
