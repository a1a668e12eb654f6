// What the starter tells its parent: a line of JSON for each event, on a descriptor of its own.
#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>

#include "core/system_error.h"
#include "core/unique_fd.h"

namespace sifcrypt::starter {

/// A parent that does not listen any more is not an error.
class Status {
 public:
  explicit Status(UniqueFd fd) : fd_(std::move(fd)) {}
  int fd() const { return fd_.get(); }
  /// Throws SystemError where a parent listens and cannot be told.
  void Ready(pid_t pid) const;
  void Error(std::string_view step, int error, std::string_view message) const;
  /// `signal`: what ended the payload, or 0. `runtime_message`: why the OCI runtime did not start it; empty when it did.
  void Exit(int code, int signal, std::string_view runtime_message) const;

 private:
  bool Write(const std::string& line) const;
  UniqueFd fd_;
};

/// As a string of JSON.
std::string Quote(std::string_view text);

/// The step of the start that failed, as the parent knows it: the operation, or "server" for what is no step's name.
std::string StepOf(const SystemError& failure);

/// The first message of level "error" in the OCI runtime's JSON log; empty when there is none.
std::string FirstRuntimeError(std::string_view log);

}  // namespace sifcrypt::starter
