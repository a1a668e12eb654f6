// `sifcrypt-starter prepare`: the root of a container that another program makes, in namespaces that this program then enters.
#pragma once

#include "starter/options.h"
#include "starter/processes.h"

namespace sifcrypt::starter {

/// Says that it is ready with the number of a process that is in the namespaces, and ends when the watched descriptor does; by then
/// somebody else has to hold them. Everything in there goes with the last process that is in them, and with what that has mounted
/// elsewhere of it; the server of the image goes when nothing of the image is mounted any more. The exit status: 0 or 255.
int PrepareCommand(RunOptions options, const SignalQueue& signals);

}  // namespace sifcrypt::starter
