// crun (1.8) does not tell its container's terminal when the one it was started on changes its size.
#pragma once

#include <sys/types.h>

namespace sifcrypt::starter {

/// The terminal that `to` reads from gets the size of the one that `from` reads from; its foreground processes hear of it.
/// Nothing where either has none.
void CopyTerminalSize(pid_t from, pid_t to);

}  // namespace sifcrypt::starter
