#include "starter/enter_command.h"

#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "core/system_error.h"

namespace sifcrypt::starter {
namespace {

void Enter(int fd, int kind) {
  if (fd < 0) return;
  CheckErrno(setns(fd, kind), "setns");
  close(fd);
}

}  // namespace

void EnterCommand(EnterOptions options) {
  // A mount namespace brings its own root along, and that is where one is then.
  char folder[PATH_MAX];
  const bool is_somewhere = getcwd(folder, sizeof folder) != nullptr;
  Enter(options.user_fd, CLONE_NEWUSER);
  Enter(options.mount_fd, CLONE_NEWNS);
  // A folder that is not there any more is the program's to complain about.
  if (options.mount_fd >= 0 && is_somewhere) static_cast<void>(!chdir(folder));
  if (options.open_files > 0) {
    rlimit limit{};
    CheckErrno(getrlimit(RLIMIT_NOFILE, &limit), "getrlimit");
    limit.rlim_cur = std::min<rlim_t>(options.open_files, limit.rlim_max);
    CheckErrno(setrlimit(RLIMIT_NOFILE, &limit), "setrlimit");
  }
  // Whoever became this program has held them back.
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  std::vector<char*> argv;
  for (std::string& argument : options.program) argv.push_back(argument.data());
  argv.push_back(nullptr);
  execv(argv[0], argv.data());
  throw SystemError(errno, "execve", options.program[0] + ": " + std::strerror(errno));
}

}  // namespace sifcrypt::starter
