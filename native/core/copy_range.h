// Bytes of one range into another, as they are.
#pragma once

#include <cstdint>
#include <functional>

#include "core/byte_range.h"

namespace sifcrypt {

/// Leaves the sink unfinished. `progress` gets bytes so far; false: stop (ECANCELED). Returns how many.
uint64_t CopyRange(const ByteSource& source, ByteSink& sink, const std::function<bool(uint64_t)>& progress);

}  // namespace sifcrypt
