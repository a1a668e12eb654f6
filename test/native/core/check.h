// What the test programs of the core share: checks that tell what failed and go on.
#pragma once

#include <atomic>
#include <functional>
#include <iostream>
#include <string>

#include "core/system_error.h"

namespace sifcrypt {

inline std::atomic<int> checks = 0;
inline std::atomic<int> failures = 0;

inline void Check(bool good, const std::string& what) {
  ++checks;
  if (good) return;
  ++failures;
  // In one piece: some programs check on several threads.
  std::cerr << "FAILED: " + what + "\n";
}

/// `operation`: of which the failure has to be; empty: of whichever.
inline void CheckError(int error, const std::string& operation, const std::function<void()>& action,
                       const std::string& what) {
  try {
    action();
    Check(false, what + ": no error");
  } catch (const SystemError& caught) {
    const bool is_it = operation.empty() || caught.operation() == operation;
    Check(caught.error() == error && is_it, what + ": " + caught.what());
  }
}

inline void CheckError(int error, const std::function<void()>& action, const std::string& what) {
  CheckError(error, "", action, what);
}

}  // namespace sifcrypt
