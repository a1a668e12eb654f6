#include "core/error_name.h"

#include <cerrno>

namespace sifcrypt {
namespace {

struct NamedError {
  int error;
  const char* name;
};

/// strerrorname_np needs a C library of 2020; clusters have older ones.
constexpr NamedError kNames[] = {
    {EPERM, "EPERM"},
    {ENOENT, "ENOENT"},
    {ESRCH, "ESRCH"},
    {EINTR, "EINTR"},
    {EIO, "EIO"},
    {ENXIO, "ENXIO"},
    {E2BIG, "E2BIG"},
    {ENOEXEC, "ENOEXEC"},
    {EBADF, "EBADF"},
    {ECHILD, "ECHILD"},
    {EAGAIN, "EAGAIN"},
    {ENOMEM, "ENOMEM"},
    {EACCES, "EACCES"},
    {EFAULT, "EFAULT"},
    {ENOTBLK, "ENOTBLK"},
    {EBUSY, "EBUSY"},
    {EEXIST, "EEXIST"},
    {EXDEV, "EXDEV"},
    {ENODEV, "ENODEV"},
    {ENOTDIR, "ENOTDIR"},
    {EISDIR, "EISDIR"},
    {EINVAL, "EINVAL"},
    {ENFILE, "ENFILE"},
    {EMFILE, "EMFILE"},
    {ENOTTY, "ENOTTY"},
    {ETXTBSY, "ETXTBSY"},
    {EFBIG, "EFBIG"},
    {ENOSPC, "ENOSPC"},
    {ESPIPE, "ESPIPE"},
    {EROFS, "EROFS"},
    {EMLINK, "EMLINK"},
    {EPIPE, "EPIPE"},
    {ERANGE, "ERANGE"},
    {ENAMETOOLONG, "ENAMETOOLONG"},
    {ENOSYS, "ENOSYS"},
    {ELOOP, "ELOOP"},
    {EPROTO, "EPROTO"},
    {EBADMSG, "EBADMSG"},
    {EOVERFLOW, "EOVERFLOW"},
    {ELIBACC, "ELIBACC"},
    {EUSERS, "EUSERS"},
    {EMSGSIZE, "EMSGSIZE"},
    {ENOTSUP, "ENOTSUP"},
    {ENOTCONN, "ENOTCONN"},
    {ETIMEDOUT, "ETIMEDOUT"},
    {ESTALE, "ESTALE"},
    {EDQUOT, "EDQUOT"},
    {ENOKEY, "ENOKEY"},
    {EKEYREJECTED, "EKEYREJECTED"},
    {EDOM, "EDOM"},
    {ENOTEMPTY, "ENOTEMPTY"},
    {ECANCELED, "ECANCELED"},
    {EALREADY, "EALREADY"},
    {EILSEQ, "EILSEQ"},
    {EDEADLK, "EDEADLK"},
    {ENOLCK, "ENOLCK"},
    {ENODATA, "ENODATA"},
    {EREMOTEIO, "EREMOTEIO"},
    {ENOMEDIUM, "ENOMEDIUM"},
    {EKEYEXPIRED, "EKEYEXPIRED"},
    {EKEYREVOKED, "EKEYREVOKED"},
    {ECONNRESET, "ECONNRESET"},
    {ENOBUFS, "ENOBUFS"},
    {EUCLEAN, "EUCLEAN"},
    {EMEDIUMTYPE, "EMEDIUMTYPE"},
};

}  // namespace

std::string ErrorName(int error) {
  for (const NamedError& named : kNames)
    if (named.error == error) return named.name;
  return "E" + std::to_string(error);
}

}  // namespace sifcrypt
