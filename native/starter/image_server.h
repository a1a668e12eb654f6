// The process that serves an image by FUSE, to a container whose namespaces it is not in.
#pragma once

#include "starter/channel.h"
#include "starter/options.h"
#include "starter/processes.h"

namespace sifcrypt::starter {

/// It holds the key, stays outside the private namespaces (inside it would keep them alive) and in a process group of its own,
/// where the terminal's signals do not reach it. `container` gives it the device. It ends with the file system, and with the
/// process at the other end of `main`; when that sends kStay it answers with the same, and from then on ends with the file
/// system alone. Gives its exit status.
int ServeImage(const ImageOptions& image, const SignalQueue& signals, const Channel& main, const Channel& container);

}  // namespace sifcrypt::starter
