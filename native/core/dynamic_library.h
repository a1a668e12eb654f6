// System libraries that are opened at first use, so that the addon and the starter also run where they are missing.
#pragma once

#include <initializer_list>
#include <string>

namespace sifcrypt {

/// A shared library, open until the process ends: its own threads and exit handlers may outlive any caller.
class DynamicLibrary {
 public:
  /// Opens the first of `names` there is. The library binds its symbols to its own dependencies and not to what the
  /// process happens to export (Node carries an OpenSSL of its own). Throws SystemError(ELIBACC, "dlopen") that names
  /// the library and `packages`, the distributions' packages that have it; EMFILE where there is no descriptor left to open it by.
  DynamicLibrary(std::initializer_list<const char*> names, const char* packages);

  /// Throws SystemError(ELIBACC, "dlsym") when the library is too old to have it.
  void* Symbol(const char* name) const;

  template <typename Function>
  void Load(Function*& function, const char* name) const {
    function = reinterpret_cast<Function*>(Symbol(name));
  }

 private:
  void* handle_ = nullptr;
  std::string name_;
};

}  // namespace sifcrypt
