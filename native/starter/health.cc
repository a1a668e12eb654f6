#include "starter/health.h"

#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "core/system_error.h"
#include "starter/crun.h"
#include "starter/processes.h"

namespace sifcrypt::starter {

Health::Health(const Session& session, const RunOptions& options, const sigset_t& mask, Journal& journal)
    : session_(session),
      options_(options),
      service_(options.service),
      mask_(mask),
      journal_(journal),
      started_(NowMs()),
      next_(started_ + service_.health_interval) {
  journal_.Is(Journal::Health::kStarting);
}

void Health::OnTime() {
  if (command_ < 0) return Ask();
  is_late_ = true;
  SignalBelow(command_, SIGKILL);
  kill(command_, SIGKILL);
  next_ = NowMs() + service_.health_timeout;
}

void Health::Ask() {
  const std::string log = session_.Path("health.log");
  unlink(log.c_str());
  is_late_ = false;
  try {
    command_ = StartCrun(
        {options_.crun, "--log=file:" + log, "--log-format=json", "--cgroup-manager=disabled",
         "--root=" + session_.Path("state"), "exec", "--process=" + session_.Path(kHealthCommand), options_.id},
        session_, mask_, [] {});
    next_ = NowMs() + service_.health_timeout;
  } catch (const SystemError&) {
    OnAnswer(false);
  }
}

bool Health::OnChild(pid_t child, int status) {
  if (child != command_) return false;
  OnAnswer(!is_late_ && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  return true;
}

void Health::OnAnswer(bool well) {
  command_ = -1;
  next_ = NowMs() + service_.health_interval;
  if (well) {
    failures_ = 0;
    return journal_.Is(Journal::Health::kHealthy);
  }
  // Who is just starting may not be well yet.
  if (NowMs() - started_ < service_.health_start) return;
  if (++failures_ >= service_.health_retries) journal_.Is(Journal::Health::kUnhealthy);
}

}  // namespace sifcrypt::starter
