// sifcrypt-starter: owns the mounts and processes that belong to one image in use. Started by lib/runtime with plain
// arguments and inherited descriptors; see docs/architecture.md.
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "core/system_error.h"
#include "starter/attend_command.h"
#include "starter/enter_command.h"
#include "starter/fuse_helper.h"
#include "starter/join_command.h"
#include "starter/mount_command.h"
#include "starter/network_keeper.h"
#include "starter/options.h"
#include "starter/prepare_command.h"
#include "starter/processes.h"
#include "starter/run_command.h"
#include "starter/say.h"
#include "starter/squashfuse_command.h"
#include "starter/workspace_command.h"

namespace sifcrypt::starter {
namespace {

constexpr int kFailure = 255;
constexpr int kUsageFailure = 2;

/// The lowest descriptors are to be the standard streams, whatever the parent has closed.
void OpenStandardStreams() {
  int fd;
  do fd = CheckErrno(open("/dev/null", O_RDWR), "open");
  while (fd <= STDERR_FILENO);
  close(fd);
}

/// Helpers of ours must not be told where to find things by the environment of whoever called.
void ScrubEnvironment() {
  clearenv();
  setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin", 1);
}

int Main(std::vector<std::string> arguments) {
  OpenStandardStreams();
  if (arguments.empty()) throw UsageError("a command is missing");
  const std::string command = arguments.front();
  arguments.erase(arguments.begin());
  // The environment is the program's.
  if (command == "enter") EnterCommand(ParseEnterOptions(arguments));
  ScrubEnvironment();
  if (command == "mount") {
    const MountOptions options = ParseMountOptions(arguments);
    SayAs(options.message_name);
    signal(SIGPIPE, SIG_IGN);
    return MountCommand(options, SignalQueue());
  }
  if (command == "join") {
    const JoinOptions options = ParseJoinOptions(arguments);
    signal(SIGPIPE, SIG_IGN);
    return JoinCommand(options, SignalQueue());
  }
  if (command == "attend") {
    signal(SIGPIPE, SIG_IGN);
    return AttendCommand(arguments, SignalQueue());
  }
  if (command == "run") {
    const RunOptions options = ParseRunOptions(arguments);
    SayAs(options.message_name);
    signal(SIGPIPE, SIG_IGN);
    return RunCommand(options, SignalQueue());
  }
  if (command == "prepare") {
    const RunOptions options = ParsePrepareOptions(arguments);
    SayAs(options.message_name);
    signal(SIGPIPE, SIG_IGN);
    return PrepareCommand(options, SignalQueue());
  }
  if (command == "keep") {
    const KeepOptions options = ParseKeepOptions(arguments);
    signal(SIGPIPE, SIG_IGN);
    return KeepCommand(options);
  }
  if (command == "workspace") {
    const WorkspaceOptions options = ParseWorkspaceOptions(arguments);
    signal(SIGPIPE, SIG_IGN);
    return WorkspaceCommand(options, SignalQueue());
  }
  throw UsageError("unknown command: " + command);
}

}  // namespace
}  // namespace sifcrypt::starter

int main(int argc, char** argv) {
  if (argc > 0 && sifcrypt::starter::IsAskedToMount(argv[0])) return sifcrypt::starter::HandOverMount();
  try {
    if (argc > 0 && sifcrypt::starter::IsSquashfuse(argv[0])) {
      sifcrypt::starter::OpenStandardStreams();
      return sifcrypt::starter::SquashfuseCommand(argc, argv);
    }
    return sifcrypt::starter::Main({argv + 1, argv + argc});
  } catch (const sifcrypt::starter::UsageError& failure) {
    fprintf(stderr, "sifcrypt-starter: %s\n", failure.what());
    return sifcrypt::starter::kUsageFailure;
  } catch (const std::exception& failure) {
    fprintf(stderr, "sifcrypt-starter: %s\n", failure.what());
    return sifcrypt::starter::kFailure;
  }
}
