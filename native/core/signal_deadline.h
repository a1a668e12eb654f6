// The end of a process that a signal asks to end, whatever its main thread does meanwhile.
#pragma once

#include <chrono>
#include <vector>

namespace sifcrypt {

/// From now on the process ends with 128 plus the number of a signal when one of `signals` came `patience` ago: whoever handles
/// it may be busy, and gets it all the same. Where the process has children then, who may have something to undo, it is
/// `with_children` ago. A signal without a handler is left alone. Called again, it is the patience that changes; of none, the
/// handler alone decides. SystemError "sigaction".
void EndAfterSignals(const std::vector<int>& signals, std::chrono::milliseconds patience,
                     std::chrono::milliseconds with_children);

}  // namespace sifcrypt
