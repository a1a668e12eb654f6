// `sifcrypt-starter mount`: the image at a place that everybody sees.
#pragma once

#include "starter/options.h"
#include "starter/processes.h"

namespace sifcrypt::starter {

/// The exit status.
int MountCommand(const MountOptions& options, const SignalQueue& signals);

}  // namespace sifcrypt::starter
