// What is left in a container that several commands are in, of one of them that was killed with all that would have ended it.
#pragma once

#include <sys/types.h>

#include <functional>
#include <vector>

namespace sifcrypt::starter {

/// Kills what runs in the mount namespaces that this process's descendants have made, and comes neither of this process nor of one of
/// `owners`, who are asked for after it was seen. Whoever becomes an owner says so before there is anything of his.
void KillStragglers(const std::function<std::vector<pid_t>()>& owners, int patience_ms);

}  // namespace sifcrypt::starter
