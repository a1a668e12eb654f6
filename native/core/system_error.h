// A failed system or library call: errno and the name of the operation. Meaning is added in TypeScript (lib/device).
#pragma once

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

namespace sifcrypt {

class SystemError : public std::runtime_error {
 public:
  SystemError(int error, std::string operation, const std::string& detail = {})
      : std::runtime_error(operation + ": " + (detail.empty() ? std::string(std::strerror(error)) : detail)),
        error_(error),
        operation_(std::move(operation)) {}

  /// A positive errno value.
  int error() const noexcept { return error_; }
  /// The call that failed ("pread", "crypt_load"), as Node's `syscall` property.
  const std::string& operation() const noexcept { return operation_; }

 private:
  int error_;
  std::string operation_;
};

/// Throws SystemError with the current errno when `result` is negative; returns it otherwise.
template <typename T>
T CheckErrno(T result, const char* operation) {
  if (result < 0) throw SystemError(errno, operation);
  return result;
}

/// The data breaks a rule of its format (EBADMSG): an image is hostile input, never trusted.
class FormatError : public SystemError {
 public:
  FormatError(std::string operation, const std::string& detail) : SystemError(EBADMSG, std::move(operation), detail) {}
};

}  // namespace sifcrypt
