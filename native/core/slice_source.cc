#include "core/slice_source.h"

#include <utility>

#include "core/system_error.h"

namespace sifcrypt {

SliceSource::SliceSource(std::shared_ptr<const ByteSource> whole, uint64_t offset, uint64_t size)
    : whole_(std::move(whole)), offset_(offset), size_(size) {
  if (!RangeFits(offset, size, whole_->Size()))
    throw SystemError(EOVERFLOW, "pread", "the range does not lie inside the source");
}

void SliceSource::ReadAt(uint64_t offset, void* out, size_t size) const {
  if (!RangeFits(offset, size, size_))
    throw SystemError(EOVERFLOW, "pread", "the range ends past the end of the source");
  whole_->ReadAt(offset_ + offset, out, size);
}

}  // namespace sifcrypt
