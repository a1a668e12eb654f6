// The workspace of one build: private namespaces with a scratch for root file systems under construction, and a program
// that builds in it. When the program ends, or whoever started it is gone, all of it is gone.
#pragma once

#include "starter/options.h"
#include "starter/processes.h"

namespace sifcrypt::starter {

/// The exit status: the program's, or 255.
int WorkspaceCommand(const WorkspaceOptions& options, const SignalQueue& signals);

}  // namespace sifcrypt::starter
