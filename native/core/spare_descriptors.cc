#include "core/spare_descriptors.h"

#include <sys/eventfd.h>

#include <array>

#include "core/system_error.h"
#include "core/unique_fd.h"

namespace sifcrypt {
namespace {

/// libcryptsetup has up to four at a time, for the random generator and the kernel's ciphers; some of them it had when it failed.
constexpr size_t kFew = 6;

}  // namespace

void CheckSpareDescriptors(const char* operation) {
  std::array<UniqueFd, kFew> taken;
  for (UniqueFd& fd : taken) fd = UniqueFd(CheckErrno(eventfd(0, EFD_CLOEXEC), operation));
}

}  // namespace sifcrypt
