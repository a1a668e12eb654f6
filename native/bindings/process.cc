#include <sys/prctl.h>

#include "bindings/convert.h"
#include "bindings/exports.h"
#include "core/system_error.h"

namespace sifcrypt {

Napi::Value ForbidDumps(const Napi::CallbackInfo& info) {
  if (prctl(PR_SET_DUMPABLE, 0) != 0) {
    const Napi::Error error = Napi::Error::New(info.Env(), "prctl: cannot leave core dumps");
    DescribeSystemError(error.Value(), SystemError(errno, "prctl"));
    error.ThrowAsJavaScriptException();
  }
  return info.Env().Undefined();
}

}  // namespace sifcrypt
