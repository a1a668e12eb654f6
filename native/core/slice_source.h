// A part of other bytes.
#pragma once

#include <memory>

#include "core/byte_range.h"

namespace sifcrypt {

class SliceSource final : public ByteSource {
 public:
  /// EOVERFLOW: it does not lie inside.
  SliceSource(std::shared_ptr<const ByteSource> whole, Extent extent);
  uint64_t Size() const override { return extent_.size; }
  void ReadAt(uint64_t offset, void* out, size_t size) const override;

 private:
  std::shared_ptr<const ByteSource> whole_;
  Extent extent_;
};

}  // namespace sifcrypt
