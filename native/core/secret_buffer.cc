#include "core/secret_buffer.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/system_error.h"

namespace sifcrypt {

SecretBuffer::SecretBuffer(size_t size) {
  if (size == 0) return;
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  if (size > SIZE_MAX - page) throw SystemError(ENOMEM, "mmap");
  const size_t mapped = (size + page - 1) / page * page;
  void* pages = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) throw SystemError(errno, "mmap");
  // RLIMIT_MEMLOCK may be 0 for an ordinary user; the bytes then can be swapped but are still wiped and undumped.
  static_cast<void>(mlock(pages, mapped));
  static_cast<void>(madvise(pages, mapped, MADV_DONTDUMP));
  // No child reads a parent's secret; without this a helper that is started meanwhile would hold a copy.
  static_cast<void>(madvise(pages, mapped, MADV_DONTFORK));
  data_ = static_cast<uint8_t*>(pages);
  size_ = size;
  mapped_ = mapped;
}

SecretBuffer::SecretBuffer(const void* bytes, size_t size) : SecretBuffer(size) {
  if (size > 0) memcpy(data_, bytes, size);
}

SecretBuffer& SecretBuffer::operator=(SecretBuffer&& other) noexcept {
  if (this != &other) {
    Wipe();
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    mapped_ = std::exchange(other.mapped_, 0);
  }
  return *this;
}

void SecretBuffer::Wipe() noexcept {
  if (data_ == nullptr) return;
  explicit_bzero(data_, mapped_);
  munmap(data_, mapped_);
  data_ = nullptr;
  size_ = mapped_ = 0;
}

SecretBuffer SecretBuffer::ReadAll(int fd, size_t limit) {
  SecretBuffer room(limit + 1);
  size_t used = 0;
  while (used <= limit) {
    const ssize_t n = read(fd, room.data() + used, limit + 1 - used);
    if (n < 0 && errno == EINTR) continue;
    if (CheckErrno(n, "read") == 0) return SecretBuffer(room.data(), used);
    used += static_cast<size_t>(n);
  }
  throw SystemError(EMSGSIZE, "read");
}

}  // namespace sifcrypt
