#include "starter/runtime.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include "core/system_error.h"
#include "starter/crun.h"
#include "starter/terminal_size.h"

namespace sifcrypt::starter {
namespace {

/// How long processes that outlive the payload's main process may take to end by themselves, then on SIGTERM.
constexpr int kLingerMs = 200;
constexpr int kLingerTermMs = 2000;
/// How long the payload may take to end when this process itself is asked to.
constexpr int kTerminateMs = 1000;
constexpr int kLookPeriodMs = 200;
/// How long a payload whose terminal has gone may take to end by it, before it goes on without.
constexpr int kHangUpMs = 300;
constexpr int kKillPeriodMs = 50;
/// So many rounds the runtime is spared, to give it the chance of ending in order.
constexpr int kPatientRounds = 10;
constexpr int kKillPatienceMs = 5000;
constexpr int kFailure = 255;
// PIDFD_GET_INFO, Linux 6.15: how a process has ended that somebody else has reaped. linux/pidfd.h of today's headers.
struct PidfdInfo {
  uint64_t mask;
  uint64_t cgroup;
  uint32_t ids[11];
  int32_t exit_code;
};
constexpr unsigned long kPidfdGetInfo = _IOWR(0xFF, 11, PidfdInfo);
constexpr uint64_t kPidfdInfoExit = 1U << 3;

}  // namespace

Runtime::Runtime(const Session& session, const RunOptions& options, const SignalQueue& signals, pid_t group,
                 Journal& journal)
    : session_(session), options_(options), signals_(signals), group_(group), journal_(journal) {
  const std::string path = session.Path("pid");
  // What one before has left that was killed.
  std::error_code ignored;
  for (const std::string& left : {path, session.Path("crun.log"), session.Path("state/" + options.id)})
    std::filesystem::remove_all(left, ignored);
  CheckErrno(mkfifo(path.c_str(), 0600), "crun");
  // Open for writing as well: it never looks closed.
  pid_file_.Reset(CheckErrno(open(path.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC), "crun"));
}

void Runtime::Start() {
  const std::vector<std::string> arguments = {options_.crun,
                                              "--log=file:" + session_.Path("crun.log"),
                                              "--log-format=json",
                                              "--cgroup-manager=" + options_.cgroup_manager,
                                              "--root=" + session_.Path("state"),
                                              "run",
                                              "--no-new-keyring",
                                              "--pid-file=" + session_.Path("pid"),
                                              "--bundle=" + session_.directory(),
                                              PassedOn(options_.preserved),
                                              options_.id};
  process_ = StartCrun(arguments, session_, signals_.original_mask(), [&] {
    // With a terminal to serve it has to be in the foreground; without, what is typed is passed on to all of the payload.
    setpgid(0, options_.has_terminal ? group_ : 0);
    PassOn(options_.preserved);
  });
  DetachStandardStreams();
  if (options_.service.health_interval > 0) health_.emplace(session_, options_, signals_.original_mask(), journal_);
}

Runtime::Result Runtime::Wait(const Channel& control) {
  for (;;) {
    pollfd events[] = {{signals_.fd(), POLLIN, 0},
                       {control_open_ ? control.fd() : -1, POLLIN, 0},
                       {init_ ? -1 : pid_file_.get(), POLLIN, 0},
                       {phase_ == Phase::kRunning && init_ ? init_.get() : -1, POLLIN, 0}};
    int64_t next = timer_;
    if (hang_up_ >= 0) next = next < 0 ? hang_up_ : std::min(next, hang_up_);
    if (phase_ != Phase::kRunning) health_.reset();
    if (health_) next = next < 0 ? health_->next() : std::min(next, health_->next());
    const int timeout = next < 0 ? -1 : static_cast<int>(std::max<int64_t>(0, next - NowMs()));
    if (poll(events, std::size(events), timeout) < 0 && errno != EINTR) throw SystemError(errno, "poll");
    if (OnSignals()) break;
    if (events[1].revents != 0) OnControl(control);
    if (events[2].revents != 0) OnInitKnown();
    if (events[3].revents != 0) Enter(Phase::kLingering, kLingerMs);
    if (timer_ >= 0 && NowMs() >= timer_) OnTimer();
    if (health_ && NowMs() >= health_->next()) health_->OnTime();
    if (hang_up_ >= 0 && NowMs() >= hang_up_) {
      hang_up_ = -1;
      let_go_ = init_process_ > 0;
      if (let_go_) kill(process_, SIGKILL);
    }
  }
  KillDescendants(kKillPatienceMs, session_.helpers());
  RemoveCgroup();
  if (!lost_helper_.empty()) return {kFailure, 0, lost_helper_ + ", which serves an image, has ended"};
  if (WIFSIGNALED(status_)) return {128 + WTERMSIG(status_), WTERMSIG(status_), {}};
  if (init_process_ < 0) OnInitKnown();
  // Another status than the runtime's own is the payload's, whatever went wrong after its end.
  if (init_process_ > 0 && WEXITSTATUS(status_) != EXIT_FAILURE)
    return {WEXITSTATUS(status_), DeathSignal(WEXITSTATUS(status_)), {}};
  std::string message = CrunError(session_.Path("crun.log"));
  // Of some failures crun writes nothing in its log.
  if (message.empty() && init_process_ < 0 && WEXITSTATUS(status_) != 0)
    message = "the runtime ended before it had started the payload";
  return {message.empty() ? WEXITSTATUS(status_) : kFailure, 0, message};
}

int Runtime::DeathSignal(int code) const {
  PidfdInfo info{};
  info.mask = kPidfdInfoExit;
  if (!options_.has_init && init_ && ioctl(init_.get(), kPidfdGetInfo, &info) == 0 && (info.mask & kPidfdInfoExit) != 0)
    return WIFSIGNALED(info.exit_code) ? WTERMSIG(info.exit_code) : 0;
  return SignalOfStatus(code);
}

void Runtime::RemoveCgroup() const {
  // crun has done it, unless it was killed.
  if (!options_.cgroup.empty()) rmdir(("/sys/fs/cgroup" + options_.cgroup).c_str());
}

void Runtime::Enter(Phase phase, int64_t delay_ms) {
  if (phase <= phase_) return;
  phase_ = phase;
  timer_ = NowMs() + delay_ms;
}

void Runtime::Terminate(int grace_ms) {
  is_last_ = true;
  if (phase_ >= Phase::kTerminating) return;
  kill(let_go_ ? init_process_ : process_, SIGTERM);
  Enter(Phase::kTerminating, grace_ms);
}

void Runtime::SignalPayload(int signal) const {
  SignalBelow(let_go_ ? init_process_ : process_, signal);
  if (let_go_) kill(init_process_, signal);
}

void Runtime::OnTimer() {
  switch (phase_) {
    case Phase::kRunning:
      if (kill(init_process_, 0) == 0)
        timer_ = NowMs() + kLookPeriodMs;
      else
        Enter(Phase::kLingering, kLingerMs);
      return;
    case Phase::kLingering:
      SignalPayload(SIGTERM);
      return Enter(Phase::kTerminating, kLingerTermMs);
    case Phase::kTerminating:
    case Phase::kKilling:
      Enter(Phase::kKilling, 0);
      SignalPayload(SIGKILL);
      if (++kill_rounds_ > kPatientRounds) kill(process_, SIGKILL);
      timer_ = NowMs() + kKillPeriodMs;
  }
}

void Runtime::OnControl(const Channel& control) {
  const auto message = control.Receive();
  if (!message) {
    // The main process was killed: nobody waits for an orderly end.
    control_open_ = false;
    is_last_ = true;
    return Enter(Phase::kKilling, 0);
  }
  if (message->kind == Message::Kind::kSignal && message->code == SIGWINCH)
    CopyTerminalSize(process_, init_process_);
  else if (message->kind == Message::Kind::kSignal)
    kill(let_go_ ? init_process_ : process_, message->code);
  if (message->kind == Message::Kind::kLast) is_last_ = true;
  if (message->kind == Message::Kind::kGroupSignal) SignalGroup(message->code);
  if (message->kind == Message::Kind::kHangUp && !let_go_) hang_up_ = NowMs() + kHangUpMs;
  if (message->kind == Message::Kind::kTerminate) Terminate(message->code);
}

void Runtime::SignalGroup(int signal) const {
  pid_t leader = init_process_;
  // sifcrypt-init gives its program a group of its own.
  if (options_.has_init && leader > 0) {
    std::ifstream children("/proc/" + std::to_string(leader) + "/task/" + std::to_string(leader) + "/children");
    children >> leader;
  }
  // Not there yet, or started in another group: then the runtime tells its first process.
  if (leader <= 0 || kill(-leader, signal) != 0) kill(process_, signal);
}

void Runtime::OnInitKnown() {
  char text[32];
  const ssize_t n = read(pid_file_.get(), text, sizeof text);
  if (n <= 0 || std::from_chars(text, text + n, init_process_).ec != std::errc{} || init_process_ <= 0) return;
  init_.Reset(OpenProcess(init_process_));
  if (init_ || phase_ != Phase::kRunning) return;
  // Gone already: what is left now, if anything, is what it started. Before Linux 5.3 one has to look now and then.
  if (errno == ESRCH)
    Enter(Phase::kLingering, kLingerMs);
  else
    timer_ = NowMs() + kLookPeriodMs;
}

bool Runtime::OnSignals() {
  while (const int number = signals_.Next().number) {
    if (EndsProcess(number)) Terminate(kTerminateMs);
  }
  bool ended = false;
  int status = 0;
  for (pid_t child; (child = waitpid(-1, &status, WNOHANG | __WALL)) > 0;) ended |= OnChild(child, status);
  return ended;
}

bool Runtime::OnChild(pid_t child, int status) {
  // The payload is this process's child when the runtime, which was let go of, is no more.
  if (child == (let_go_ ? init_process_ : process_)) {
    status_ = status;
    return true;
  }
  if (health_ && health_->OnChild(child, status)) return false;
  const std::vector<pid_t> helpers = session_.helpers();
  if (std::find(helpers.begin(), helpers.end(), child) != helpers.end()) {
    lost_helper_ = session_.NameOfHelper(child);
    Terminate(0);
  }
  return false;
}

}  // namespace sifcrypt::starter
