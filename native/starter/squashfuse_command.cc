#include "starter/squashfuse_command.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "core/file_range.h"
#include "core/squashfs_reader.h"
#include "core/system_error.h"
#include "core/unique_fd.h"
#include "starter/channel.h"
#include "starter/confine.h"
#include "starter/fuse_mount.h"
#include "starter/fuse_server.h"
#include "starter/mount_guard.h"
#include "starter/options.h"
#include "starter/processes.h"
#include "starter/say.h"
#include "starter/serve.h"
#include "starter/squashfuse_options.h"

namespace sifcrypt::starter {
namespace {

constexpr int kFailure = 1;
constexpr int kUsageFailure = 2;
constexpr char kMounted = 's';
constexpr char kNotMounted = 'f';
/// Set for whom we hand over to: two of ours must not do so for ever.
constexpr char kHandedOver[] = "SIFCRYPT_HANDED_OVER";
constexpr char kNobodyElse[] = "; there is no other squashfuse_ll in PATH";
constexpr char kUsualPath[] = "/usr/local/bin:/usr/bin:/bin";
constexpr char kGuardName[] = "sifcrypt-guard";
constexpr size_t kBlockCache = size_t{8} << 20;
constexpr int kTickMs = 1000;

/// What the system says of a path.
SystemError FailureAt(const std::string& path) { return {errno, path}; }

/// Becomes the first squashfuse_ll of PATH that is not this program. Comes back if there is none.
void HandOver(char** argv) {
  struct stat own {};
  if (getenv(kHandedOver) != nullptr || stat("/proc/self/exe", &own) != 0) return;
  setenv(kHandedOver, "1", 1);
  const char* path = getenv("PATH");
  std::string_view folders = path == nullptr ? kUsualPath : path;
  while (!folders.empty()) {
    const std::string folder(folders.substr(0, folders.find(':')));
    folders.remove_prefix(std::min(folder.size() + 1, folders.size()));
    std::string file = folder + '/' + kSquashfuse;
    struct stat found {};
    if (!folder.starts_with('/') || stat(file.c_str(), &found) != 0) continue;
    if (found.st_dev == own.st_dev && found.st_ino == own.st_ino) continue;
    argv[0] = file.data();
    execv(file.c_str(), argv);
  }
}

/// The squashfs in the archive. SystemError ENOTSUP: it is one, of a kind that our reader does not know.
std::shared_ptr<const SquashfsReader> OpenArchive(const SquashfuseOptions& options) {
  const UniqueFd fd(open(options.archive.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) throw FailureAt(options.archive);
  // Of a block device, too.
  const auto size = static_cast<uint64_t>(CheckErrno(lseek(fd.get(), 0, SEEK_END), "lseek"));
  if (options.offset > size) throw SystemError(EINVAL, options.archive, "it ends before that offset");
  LimitHeap();
  SquashfsReader::Limits limits;
  limits.block_cache = kBlockCache;
  const auto source = OpenDescriptor(fd.get(), {options.offset, size - options.offset});
  try {
    return std::make_shared<SquashfsReader>(source, limits);
  } catch (const SystemError& failure) {
    const std::string reason = std::string(failure.what()).substr(failure.operation().size() + 2);
    throw SystemError(failure.error(), options.archive, reason);
  }
}

SquashfsView ViewOf(const SquashfuseOptions& options, const SquashfsReader& reader) {
  SquashfsView view;
  view.uid = options.uid;
  view.gid = options.gid;
  view.has_xattrs = reader.info().has_xattrs;
  if (options.subdir.empty()) return view;
  try {
    view.root = reader.Resolve(options.subdir, true);
  } catch (const SystemError& failure) {
    throw SystemError(failure.error(), options.subdir);
  }
  if (reader.GetInode(*view.root)->type != InodeType::kDirectory) throw SystemError(ENOTDIR, options.subdir);
  return view;
}

/// By mount(2) where that is allowed, which may be in a user namespace; otherwise by fusermount3.
UniqueFd MountAt(const std::string& target, const SquashfuseOptions& options, int kept) {
  try {
    return MountFuse(target, options.source, options.flags, options.access, kSquashfuse);
  } catch (const SystemError& failure) {
    if (failure.error() != EPERM) throw;
  }
  return MountFuseUnprivileged(target, options.source, kept, options.flags, options.access, kSquashfuse);
}

void WriteTo(const std::string& pipe, char word) {
  const UniqueFd fd(open(pipe.c_str(), O_WRONLY | O_CLOEXEC));
  struct stat info {};
  if (fd && fstat(fd.get(), &info) == 0 && S_ISFIFO(info.st_mode)) static_cast<void>(!write(fd.get(), &word, 1));
}

/// A FIFO is opened when somebody reads it, for which nothing else shall wait.
void NotifyMounted(const std::string& pipe) {
  if (pipe.empty()) return;
  ForkChild([&pipe] {
    CloseAllBut({});
    DetachStandardStreams();
    WriteTo(pipe, kMounted);
    return 0;
  });
}

/// Until the file system is unmounted. `guard`: none for a mount of the caller's.
void WaitForEnd(const FuseSession& session, const SignalQueue& signals, MountGuard* guard, unsigned timeout) {
  bool is_unmounted = guard == nullptr;
  uint64_t seen = 0;
  int64_t used = NowMs();
  for (;;) {
    pollfd events[] = {{session.ended_fd(), POLLIN, 0}, {signals.fd(), POLLIN, 0}};
    if (poll(events, std::size(events), timeout > 0 ? kTickMs : -1) < 0 && errno != EINTR)
      throw SystemError(errno, "poll");
    if (events[0].revents != 0) return;
    while (const int signal = signals.Next().number) {
      if (!EndsProcess(signal)) continue;
      // The first request to end lets those go on who use the file system.
      if (signal != SIGTERM || is_unmounted) return;
      guard->Unmount();
      is_unmounted = true;
    }
    if (const uint64_t now = session.requests(); now != seen) {
      seen = now;
      used = NowMs();
    }
    if (timeout == 0 || is_unmounted || NowMs() - used < int64_t{timeout} * 1000) continue;
    guard->UnmountUnused();
    used = NowMs();
  }
}

int Serve(const SquashfuseOptions& options, const std::string& target, std::shared_ptr<const SquashfsReader> reader,
          const SquashfsView& view, const std::function<void()>& call_itself_guard,
          const std::function<void()>& on_ready) {
  const SignalQueue signals;
  std::optional<MountGuard> guard;
  UniqueFd device(options.device);
  if (!device) {
    guard.emplace(target, call_itself_guard);
    device = MountAt(target, options, guard->fd());
    guard->Watch(MountIdentity(target));
  }
  NotifyMounted(options.notify_pipe);
  // No other file system is kept from being unmounted.
  CheckErrno(chdir("/"), "chdir");
  GiveUpPrivileges(Calls::kServer);
  const std::unique_ptr<FuseSession> session = ServeSquashfs(std::move(reader), view, std::move(device));
  on_ready();
  WaitForEnd(*session, signals, guard ? &*guard : nullptr, options.timeout);
  if (guard) guard->Unmount();
  return 0;
}

int FailWith(const SquashfuseOptions& options, const std::exception& failure) {
  Say(failure.what());
  if (!options.notify_pipe.empty()) WriteTo(options.notify_pipe, kNotMounted);
  return kFailure;
}

/// Runs `serve` in a child, and gives 0 as soon as that calls what it was given, or the child's status.
int InBackground(const std::function<int(const std::function<void()>& on_ready)>& serve) {
  std::pair<Channel, Channel> ends = Channel::Pair();
  const pid_t child = ForkChild([&] {
    OutliveParent();
    setsid();
    ends.first.Close();
    return serve([&] {
      DetachStandardStreams();
      ends.second.Send({.kind = Message::Kind::kStarted});
      ends.second.Close();
    });
  });
  ends.second.Close();
  if (ends.first.Receive()) return 0;
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : kFailure;
}

int Mount(const SquashfuseOptions& options, char** argv, const std::function<void()>& call_itself_guard) {
  std::shared_ptr<const SquashfsReader> reader;
  SquashfsView view;
  std::string target;
  try {
    reader = OpenArchive(options);
    view = ViewOf(options, *reader);
    if (options.device < 0) target = RealPath(options.mount_point);
  } catch (const SystemError& failure) {
    if (failure.error() != ENOTSUP) return FailWith(options, failure);
    HandOver(argv);
    return FailWith(options, std::runtime_error(failure.what() + std::string(kNobodyElse)));
  }
  // From here on others are started, which are not to be told where to find things.
  clearenv();
  signal(SIGPIPE, SIG_IGN);
  const auto serve = [&](const std::function<void()>& on_ready) {
    try {
      return Serve(options, target, reader, view, call_itself_guard, on_ready);
    } catch (const std::exception& failure) {
      return FailWith(options, failure);
    }
  };
  return options.foreground ? serve([] {}) : InBackground(serve);
}

}  // namespace

bool IsSquashfuse(const char* program) {
  const char* slash = std::strrchr(program, '/');
  return std::strcmp(slash == nullptr ? program : slash + 1, kSquashfuse) == 0;
}

int SquashfuseCommand(int argc, char** argv) {
  SayAs(kSquashfuse);
  try {
    const SquashfuseOptions options = ParseSquashfuseOptions({argv + 1, argv + argc});
    if (options.wanted == SquashfuseOptions::Wanted::kHelp) {
      fputs(kSquashfuseUsage, stdout);
      return 0;
    }
    if (options.wanted == SquashfuseOptions::Wanted::kVersion) {
      puts("squashfuse_ll of sifcrypt");
      return 0;
    }
    // Whoever looks for the server by its command line shall find one process.
    const auto call_itself_guard = [argc, argv] {
      char* const end = argv[argc - 1] + std::strlen(argv[argc - 1]);
      std::memset(argv[0], 0, static_cast<size_t>(end - argv[0]));
      prctl(PR_SET_NAME, kGuardName);
    };
    return Mount(options, argv, call_itself_guard);
  } catch (const UsageError& failure) {
    Say(failure.what());
    fputs(kSquashfuseUsage, stderr);
    return kUsageFailure;
  }
}

}  // namespace sifcrypt::starter
