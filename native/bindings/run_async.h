// A blocking call as a promise: `work` runs on a pool thread and touches no JS, `convert` on the event loop and makes no
// system call. Native speaks errno: the promise rejects with Node's system-error shape (errno, code, syscall).
#pragma once

#include <exception>
#include <new>
#include <optional>
#include <system_error>
#include <type_traits>
#include <utility>

#include "bindings/convert.h"
#include "bindings/napi_setup.h"
#include "core/system_error.h"

namespace sifcrypt {

template <typename Work, typename Convert>
class AsyncCall final : public Napi::AsyncWorker {
 public:
  using Result = decltype(std::declval<Work&>()());

  AsyncCall(Napi::Env env, Work work, Convert convert)
      : Napi::AsyncWorker(env), deferred_(env), work_(std::move(work)), convert_(std::move(convert)) {}
  Napi::Promise Promise() const { return deferred_.Promise(); }

 private:
  void Execute() override {
    try {
      // The request, and any secret in it, ends with the work and not when JS next looks.
      Work work = std::move(*work_);
      work_.reset();
      result_.emplace(work());
    } catch (const SystemError& error) {
      Fail(error);
    } catch (const std::bad_alloc&) {
      Fail(SystemError(ENOMEM, "malloc"));
    } catch (const std::system_error& error) {
      // A thread that cannot be started.
      Fail(SystemError(error.code().value(), "clone"));
    } catch (const std::exception& error) {
      SetError(error.what());
    }
  }
  void Fail(const SystemError& error) {
    failure_.emplace(error);
    SetError(error.what());
  }
  void OnOK() override {
    try {
      deferred_.Resolve(convert_(Env(), std::move(*result_)));
    } catch (const Napi::Error& error) {
      deferred_.Reject(error.Value());
    }
  }
  void OnError(const Napi::Error& error) override {
    if (failure_) DescribeSystemError(error.Value(), *failure_);
    deferred_.Reject(error.Value());
  }

  Napi::Promise::Deferred deferred_;
  std::optional<Work> work_;
  Convert convert_;
  std::optional<Result> result_;
  std::optional<SystemError> failure_;
};

template <typename Work, typename Convert>
Napi::Value RunAsync(Napi::Env env, Work work, Convert convert) {
  // Napi::AsyncWorker deletes itself when it is done.
  // NOLINTNEXTLINE(cppcoreguidelines-owning-memory)
  auto* call = new AsyncCall<Work, Convert>(env, std::move(work), std::move(convert));
  const Napi::Promise promise = call->Promise();
  call->Queue();
  return promise;
}

/// The same for nothing, or what ToJs converts.
template <typename Work>
Napi::Value RunAsync(Napi::Env env, Work work) {
  if constexpr (std::is_void_v<decltype(work())>) {
    auto whole = [work = std::move(work)]() mutable { return work(), true; };
    return RunAsync(env, std::move(whole), [](Napi::Env own, bool) { return own.Undefined(); });
  } else {
    return RunAsync(env, std::move(work), [](Napi::Env own, const auto& result) { return ToJs(own, result); });
  }
}

}  // namespace sifcrypt
