// Steps of work that an input may cost, however few bytes it has: a few can stand for any number of copies, look-ups and passes
// over what is there. Counted and not timed, so that the same input ends the same everywhere.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "core/system_error.h"

namespace sifcrypt {

class WorkBudget {
 public:
  /// Throws to stop.
  using Look = std::function<void()>;

  /// `operation` is the error's; `look` is called every few milliseconds of work.
  WorkBudget(std::string operation, uint64_t steps, Look look)
      : operation_(std::move(operation)), steps_(steps), left_(steps), look_(std::move(look)) {}

  /// Before they are taken. SystemError EFBIG if there are no more.
  void Take(uint64_t steps, const std::string& name) {
    if (steps > left_)
      throw SystemError(EFBIG, operation_, name + ": more than " + std::to_string(steps_) + " steps of work");
    left_ -= steps;
    unlooked_ += steps;
    if (unlooked_ < kLookEvery) return;
    unlooked_ = 0;
    if (look_) look_();
  }
  uint64_t taken() const { return steps_ - left_; }

 private:
  // A step takes some ten nanoseconds.
  static constexpr uint64_t kLookEvery = uint64_t{1} << 16;

  std::string operation_;
  uint64_t steps_;
  uint64_t left_;
  uint64_t unlooked_ = 0;
  Look look_;
};

}  // namespace sifcrypt
