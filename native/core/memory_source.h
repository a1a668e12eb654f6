// Bytes in memory, for where others are read.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "core/byte_range.h"
#include "core/system_error.h"

namespace sifcrypt {

class MemorySource final : public ByteSource {
 public:
  explicit MemorySource(std::vector<uint8_t> bytes) : bytes_(std::move(bytes)) {}
  uint64_t Size() const override { return bytes_.size(); }
  void ReadAt(uint64_t offset, void* out, size_t size) const override {
    if (!RangeFits(offset, size, bytes_.size()))
      throw SystemError(EOVERFLOW, "pread", "the range ends past the end of the source");
    if (size > 0) std::memcpy(out, bytes_.data() + offset, size);
  }

 private:
  std::vector<uint8_t> bytes_;
};

}  // namespace sifcrypt
