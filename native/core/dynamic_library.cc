#include "core/dynamic_library.h"

#include <dlfcn.h>

#include "core/spare_descriptors.h"
#include "core/system_error.h"

namespace sifcrypt {
namespace {

constexpr int OpenFlags() {
  int flags = RTLD_NOW | RTLD_LOCAL;
// AddressSanitizer replaces malloc by symbol interposition, which deep binding would undo in half of the process.
#if defined(__SANITIZE_ADDRESS__)
  return flags;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
  return flags;
#endif
#endif
#ifdef RTLD_DEEPBIND
  flags |= RTLD_DEEPBIND;
#endif
  return flags;
}

}  // namespace

DynamicLibrary::DynamicLibrary(std::initializer_list<const char*> names, const char* packages) {
  std::string reason;
  for (const char* name : names) {
    handle_ = dlopen(name, OpenFlags());
    if (handle_ != nullptr) {
      name_ = name;
      return;
    }
    // The first name is the usual one; why it failed says more than that an alternative is missing too.
    if (reason.empty()) reason = dlerror();
  }
  CheckSpareDescriptors("dlopen");
  throw SystemError(ELIBACC, "dlopen", reason + " (" + packages + ")");
}

void* DynamicLibrary::Symbol(const char* name) const {
  void* symbol = dlsym(handle_, name);
  if (symbol == nullptr) throw SystemError(ELIBACC, "dlsym", name_ + " is too old: it has no " + name);
  return symbol;
}

}  // namespace sifcrypt
