// A file inside a squashfs as a ByteSource.
#pragma once

#include <memory>
#include <string_view>

#include "core/byte_range.h"
#include "core/squashfs_reader.h"

namespace sifcrypt {

class SquashfsFileSource final : public ByteSource {
 public:
  /// EISDIR, EINVAL: not a regular file.
  SquashfsFileSource(std::shared_ptr<const SquashfsReader> reader, InodeRef file);
  uint64_t Size() const override { return file_->size; }
  void ReadAt(uint64_t offset, void* out, size_t size) const override;

 private:
  std::shared_ptr<const SquashfsReader> reader_;
  InodePtr file_;
};

/// The file `name` in the root of a squashfs that is there for little else, so its reader keeps little in memory.
/// FormatError: there is none.
std::shared_ptr<const ByteSource> OpenSquashfsFile(std::shared_ptr<const ByteSource> squashfs, std::string_view name);

}  // namespace sifcrypt
