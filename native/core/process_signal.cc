#include "core/process_signal.h"

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <sstream>

#include "core/system_error.h"
#include "core/unique_fd.h"

namespace sifcrypt {
namespace {

// Younger than the headers that some of the systems we build on have; in this order the same numbers everywhere.
#ifdef SYS_pidfd_open
constexpr long kPidfdOpen = SYS_pidfd_open;
constexpr long kPidfdSendSignal = SYS_pidfd_send_signal;
#else
constexpr long kPidfdOpen = 434;
constexpr long kPidfdSendSignal = 424;
#endif
/// proc(5): the 22nd field of stat is the 20th behind the name.
constexpr int kStartTimeField = 20;

std::string StartTimeOf(pid_t process) {
  std::ifstream file("/proc/" + std::to_string(process) + "/stat", std::ios::binary);
  const std::string stat{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  // The name may hold anything; its end is the last parenthesis.
  const size_t end = stat.rfind(')');
  if (end == std::string::npos) return {};
  std::istringstream fields(stat.substr(end + 1));
  std::string field;
  for (int i = 0; i < kStartTimeField; ++i) fields >> field;
  return field;
}

}  // namespace

bool SignalProcess(pid_t process, const std::string& start_time, int signal) {
  const UniqueFd fd(static_cast<int>(syscall(kPidfdOpen, process, 0)));
  // Before Linux 5.3 there is nothing better than the number.
  const bool by_number = !fd && errno == ENOSYS;
  if (!fd && !by_number) {
    if (errno == ESRCH || errno == EINVAL) return false;
    throw SystemError(errno, "pidfd_open");
  }
  // Looked at behind the opening: the descriptor is that of this process, or of one that has ended.
  if (StartTimeOf(process) != start_time) return false;
  siginfo_t info{};
  info.si_signo = signal;
  info.si_code = SI_QUEUE;
  info.si_pid = getpid();
  info.si_uid = getuid();
  info.si_value.sival_int = kLastSignal;
  const long sent =
      by_number ? sigqueue(process, signal, info.si_value) : syscall(kPidfdSendSignal, fd.get(), signal, &info, 0);
  if (sent == 0) return true;
  if (errno == ESRCH) return false;
  throw SystemError(errno, "pidfd_send_signal");
}

}  // namespace sifcrypt
