#include "core/squashfs_file_source.h"

#include <optional>
#include <utility>

namespace sifcrypt {
namespace {

// Most of what is read goes past these.
constexpr SquashfsReader::Limits kEnclosingLimits{size_t{1} << 20, size_t{1} << 20, size_t{64} << 10};

}  // namespace

SquashfsFileSource::SquashfsFileSource(std::shared_ptr<const SquashfsReader> reader, InodeRef file)
    : reader_(std::move(reader)), file_(reader_->GetInode(file)) {
  if (file_->type == InodeType::kDirectory) throw SystemError(EISDIR, "squashfs_open");
  if (file_->type != InodeType::kFile) throw SystemError(EINVAL, "squashfs_open", "not a regular file");
}

void SquashfsFileSource::ReadAt(uint64_t offset, void* out, size_t size) const {
  if (!RangeFits(offset, size, file_->size))
    throw SystemError(EOVERFLOW, "squashfs_read", "the range ends past the end of the source");
  reader_->ReadThrough(*file_, offset, out, size);
}

std::shared_ptr<const ByteSource> OpenSquashfsFile(std::shared_ptr<const ByteSource> squashfs, std::string_view name) {
  auto reader = std::make_shared<const SquashfsReader>(std::move(squashfs), kEnclosingLimits);
  const std::optional<InodeRef> file = reader->Lookup(*reader->GetInode(reader->Root()), name);
  if (!file) throw FormatError("squashfs_open", "the enclosing squashfs lacks the encrypted file");
  return std::make_shared<SquashfsFileSource>(std::move(reader), *file);
}

}  // namespace sifcrypt
