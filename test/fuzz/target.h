// What the native fuzz targets share. A target is a file NAME_fuzz.cc with LLVMFuzzerTestOneInput. Linked with libFuzzer it is searched for
// inputs that break something, linked with replay.cc it tries those that there are. What breaks: a report of a sanitizer, any
// exception but SystemError, a rule of the target's own, and more work than the target says that an input may cost.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>

#include "core/byte_range.h"
#include "core/system_error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
// Of the sanitizers' runtime, as sanitizer/allocator_interface.h has it, which GCC does not bring.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void* data, size_t size),
                                                         void (*on_free)(const volatile void* data));

namespace sifcrypt::fuzz {

/// What the bounds of work are for; larger inputs are passed by.
constexpr size_t kMostInput = 64 << 10;

/// Of the processor, on all threads: a hundred times what the inputs of the corpora take with sanitizers, so that only what computes
/// without end, or nearly so, is found by it.
constexpr double kMostSeconds = 5;

/// Ends the process with the rule that does not hold.
inline void Require(bool holds, const char* rule) {
  if (holds) return;
  fprintf(stderr, "broken: %s\n", rule);
  abort();
}

/// Does it, or is it refused as hostile input is? Anything else that it throws ends the process.
template <typename Action>
bool Try(Action action) {
  try {
    action();
    return true;
  } catch (const SystemError&) {
    return false;
  }
}

/// Chance that an input repeats.
class Chance {
 public:
  explicit Chance(uint64_t seed) : state_(seed) {}
  uint64_t Below(uint64_t end) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return end == 0 ? 0 : (state_ >> 33) % end;
  }

 private:
  uint64_t state_;
};

/// An input that is used up front to back; zeros when it has ended.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  bool empty() const { return at_ == size_; }
  unsigned Byte() { return empty() ? 0 : data_[at_++]; }
  unsigned Pair() { return Byte() | Byte() << 8; }
  const uint8_t* rest() const { return data_ + at_; }
  size_t rest_size() const { return size_ - at_; }

 private:
  const uint8_t* data_;
  size_t size_;
  size_t at_ = 0;
};

/// How much work was done, or may be.
struct Amount {
  uint64_t allocations = 0;
  /// Bytes of all of them together.
  uint64_t allocated = 0;
  /// Calls of the source at the bottom, and their bytes.
  uint64_t reads = 0;
  uint64_t read = 0;
  /// Bytes that came out.
  uint64_t output = 0;
};

/// Of the input that is tried.
struct Counters {
  std::atomic<bool> counting = false;
  std::atomic<uint64_t> allocations = 0;
  std::atomic<uint64_t> allocated = 0;
  std::atomic<uint64_t> reads = 0;
  std::atomic<uint64_t> read = 0;
  std::atomic<uint64_t> output = 0;
};
inline Counters counters;
/// The most that any input took.
inline Amount most;
inline double most_seconds = 0;

inline void CountOutput(uint64_t bytes) { counters.output += bytes; }

/// Counts what an input costs for as long as it exists, on all threads; at its end more than the bound is a finding.
class Work {
 public:
  explicit Work(const Amount& bound) : bound_(bound) {
    static const bool hooked = __sanitizer_install_malloc_and_free_hooks(
                                   [](const volatile void*, size_t size) {
                                     if (!counters.counting) return;
                                     ++counters.allocations;
                                     counters.allocated += size;
                                   },
                                   [](const volatile void*) {}) > 0;
    Require(hooked, "allocations are counted");
    for (auto* counter :
         {&counters.allocations, &counters.allocated, &counters.reads, &counters.read, &counters.output})
      *counter = 0;
    counters.counting = true;
    started_ = Seconds();
  }
  ~Work() {
    counters.counting = false;
    const double seconds = Seconds() - started_;
    most_seconds = std::max(most_seconds, seconds);
    if (seconds > kMostSeconds) {
      fprintf(stderr, "too much work: %.1f s of the processor, of %.0f at most\n", seconds, kMostSeconds);
      abort();
    }
    Check(counters.allocations, bound_.allocations, most.allocations, "allocations");
    Check(counters.allocated, bound_.allocated, most.allocated, "bytes of allocations");
    Check(counters.reads, bound_.reads, most.reads, "reads");
    Check(counters.read, bound_.read, most.read, "bytes read");
    Check(counters.output, bound_.output, most.output, "bytes of output");
  }
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;

 private:
  static void Check(uint64_t taken, uint64_t bound, uint64_t& most_taken, const char* what) {
    most_taken = std::max(most_taken, taken);
    if (taken <= bound) return;
    fprintf(stderr, "too much work: %llu %s, of %llu at most\n", static_cast<unsigned long long>(taken), what,
            static_cast<unsigned long long>(bound));
    abort();
  }
  static double Seconds() {
    timespec now{};
    Require(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now) == 0, "the processor's time is counted");
    return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
  }
  Amount bound_;
  double started_ = 0;
};

/// The source at the bottom: an allocation of just its size, so that a sanitizer sees what reads past it.
class Bytes final : public ByteSource {
 public:
  Bytes(const uint8_t* data, size_t size) : bytes_(data, data + size) {}
  explicit Bytes(const std::vector<uint8_t>& bytes) : bytes_(bytes) {}
  uint64_t Size() const override { return bytes_.size(); }
  void ReadAt(uint64_t offset, void* out, size_t size) const override {
    ++counters.reads;
    if (!RangeFits(offset, size, bytes_.size())) throw SystemError(EOVERFLOW, "pread", "past the end of the input");
    counters.read += size;
    if (size > 0) memcpy(out, bytes_.data() + offset, size);
  }

 private:
  const std::vector<uint8_t> bytes_;
};

inline bool AreZero(const uint8_t* data, size_t size) {
  return size == 0 || (data[0] == 0 && memcmp(data, data + 1, size - 1) == 0);
}

/// Looks at bytes, so that a sanitizer does.
inline volatile uint8_t seen;
inline void Look(const void* data, size_t size) {
  uint8_t all = 0;
  for (size_t i = 0; i < size; ++i) all = static_cast<uint8_t>(all ^ static_cast<const uint8_t*>(data)[i]);
  seen = all;
}

}  // namespace sifcrypt::fuzz
