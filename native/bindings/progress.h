// Carries progress from the threads that do the work to a JS function on the event loop, and the wish to stop back.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>

#include "bindings/napi_setup.h"

namespace sifcrypt {

class Progress {
 public:
  Progress(Napi::Env env, const Napi::Function& callback)
      : state_(std::make_shared<State>()), function_(Napi::ThreadSafeFunction::New(env, callback, "onProgress", 0, 1)) {
    // The work itself keeps the event loop alive.
    function_.Unref(env);
  }
  ~Progress() {
    state_->ended = true;
    function_.Release();
  }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// By one thread at a time. False: stop.
  bool Report(uint64_t bytes, std::optional<uint64_t> total = std::nullopt) {
    const auto now = std::chrono::steady_clock::now();
    if (now >= next_report_ && !state_->under_way.exchange(true)) {
      next_report_ = now + kInterval;
      const napi_status status =
          function_.NonBlockingCall([state = state_, bytes, total](Napi::Env env, Napi::Function callback) {
            // What comes after the promise was settled would only confuse.
            if (state->ended) return;
            try {
              const Napi::Value known = total ? Napi::Number::New(env, static_cast<double>(*total)) : env.Undefined();
              const Napi::Value wanted = callback.Call({Napi::Number::New(env, static_cast<double>(bytes)), known});
              if (wanted.IsBoolean() && !wanted.As<Napi::Boolean>().Value()) state->stop = true;
            } catch (const Napi::Error&) {
              // A callback that throws asks for no more.
              state->stop = true;
            }
            state->under_way = false;
          });
      if (status != napi_ok) state_->stop = true;  // the environment is going away
    }
    return !state_->stop;
  }

 private:
  static constexpr std::chrono::milliseconds kInterval{100};
  struct State {
    std::atomic<bool> stop = false;
    std::atomic<bool> ended = false;
    std::atomic<bool> under_way = false;
  };
  std::shared_ptr<State> state_;
  Napi::ThreadSafeFunction function_;
  std::chrono::steady_clock::time_point next_report_ = std::chrono::steady_clock::now() + kInterval;
};

/// The second argument of a call.
inline Napi::Function ProgressArgument(const Napi::CallbackInfo& info) {
  if (!info[1].IsFunction()) throw Napi::TypeError::New(info.Env(), "onProgress must be a function");
  return info[1].As<Napi::Function>();
}

}  // namespace sifcrypt
