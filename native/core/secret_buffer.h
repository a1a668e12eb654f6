// Bytes that must not outlive their use: own pages, locked, left out of core dumps and of children, wiped when freed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace sifcrypt {

class SecretBuffer {
 public:
  SecretBuffer() = default;
  explicit SecretBuffer(size_t size);
  /// Copies; the caller wipes its own.
  SecretBuffer(const void* bytes, size_t size);
  SecretBuffer(SecretBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        mapped_(std::exchange(other.mapped_, 0)) {}
  SecretBuffer& operator=(SecretBuffer&& other) noexcept;
  SecretBuffer(const SecretBuffer&) = delete;
  SecretBuffer& operator=(const SecretBuffer&) = delete;
  ~SecretBuffer() { Wipe(); }

  uint8_t* data() noexcept { return data_; }
  const uint8_t* data() const noexcept { return data_; }
  size_t size() const noexcept { return size_; }
  bool empty() const noexcept { return size_ == 0; }

  /// Zeroes and unmaps. Idempotent.
  void Wipe() noexcept;

  /// Reads at most `limit` bytes from `fd` until its end; more than that is EMSGSIZE.
  static SecretBuffer ReadAll(int fd, size_t limit);

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
  size_t mapped_ = 0;
};

}  // namespace sifcrypt
