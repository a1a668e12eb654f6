// Bytes that are put together of others.
#pragma once

#include <memory>
#include <vector>

#include "core/byte_range.h"

namespace sifcrypt {

class ComposedSource final : public ByteSource {
 public:
  struct Piece {
    /// Where it begins.
    uint64_t at = 0;
    std::shared_ptr<const ByteSource> source;
  };

  /// In ascending order; what lies between them, and behind the last one, are zeros. EOVERFLOW: they overlap, or end past `size`.
  ComposedSource(std::vector<Piece> pieces, uint64_t size);
  uint64_t Size() const override { return size_; }
  void ReadAt(uint64_t offset, void* out, size_t size) const override;

 private:
  std::vector<Piece> pieces_;
  uint64_t size_;
};

}  // namespace sifcrypt
