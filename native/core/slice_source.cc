#include "core/slice_source.h"

#include <utility>

#include "core/system_error.h"

namespace sifcrypt {

SliceSource::SliceSource(std::shared_ptr<const ByteSource> whole, Extent extent)
    : whole_(std::move(whole)), extent_(extent) {
  if (!RangeFits(extent.offset, extent.size, whole_->Size()))
    throw SystemError(EOVERFLOW, "pread", "the range does not lie inside the source");
}

void SliceSource::ReadAt(uint64_t offset, void* out, size_t size) const {
  if (!RangeFits(offset, size, extent_.size))
    throw SystemError(EOVERFLOW, "pread", "the range ends past the end of the source");
  whole_->ReadAt(extent_.offset + offset, out, size);
}

}  // namespace sifcrypt
