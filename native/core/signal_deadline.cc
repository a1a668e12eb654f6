#include "core/signal_deadline.h"

#include <semaphore.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <mutex>
#include <system_error>
#include <thread>

#include "core/system_error.h"

namespace sifcrypt {
namespace {

// What a handler of signals touches: nothing of it is ever destroyed.
using std::chrono::milliseconds;
std::atomic<milliseconds::rep> patience_left{0};
std::atomic<milliseconds::rep> patience_with_children{0};
std::atomic<int> asked{0};
sem_t came;
struct sigaction handled[NSIG];

void Note(int number, siginfo_t* info, void* context) {
  const int saved = errno;
  int none = 0;
  if (asked.compare_exchange_strong(none, number)) sem_post(&came);
  errno = saved;
  const struct sigaction& next = handled[number];
  if ((next.sa_flags & SA_SIGINFO) != 0)
    next.sa_sigaction(number, info, context);
  else
    next.sa_handler(number);
}

constexpr milliseconds kLookAtChildren{20};

/// They stay for whoever waits for them.
bool HasChildren() {
  siginfo_t info;
  return waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0;
}

[[noreturn]] void WaitForSignals() {
  for (;;) {
    while (sem_wait(&came) != 0) {
    }
    const auto start = std::chrono::steady_clock::now();
    std::this_thread::sleep_until(start + milliseconds(patience_left));
    while (HasChildren() && std::chrono::steady_clock::now() < start + milliseconds(patience_with_children))
      std::this_thread::sleep_for(kLookAtChildren);
    // Meanwhile somebody may have come to need the signals.
    if (patience_left > 0) _exit(128 + asked);
    asked = 0;
  }
}

/// A thread that no signal is handled in.
void StartWaiting() {
  sem_init(&came, 0, 0);
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int failure = 0;
  try {
    std::thread(WaitForSignals).detach();
  } catch (const std::system_error& cause) {
    failure = cause.code().value();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (failure != 0) throw SystemError(failure, "pthread_create");
}

}  // namespace

void EndAfterSignals(const std::vector<int>& signals, milliseconds patience, milliseconds with_children) {
  static std::once_flag started;
  patience_left = patience.count();
  patience_with_children = with_children.count();
  std::call_once(started, StartWaiting);
  for (const int number : signals) {
    struct sigaction now = {};
    CheckErrno(sigaction(number, nullptr, &now), "sigaction");
    const bool is_ours = (now.sa_flags & SA_SIGINFO) != 0 && now.sa_sigaction == Note;
    if (is_ours || now.sa_handler == SIG_DFL || now.sa_handler == SIG_IGN) continue;
    handled[number] = now;
    now.sa_flags |= SA_SIGINFO;
    now.sa_sigaction = Note;
    CheckErrno(sigaction(number, &now, nullptr), "sigaction");
  }
}

}  // namespace sifcrypt
