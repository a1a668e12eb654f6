#include "core/composed_source.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/system_error.h"

namespace sifcrypt {

ComposedSource::ComposedSource(std::vector<Piece> pieces, uint64_t size) : pieces_(std::move(pieces)), size_(size) {
  uint64_t end = 0;
  for (const Piece& piece : pieces_) {
    if (piece.at < end || !RangeFits(piece.at, piece.source->Size(), size))
      throw SystemError(EOVERFLOW, "pread", "a piece does not lie behind the one before, or inside the whole");
    end = piece.at + piece.source->Size();
  }
}

void ComposedSource::ReadAt(uint64_t offset, void* out, size_t size) const {
  if (!RangeFits(offset, size, size_))
    throw SystemError(EOVERFLOW, "pread", "the range ends past the end of the source");
  auto* bytes = static_cast<uint8_t*>(out);
  // The first one that ends behind `offset`.
  auto piece = std::partition_point(pieces_.begin(), pieces_.end(),
                                    [offset](const Piece& one) { return one.at + one.source->Size() <= offset; });
  while (size > 0) {
    const bool is_last = piece == pieces_.end();
    size_t count = 0;
    if (is_last || piece->at > offset) {
      count = is_last ? size : static_cast<size_t>(std::min<uint64_t>(size, piece->at - offset));
      std::memset(bytes, 0, count);
    } else {
      const uint64_t inside = offset - piece->at;
      count = static_cast<size_t>(std::min<uint64_t>(size, piece->source->Size() - inside));
      piece->source->ReadAt(inside, bytes, count);
      ++piece;
    }
    offset += count;
    bytes += count;
    size -= count;
  }
}

}  // namespace sifcrypt
