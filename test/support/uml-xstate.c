// Loaded before User-Mode Linux (LD_PRELOAD) by uml-run.sh: kernels of it before 6.13 keep a processor's extended state in
// a buffer of fixed size and hand that to ptrace(2), and the host's kernel refuses to set less than all there is. On
// processors with more state than that (AMX needs 11 KiB) the guest's first process then dies. Here the buffer is put over the
// whole state of the process that is traced; what lies behind its end, nobody in the guest uses.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

long ptrace(enum __ptrace_request request, ...) {
  static long (*next)(enum __ptrace_request, ...);
  if (next == NULL) next = (long (*)(enum __ptrace_request, ...))dlsym(RTLD_NEXT, "ptrace");
  va_list arguments;
  va_start(arguments, request);
  const pid_t process = va_arg(arguments, pid_t);
  void *address = va_arg(arguments, void *);
  void *data = va_arg(arguments, void *);
  va_end(arguments);
  if ((request != PTRACE_GETREGSET && request != PTRACE_SETREGSET) || address != (void *)NT_X86_XSTATE)
    return next(request, process, address, data);

  static _Thread_local unsigned char state[64 << 10];
  struct iovec *part = data;
  struct iovec whole = {state, sizeof state};
  const long result = next(PTRACE_GETREGSET, process, address, &whole);
  if (result != 0) return result;
  const size_t size = part->iov_len < whole.iov_len ? part->iov_len : whole.iov_len;
  if (request == PTRACE_SETREGSET) {
    memcpy(state, part->iov_base, size);
    return next(PTRACE_SETREGSET, process, address, &whole);
  }
  memcpy(part->iov_base, state, size);
  part->iov_len = size;
  return 0;
}
