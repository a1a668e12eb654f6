#include "core/file_range.h"

#include <sys/stat.h>

namespace sifcrypt {
namespace {

void ReadFully(int fd, uint64_t at, void* out, size_t size) {
  auto* to = static_cast<uint8_t*>(out);
  while (size > 0) {
    const ssize_t n = pread(fd, to, size, static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (CheckErrno(n, "pread") == 0) throw SystemError(EIO, "pread", "the file ends early");
    to += n;
    at += static_cast<uint64_t>(n);
    size -= static_cast<size_t>(n);
  }
}

}  // namespace

void WriteFully(int fd, uint64_t at, const void* data, size_t size) {
  const auto* from = static_cast<const uint8_t*>(data);
  while (size > 0) {
    const ssize_t n = pwrite(fd, from, size, static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    CheckErrno(n, "pwrite");
    from += n;
    at += static_cast<uint64_t>(n);
    size -= static_cast<size_t>(n);
  }
}

FileSource::FileSource(int fd, uint64_t offset, uint64_t size)
    : fd_(UniqueFd::Duplicate(fd)), offset_(offset), size_(size) {
  struct stat st {};
  CheckErrno(fstat(fd, &st), "fstat");
  if (S_ISREG(st.st_mode) && !RangeFits(offset, size, static_cast<uint64_t>(st.st_size)))
    throw SystemError(EOVERFLOW, "fstat", "the range ends past the end of the file");
}

void FileSource::ReadAt(uint64_t offset, void* out, size_t size) const {
  if (!RangeFits(offset, size, size_))
    throw SystemError(EOVERFLOW, "pread", "the range ends past the end of the source");
  ReadFully(fd_.get(), offset_ + offset, out, size);
}

FileSink::FileSink(int fd, uint64_t offset, uint64_t limit)
    : fd_(UniqueFd::Duplicate(fd)), offset_(offset), limit_(limit) {
  if (!RangeFits(offset, 0, INT64_MAX)) throw SystemError(EFBIG, "pwrite");
  if (limit_ > static_cast<uint64_t>(INT64_MAX) - offset) limit_ = static_cast<uint64_t>(INT64_MAX) - offset;
}

void FileSink::WriteAt(uint64_t offset, const void* data, size_t size) {
  if (!RangeFits(offset, size, limit_)) throw SystemError(EFBIG, "pwrite");
  WriteFully(fd_.get(), offset_ + offset, data, size);
  if (offset + size > size_) size_ = offset + size;
}

void FileSink::ReadAt(uint64_t offset, void* out, size_t size) {
  if (!RangeFits(offset, size, size_)) throw SystemError(EOVERFLOW, "pread");
  ReadFully(fd_.get(), offset_ + offset, out, size);
}

void FileSink::Truncate(uint64_t size) {
  if (size > size_) throw SystemError(EINVAL, "ftruncate");
  CheckErrno(ftruncate(fd_.get(), static_cast<off_t>(offset_ + size)), "ftruncate");
  size_ = size;
}

}  // namespace sifcrypt
