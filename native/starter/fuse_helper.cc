#include "starter/fuse_helper.h"

#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <exception>
#include <iterator>
#include <utility>

#include "core/system_error.h"
#include "core/unique_fd.h"
#include "starter/fuse_mount.h"
#include "starter/processes.h"
#include "starter/spawn.h"

namespace sifcrypt::starter {
namespace {

constexpr int kFailure = 255;
constexpr int64_t kMountMs = 20'000;
constexpr int64_t kEndMs = 5'000;
constexpr long kPeriodNs = 2'000'000;
constexpr size_t kMaxComplaint = 600;

// What a helper finds in its root.
constexpr char kProgram[] = "/program";
constexpr char kMountPoint[] = "/mount";
constexpr char kFolderOfPrograms[] = "/usr/bin";
// libfuse asks one of these for a mount when mount(2) is refused: of version 2 and of version 3.
constexpr const char* kMounters[] = {"fusermount", "fusermount3"};
constexpr char kAnswerTo[] = "_FUSE_COMMFD";
// Its descriptors, beside the standard streams. kHelperImage has the second one.
constexpr int kDevice = 3;
constexpr int kImage = 4;

std::string OwnProgram() {
  char path[4096];
  const ssize_t n = CheckErrno(readlink("/proc/self/exe", path, sizeof path), "readlink");
  return {path, static_cast<size_t>(n)};
}

/// Besides its own: libraries, the device that libfuse wants to have looked at, its own descriptors, and a program of ours in
/// the place of fusermount.
std::vector<SeenPlace> PlacesOf(const HelperProgram& helper, const std::string& file) {
  std::vector<SeenPlace> places = LibraryPlaces();
  places.push_back({file, kProgram});
  places.push_back({"", kMountPoint});
  places.push_back({"/dev/fuse", "/dev/fuse", true});
  places.push_back({"/proc/" + std::to_string(getpid()) + "/fd", "/proc/self/fd", true});
  for (const char* name : {"/proc/sys/kernel/overflowuid", "/proc/sys/kernel/overflowgid"})
    places.push_back({name, name});
  for (const char* name : kMounters) places.push_back({OwnProgram(), std::string(kFolderOfPrograms) + '/' + name});
  places.insert(places.end(), helper.places.begin(), helper.places.end());
  return places;
}

/// Without capabilities root may not open what is another user's; that user may.
void BecomeOwner(int image_fd) {
  struct stat info {};
  CheckErrno(fstat(image_fd, &info), "fstat");
  if (geteuid() != 0 || info.st_uid == 0) return;
  const pid_t parent = getppid();
  // In a user namespace that does not know the owner (EINVAL) root is somebody who may open it as it is.
  if (setgroups(0, nullptr) != 0 || setresgid(info.st_gid, info.st_gid, info.st_gid) != 0) return;
  if (setresuid(info.st_uid, info.st_uid, info.st_uid) != 0) return;
  // Changing ids has taken the parent's death signal away.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(kFailure);
}

[[noreturn]] void Execute(const HelperProgram& helper) {
  std::vector<std::string> words{helper.name};
  words.insert(words.end(), helper.arguments.begin(), helper.arguments.end());
  words.emplace_back(kMountPoint);
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  std::string path = std::string("PATH=") + kFolderOfPrograms;
  char* environment[] = {path.data(), nullptr};
  execve(kProgram, argv.data(), environment);
  _exit(kFailure);
}

/// What it wrote until now, as one line.
std::string ReadComplaint(int fd) {
  char text[kMaxComplaint];
  const ssize_t n = read(fd, text, sizeof text);
  std::string complaint(text, n > 0 ? static_cast<size_t>(n) : 0);
  while (!complaint.empty() && complaint.back() == '\n') complaint.pop_back();
  for (char& c : complaint)
    if (c == '\n') c = ' ';
  return complaint;
}

void Pause() {
  const timespec pause{0, kPeriodNs};
  nanosleep(&pause, nullptr);
}

bool HasEnded(pid_t process) {
  const pid_t found = waitpid(process, nullptr, WNOHANG);
  return found == process || (found < 0 && errno == ECHILD);
}

}  // namespace

FuseHelper::FuseHelper(HelperProgram program, std::string target, unsigned long flags, const std::string& access,
                       const char* operation)
    : name_(program.name), target_(std::move(target)) {
  const std::string file = FindProgram(name_, operation);
  int ends[2];
  CheckErrno(pipe2(ends, O_CLOEXEC | O_NONBLOCK), "pipe2");
  const UniqueFd complaints(ends[0]);
  UniqueFd child_end(ends[1]);
  UniqueFd device = MountFuse(target_, name_, flags, access);
  try {
    process_ = ForkChild([&]() -> int {
      setpgid(0, 0);
      DetachStandardStreams();
      dup2(child_end.get(), STDOUT_FILENO);
      dup2(child_end.get(), STDERR_FILENO);
      // To where none of them is yet; dup2 has them inherited.
      const UniqueFd from(CheckErrno(fcntl(device.get(), F_DUPFD_CLOEXEC, kImage + 1), "fcntl"));
      const UniqueFd image(program.image_fd < 0 ? -1 : fcntl(program.image_fd, F_DUPFD_CLOEXEC, kImage + 1));
      dup2(from.get(), kDevice);
      if (image) dup2(image.get(), kImage);
      CloseAllBut(image ? std::vector<int>{kDevice, kImage} : std::vector<int>{kDevice});
      try {
        EnterOwnRoot(PlacesOf(program, file), operation);
        if (image) BecomeOwner(kImage);
        GiveUpPrivileges(Calls::kProgram);
      } catch (const std::exception& failure) {
        dprintf(STDERR_FILENO, "cannot confine it: %s", failure.what());
        return kFailure;
      }
      sigset_t none;
      sigemptyset(&none);
      sigprocmask(SIG_SETMASK, &none, nullptr);
      signal(SIGPIPE, SIG_DFL);
      Execute(program);
    });
    child_end.Reset();
    // From here on its end is that of the file system, too.
    device.Reset();
    const pid_t probe = ForkChild([&]() -> int {
      struct stat info {};
      return stat(target_.c_str(), &info) == 0 ? 0 : kFailure;
    });
    int status = 0;
    const int64_t give_up = NowMs() + kMountMs;
    while (waitpid(probe, &status, WNOHANG) == 0) {
      if (NowMs() >= give_up) kill(process_, SIGKILL);
      Pause();
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return;
    kill(process_, SIGKILL);
    while (!HasEnded(process_)) Pause();
    const std::string complaint = ReadComplaint(complaints.get());
    throw SystemError(EIO, operation, name_ + ": " + (complaint.empty() ? "it does not mount" : complaint));
  } catch (...) {
    umount2(target_.c_str(), UMOUNT_NOFOLLOW | MNT_DETACH);
    throw;
  }
}

FuseHelper::FuseHelper(FuseHelper&& other) noexcept
    : name_(std::move(other.name_)), target_(std::move(other.target_)), process_(std::exchange(other.process_, -1)) {}

FuseHelper::~FuseHelper() {
  if (process_ < 0) return;
  if (umount2(target_.c_str(), UMOUNT_NOFOLLOW) != 0) umount2(target_.c_str(), UMOUNT_NOFOLLOW | MNT_DETACH);
  const int64_t give_up = NowMs() + kEndMs;
  while (!HasEnded(process_)) {
    if (NowMs() >= give_up) kill(process_, SIGKILL);
    Pause();
  }
}

bool IsAskedToMount(const char* program) {
  const char* slash = std::strrchr(program, '/');
  const std::string name = slash == nullptr ? program : slash + 1;
  return std::find(std::begin(kMounters), std::end(kMounters), name) != std::end(kMounters);
}

int HandOverMount() {
  const char* number = getenv(kAnswerTo);
  if (number == nullptr) return kFailure;
  // As fusermount(1) sends it: one byte, and the descriptor.
  char byte = 0;
  iovec part{&byte, sizeof byte};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &kDevice, sizeof kDevice);
  int socket = -1;
  std::from_chars(number, number + std::strlen(number), socket);
  return sendmsg(socket, &message, 0) == 1 ? 0 : kFailure;
}

}  // namespace sifcrypt::starter
