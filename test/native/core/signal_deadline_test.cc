// A process that a signal asks to end does, whatever it is busy with, unless it says otherwise.
#include "core/signal_deadline.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <functional>

namespace {

using std::chrono::milliseconds;

constexpr int kHandled = 7;
constexpr milliseconds kPatience{50};

volatile sig_atomic_t handled = 0;

int failures = 0;

/// What a process that does this ends with.
void Expect(const char* what, int status, const std::function<void()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    signal(SIGINT, [](int) { handled = kHandled; });
    body();
    _exit(handled);
  }
  int ended = 0;
  waitpid(child, &ended, 0);
  const int found = WIFEXITED(ended) ? WEXITSTATUS(ended) : -WTERMSIG(ended);
  if (found == status) return;
  std::fprintf(stderr, "%s: %d, not %d\n", what, found, status);
  ++failures;
}

[[noreturn]] void StayWithParent() {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  for (;;) pause();
}

void WorkWithoutEnd() {
  for (volatile bool busy = true; busy;) {
  }
}

}  // namespace

int main() {
  using sifcrypt::EndAfterSignals;
  const std::vector<int> both{SIGINT, SIGTERM};

  Expect("busy", 128 + SIGINT, [&] {
    EndAfterSignals(both, kPatience, kPatience);
    raise(SIGINT);
    if (handled != kHandled) _exit(99);
    WorkWithoutEnd();
  });
  Expect("done in time", kHandled, [&] {
    EndAfterSignals(both, std::chrono::minutes(10), std::chrono::minutes(10));
    raise(SIGINT);
  });
  Expect("said to decide by itself", kHandled, [&] {
    EndAfterSignals(both, kPatience, kPatience);
    EndAfterSignals(both, milliseconds(0), milliseconds(0));
    raise(SIGINT);
    usleep(4 * 1000 * static_cast<useconds_t>(kPatience.count()));
  });
  Expect("said so after the signal", kHandled, [&] {
    EndAfterSignals(both, kPatience, kPatience);
    raise(SIGINT);
    EndAfterSignals(both, milliseconds(0), milliseconds(0));
    usleep(4 * 1000 * static_cast<useconds_t>(kPatience.count()));
  });
  Expect("asked again later", 128 + SIGINT, [&] {
    EndAfterSignals(both, milliseconds(0), milliseconds(0));
    raise(SIGINT);
    usleep(1000);
    EndAfterSignals(both, kPatience, kPatience);
    for (;;) raise(SIGINT);
  });
  Expect("busy, while there is a child", kHandled, [&] {
    EndAfterSignals(both, kPatience, std::chrono::minutes(10));
    if (fork() == 0) StayWithParent();
    raise(SIGINT);
    usleep(4 * 1000 * static_cast<useconds_t>(kPatience.count()));
  });
  Expect("busy, when its child has ended", 128 + SIGINT, [&] {
    EndAfterSignals(both, kPatience, std::chrono::minutes(10));
    const pid_t child = fork();
    if (child == 0) StayWithParent();
    raise(SIGINT);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    WorkWithoutEnd();
  });
  Expect("without a handler", -SIGTERM, [&] {
    EndAfterSignals(both, std::chrono::minutes(10), std::chrono::minutes(10));
    raise(SIGTERM);
  });
  return failures == 0 ? 0 : 1;
}
