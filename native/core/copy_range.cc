#include "core/copy_range.h"

#include <algorithm>
#include <vector>

#include "core/system_error.h"

namespace sifcrypt {
namespace {

constexpr size_t kPiece = size_t{1} << 20;

}  // namespace

uint64_t CopyRange(const ByteSource& source, ByteSink& sink, const std::function<bool(uint64_t)>& progress) {
  std::vector<uint8_t> piece(kPiece);
  for (uint64_t at = 0; at < source.Size();) {
    const size_t n = static_cast<size_t>(std::min<uint64_t>(piece.size(), source.Size() - at));
    source.ReadAt(at, piece.data(), n);
    sink.WriteAt(at, piece.data(), n);
    at += n;
    if (progress && !progress(at)) throw SystemError(ECANCELED, "copy");
  }
  return source.Size();
}

}  // namespace sifcrypt
