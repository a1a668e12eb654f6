#include "starter/attend_command.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <iterator>
#include <optional>
#include <string_view>
#include <utility>

#include "core/system_error.h"
#include "core/unique_fd.h"
#include "starter/options.h"

namespace sifcrypt::starter {
namespace {

constexpr int kFailure = 255;
constexpr size_t kMaxReport = size_t{64} << 10;
constexpr size_t kMaxStatus = size_t{64} << 10;

using Arguments = std::vector<std::string>;

std::string ReadAll(int fd, size_t limit) {
  std::string text;
  char part[4096];
  for (;;) {
    const ssize_t n = read(fd, part, sizeof part);
    if (n < 0 && errno == EINTR) continue;
    if (CheckErrno(n, "read") == 0) return text;
    text.append(part, static_cast<size_t>(n));
    if (text.size() > limit) throw SystemError(EMSGSIZE, "read");
  }
}

std::vector<char*> Pointers(Arguments& strings) {
  std::vector<char*> pointers;
  for (std::string& text : strings) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

[[noreturn]] void Execute(const std::string& program, Arguments arguments, Arguments environment) {
  const std::vector<char*> argv = Pointers(arguments);
  const std::vector<char*> envp = Pointers(environment);
  execve(program.c_str(), argv.data(), envp.data());
  _exit(kFailure);
}

/// This program's file. /proc/self/exe itself would give the new process the name "exe".
std::string OwnProgram() {
  char path[PATH_MAX];
  const ssize_t n = CheckErrno(readlink("/proc/self/exe", path, sizeof path), "readlink");
  return {path, static_cast<size_t>(n)};
}

/// Who tells people what went wrong.
struct Report {
  Arguments environment;
  Arguments arguments;

  explicit Report(const std::string& text) {
    Arguments strings;
    for (size_t at = 0; at < text.size();) {
      const size_t end = text.find('\0', at);
      if (end == std::string::npos) throw UsageError("--report-fd: a string ends early");
      strings.push_back(text.substr(at, end - at));
      at = end + 1;
    }
    size_t count = 0;
    if (strings.empty() ||
        std::from_chars(strings[0].data(), strings[0].data() + strings[0].size(), count).ec != std::errc{} ||
        count + 1 >= strings.size())
      throw UsageError("--report-fd: not a report");
    const auto first = strings.begin() + 1;
    const auto arguments_start = first + static_cast<ptrdiff_t>(count);
    environment.assign(first, arguments_start);
    arguments.assign(arguments_start, strings.end());
  }
};

/// One line that the starter told, as status.cc writes it.
struct Told {
  bool ready = false;
  bool failure = false;
  /// What ended the payload, or 0.
  int signal = 0;
  std::string step;
  int error = 0;

  explicit Told(std::string_view line) {
    ready = line.starts_with(R"({"event":"ready")");
    failure = line.starts_with(R"({"event":"error")") || line.find(R"("crun":)") != std::string_view::npos;
    constexpr std::string_view kSignal = R"("signal":)";
    if (const size_t at = line.find(kSignal); line.starts_with(R"({"event":"exit")") && at != std::string_view::npos)
      std::from_chars(line.data() + at + kSignal.size(), line.data() + line.size(), signal);
    constexpr std::string_view kStep = R"("step":")";
    constexpr std::string_view kNumber = R"("errnoNumber":)";
    if (const size_t at = line.find(kStep); at != std::string_view::npos)
      step = line.substr(at + kStep.size(), line.find('"', at + kStep.size()) - at - kStep.size());
    if (const size_t at = line.find(kNumber); at != std::string_view::npos)
      std::from_chars(line.data() + at + kNumber.size(), line.data() + line.size(), error);
  }
};

/// "STEP:ERRNO,…"; a star stands for any.
bool IsListed(std::string_view list, const Told& told) {
  const std::string number = std::to_string(told.error);
  while (!list.empty()) {
    const std::string_view item = list.substr(0, list.find(','));
    list.remove_prefix(std::min(list.size(), item.size() + 1));
    const size_t colon = item.find(':');
    if (colon == std::string_view::npos) continue;
    const std::string_view step = item.substr(0, colon), error = item.substr(colon + 1);
    if ((step == "*" || step == told.step) && (error == "*" || error == number)) return true;
  }
  return false;
}

/// A starter that runs already, as a child of this process.
struct Begun {
  pid_t process = -1;
  UniqueFd status;
  UniqueFd watch;

  /// "PID,STATUS,WATCH".
  static Begun Parse(const std::string& text) {
    int numbers[3];
    const char* at = text.data();
    const char* end = at + text.size();
    for (size_t i = 0; i < std::size(numbers); ++i) {
      if (i > 0 && (at == end || *at++ != ',')) throw UsageError("--begun: three numbers are needed");
      const auto [stop, error] = std::from_chars(at, end, numbers[i]);
      if (error != std::errc{}) throw UsageError("--begun: three numbers are needed");
      at = stop;
    }
    Begun begun{numbers[0], UniqueFd(numbers[1]), UniqueFd(numbers[2])};
    siginfo_t info{};
    if (at != end || begun.process <= 0 ||
        waitid(P_PID, static_cast<id_t>(begun.process), &info, WEXITED | WNOHANG | WNOWAIT) != 0)
      throw UsageError("--begun: not a child");
    for (const UniqueFd* fd : {&begun.status, &begun.watch}) CheckErrno(fcntl(fd->get(), F_SETFD, FD_CLOEXEC), "fcntl");
    return begun;
  }
};

class Attendant {
 public:
  /// `begun` is the first attempt.
  Attendant(Report report, std::string retry_on, Begun begun, const SignalQueue& signals)
      : report_(std::move(report)),
        retry_on_(std::move(retry_on)),
        signals_(signals),
        status_(std::move(begun.status)),
        watch_(std::move(begun.watch)),
        child_(begun.process) {}

  /// Ends with the process, or gives the exit status. `others`: the attempts that follow the first one.
  int Attend(const std::vector<Arguments>& others) {
    for (size_t i = 0;; ++i) {
      const bool last = i == others.size();
      if (i > 0) Start(others[i - 1]);
      if (last) retry_on_.clear();
      const int status = Wait();
      if (retryable_) continue;
      const bool died = WIFSIGNALED(status);
      if (died && !failed_) DieBySignal(WTERMSIG(status));
      if (failed_ || !started_) Tell(i, status);
      // As the payload has ended, so ends this process.
      if (death_signal_ > 0) DieBySignal(death_signal_);
      return WEXITSTATUS(status);
    }
  }

 private:
  void Start(const Arguments& attempt) {
    failed_ = retryable_ = started_ = false;
    told_.clear();
    unread_.clear();
    int pipe_ends[2];
    CheckErrno(pipe2(pipe_ends, O_CLOEXEC), "pipe2");
    status_.Reset(pipe_ends[0]);
    const UniqueFd status(pipe_ends[1]);
    int socket_ends[2];
    CheckErrno(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, socket_ends), "socketpair");
    watch_.Reset(socket_ends[0]);
    const UniqueFd watch(socket_ends[1]);
    Arguments arguments{"sifcrypt-starter"};
    arguments.insert(arguments.end(), attempt.begin(), attempt.end());
    arguments.push_back("--status-fd=" + std::to_string(status.get()));
    arguments.push_back("--watch-fd=" + std::to_string(watch.get()));
    const std::string program = OwnProgram();
    child_ = CheckErrno(fork(), "fork");
    if (child_ > 0) return;
    fcntl(status.get(), F_SETFD, 0);
    fcntl(watch.get(), F_SETFD, 0);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    signal(SIGPIPE, SIG_DFL);
    Execute(program, std::move(arguments), {"PATH=/usr/sbin:/usr/bin:/sbin:/bin"});
  }

  /// The starter's wait status.
  int Wait() {
    int status = 0;
    bool ended = false;
    while (!ended || status_) {
      pollfd events[] = {{signals_.fd(), POLLIN, 0}, {status_.get(), POLLIN, 0}};
      if (poll(events, std::size(events), -1) < 0 && errno != EINTR) throw SystemError(errno, "poll");
      if (status_ && events[1].revents != 0) OnStatus();
      for (SignalQueue::Signal signal; (signal = signals_.Next()).number != 0;) OnSignal(signal);
      ended = ended || waitpid(child_, &status, WNOHANG) == child_;
    }
    return status;
  }

  void OnSignal(const SignalQueue::Signal& signal) const {
    // A terminal stops its whole foreground group, of which this process is the one that a shell waits for.
    if (signal.number == SIGTSTP) kill(getpid(), SIGSTOP);
    const bool forwarded = EndsProcess(signal.number) || signal.number == SIGUSR1 || signal.number == SIGUSR2;
    // What the kernel sends goes to the group as well, except that a terminal which is gone tells the session's leader only.
    const bool hung_up = signal.number == SIGHUP && getsid(0) == getpid();
    if (forwarded && (signal.from_process || hung_up)) kill(child_, signal.number);
  }

  void OnStatus() {
    char part[4096];
    const ssize_t n = read(status_.get(), part, sizeof part);
    if (n < 0 && errno == EINTR) return;
    if (n <= 0) return status_.Reset();
    unread_.append(part, static_cast<size_t>(n));
    for (size_t end; (end = unread_.find('\n')) != std::string::npos; unread_.erase(0, end + 1))
      OnLine(unread_.substr(0, end));
    if (unread_.size() > kMaxStatus) status_.Reset();
  }

  void OnLine(const std::string& line) {
    const Told told(line);
    if (told.ready) {
      started_ = true;
      // The rest is the starter's now: whoever reads from a pipe of it must see its end.
      CloseAllBut({signals_.fd(), status_.get(), watch_.get()});
    }
    failed_ |= told.failure;
    death_signal_ = told.signal;
    if (told_.empty() && told.failure && !started_) retryable_ = IsListed(retry_on_, told);
    if (told_.size() + line.size() < kMaxStatus) told_ += line + '\n';
  }

  /// Becomes the program that does.
  [[noreturn]] void Tell(size_t attempt, int status) {
    if (!failed_)
      told_ += WIFSIGNALED(status) ? R"({"event":"lost","signal":)" + std::to_string(WTERMSIG(status)) + "}\n"
                                   : R"({"event":"lost","code":)" + std::to_string(WEXITSTATUS(status)) + "}\n";
    const int file = CheckErrno(memfd_create("told", 0), "memfd_create");
    if (write(file, told_.data(), told_.size()) != static_cast<ssize_t>(told_.size()) || lseek(file, 0, SEEK_SET) != 0)
      throw SystemError(errno, "write");
    Arguments arguments = report_.arguments;
    const std::string program = arguments.front();
    arguments.push_back(std::to_string(attempt));
    arguments.push_back(std::to_string(file));
    CloseAllBut({file});
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    signal(SIGPIPE, SIG_DFL);
    Execute(program, std::move(arguments), report_.environment);
  }

  const Report report_;
  std::string retry_on_;
  const SignalQueue& signals_;
  UniqueFd status_;
  UniqueFd watch_;
  pid_t child_ = -1;
  int death_signal_ = 0;
  bool started_ = false;
  bool failed_ = false;
  bool retryable_ = false;
  std::string unread_;
  std::string told_;
};

/// The value of `--name=value`, which is taken away from the front.
std::optional<std::string> TakeOption(Arguments& arguments, const std::string& name) {
  const std::string start = "--" + name + "=";
  if (arguments.empty() || !arguments.front().starts_with(start)) return std::nullopt;
  std::string value = arguments.front().substr(start.size());
  arguments.erase(arguments.begin());
  return value;
}

}  // namespace

int AttendCommand(const std::vector<std::string>& arguments, const SignalQueue& signals) {
  Arguments rest = arguments;
  const std::string descriptor = TakeOption(rest, "report-fd").value_or("");
  int report_fd = -1;
  if (std::from_chars(descriptor.data(), descriptor.data() + descriptor.size(), report_fd).ec != std::errc{} ||
      fcntl(report_fd, F_GETFD) < 0)
    throw UsageError("--report-fd: not an open descriptor");
  std::string retry_on = TakeOption(rest, "retry-on").value_or("");
  Begun begun = Begun::Parse(TakeOption(rest, "begun").value_or(""));
  std::vector<Arguments> others;
  for (std::string& argument : rest) {
    if (argument == "--")
      others.emplace_back();
    else if (others.empty())
      throw UsageError("attend: unknown argument: " + argument);
    else
      others.back().push_back(std::move(argument));
  }
  Report report(ReadAll(report_fd, kMaxReport));
  close(report_fd);
  return Attendant(std::move(report), std::move(retry_on), std::move(begun), signals).Attend(others);
}

}  // namespace sifcrypt::starter
