// `sifcrypt-starter enter`: becomes a program that is not ours, in the namespaces that it is to run in.
#pragma once

#include "starter/options.h"

namespace sifcrypt::starter {

/// Keeps environment, working folder and descriptors. Comes back only with a SystemError.
[[noreturn]] void EnterCommand(EnterOptions options);

}  // namespace sifcrypt::starter
