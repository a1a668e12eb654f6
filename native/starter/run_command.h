// `sifcrypt-starter run`: the image as a container, in namespaces of its own.
#pragma once

#include "starter/options.h"
#include "starter/processes.h"

namespace sifcrypt::starter {

/// The exit status: the payload's, or 255.
int RunCommand(RunOptions options, const SignalQueue& signals);

}  // namespace sifcrypt::starter
