#include "core/file_range.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <vector>

namespace sifcrypt {
namespace {

constexpr uint64_t kZeros = uint64_t{1} << 20;

}  // namespace

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

void WipeRange(int fd, uint64_t offset, uint64_t size) {
  struct stat st {};
  CheckErrno(fstat(fd, &st), "fstat");
  const auto end_of_file = static_cast<uint64_t>(st.st_size);
  if (offset >= end_of_file) return;
  const uint64_t end = offset + std::min(size, end_of_file - offset);
  const std::vector<uint8_t> zeros(std::min<uint64_t>(end - offset, kZeros));
  for (uint64_t at = offset; at < end;) {
    const off_t data = lseek(fd, static_cast<off_t>(at), SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;
    // EINVAL: no hole detection there; everything is data then.
    if (data >= 0) at = std::max(at, static_cast<uint64_t>(data));
    if (at >= end) break;
    const auto n = static_cast<size_t>(std::min<uint64_t>(zeros.size(), end - at));
    WriteFully(fd, at, zeros.data(), n);
    at += n;
  }
  // A hole alone would leave the old bytes on the disk, for whoever reads that.
  CheckErrno(fdatasync(fd), "fdatasync");
  if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                static_cast<off_t>(end - offset)) < 0 &&
      errno != EOPNOTSUPP && errno != ENOSYS)
    throw SystemError(errno, "fallocate");
}

std::shared_ptr<const ByteSource> OpenDescriptor(int fd, Extent extent) {
  return std::make_shared<FileSource>(fd, extent.offset, extent.size);
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
