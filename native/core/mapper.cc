#include "core/mapper.h"

#include <linux/dm-ioctl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <string_view>

#include "core/cryptsetup.h"
#include "core/dynamic_library.h"
#include "core/system_error.h"

namespace sifcrypt::mapper {
namespace {

constexpr char kCrypt[] = "crypt_activate";
constexpr char kVerity[] = "verity_activate";
// close_range(2): younger than the headers that some of the systems we build on have.
#ifdef SYS_close_range
constexpr long kCloseRange = SYS_close_range;
#else
constexpr long kCloseRange = 436;
#endif
constexpr char kControl[] = "/dev/mapper/control";

/// Random, so that the mapping tells other users of the machine nothing about the image.
std::string RandomName() {
  uint8_t random[16];
  CheckErrno(getrandom(random, sizeof random, 0), "getrandom");
  std::string name = "sifcrypt-";
  char digits[3];
  for (const uint8_t byte : random) {
    snprintf(digits, sizeof digits, "%02x", byte);
    name += digits;
  }
  return name;
}

/// The device-mapper's control node, made if a /dev without udev lacks it.
UniqueFd OpenControl(const char* operation) {
  UniqueFd control(open(kControl, O_RDWR | O_CLOEXEC));
  if (control) return control;
  if (errno != ENOENT && errno != ENODEV && errno != ENXIO) throw SystemError(errno, operation, kControl);
  std::ifstream misc("/proc/misc");
  unsigned minor_number = 0;
  std::string device;
  while (misc >> minor_number >> device) {
    if (device != "device-mapper") continue;
    mkdir("/dev/mapper", 0755);
    unlink(kControl);
    if (mknod(kControl, S_IFCHR | 0600, makedev(10, minor_number)) != 0) throw SystemError(errno, operation, kControl);
    return UniqueFd(CheckErrno(open(kControl, O_RDWR | O_CLOEXEC), operation));
  }
  throw SystemError(ENOTSUP, operation, "the kernel has no device-mapper");
}

dm_ioctl Command(const char* name, uint32_t flags) {
  dm_ioctl command{};
  // 4.6.0 is what every kernel since 2.6 takes; deferred removal is a flag that older ones ignore.
  command.version[0] = DM_VERSION_MAJOR;
  command.data_size = sizeof command;
  command.data_start = sizeof command;
  command.flags = flags;
  strncpy(command.name, name, sizeof command.name - 1);
  return command;
}

/// Asks for the kernel's targets; activation has made it load the module of this one if there is such a module.
bool HasTarget(const UniqueFd& control, const std::string& wanted) {
  union {
    dm_ioctl command;
    uint8_t room[16 << 10];
  } list{};
  list.command = Command("", 0);
  list.command.data_size = sizeof list;
  if (ioctl(control.get(), DM_LIST_VERSIONS, &list) != 0) return true;
  uint64_t at = list.command.data_start;
  dm_target_versions target;
  while (at + sizeof target < sizeof list.room) {
    memcpy(&target, list.room + at, sizeof target);
    const char* name = reinterpret_cast<const char*>(list.room + at + sizeof target);
    if (strnlen(name, sizeof list.room - at - sizeof target) == wanted.size() &&
        wanted == std::string_view(name, wanted.size()))
      return true;
    if (target.next == 0) return false;
    at += target.next;
  }
  return true;  // the list did not fit: not known
}

/// No udev: it would have to be waited for, need not run at all (containers), and could not see a private /dev.
void LeaveUdevOut() {
  using SetSupport = void(int);
  static SetSupport* const set_sync_support = [] {
    // libcryptsetup has opened it already, by whatever name this distribution gives it.
    const DynamicLibrary library({"libdevmapper.so.1.02.1", "libdevmapper.so.1.02"},
                                 "Debian and Ubuntu: libdevmapper1.02.1, Fedora: device-mapper-libs");
    SetSupport* function = nullptr;
    library.Load(function, "dm_udev_set_sync_support");
    return function;
  }();
  set_sync_support(0);
}

/// Opens the mapping's node; makes one if neither libdevmapper nor udev did.
UniqueFd OpenMapping(const UniqueFd& control, const std::string& name, const std::string& path, const char* operation) {
  dm_ioctl status = Command(name.c_str(), 0);
  CheckErrno(ioctl(control.get(), DM_DEV_STATUS, &status), operation);
  const dev_t number = static_cast<dev_t>(status.dev);
  for (int attempt = 0; attempt < 2; ++attempt) {
    UniqueFd device(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat info {};
    if (device && fstat(device.get(), &info) == 0 && S_ISBLK(info.st_mode) && info.st_rdev == number) return device;
    unlink(path.c_str());
    CheckErrno(mknod(path.c_str(), S_IFBLK | 0600, number), operation);
  }
  throw SystemError(ENXIO, operation, path);
}

void Activate(const ActivateRequest& request, const std::string& name) {
  cryptsetup::HeaderFile header(request.area_size);
  header.Write(0, request.metadata.data(), request.metadata.size());
  const cryptsetup::Session session;
  LeaveUdevOut();
  const cryptsetup::Device device(session, header, request.data_device);
  session.Check(session->load(device.get(), CRYPT_LUKS2, nullptr), "crypt_load");
  // CRYPT_ACTIVATE_PRIVATE: udev's rules for disks (probing, automounting) do not apply.
  const uint32_t flags = CRYPT_ACTIVATE_PRIVATE | (request.writable ? 0 : CRYPT_ACTIVATE_READONLY) |
                         (request.discards ? CRYPT_ACTIVATE_ALLOW_DISCARDS : 0);
  session.Check(session->activate_by_volume_key(device.get(), name.c_str(),
                                                reinterpret_cast<const char*>(request.volume_key.data()),
                                                request.volume_key.size(), flags),
                kCrypt);
}

std::string Hexadecimal(const uint8_t* bytes, size_t size) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (size_t i = 0; i < size; ++i) {
    text += kDigits[bytes[i] >> 4];
    text += kDigits[bytes[i] & 15];
  }
  return text;
}

/// Linux, admin-guide/device-mapper/verity: "Construction Parameters". No option: a block that does not fit is an I/O error.
std::string VerityTable(const VerifyRequest& request) {
  const std::string block = std::to_string(kVerityBlock);
  return "1 " + request.data_device + " " + request.hash_device + " " + block + " " + block + " " +
         std::to_string(request.data_blocks) + " 0 sha256 " +
         Hexadecimal(request.parameters.root.data(), request.parameters.root.size()) + " " +
         Hexadecimal(request.parameters.salt.data(), request.parameters.salt.size());
}

/// The device, its table, and the table in use. libcryptsetup could do it, but wants a tree's device before it knows a root.
void ActivateVerity(const UniqueFd& control, const VerifyRequest& request, const std::string& name) {
  dm_ioctl create = Command(name.c_str(), DM_READONLY_FLAG);
  CheckErrno(ioctl(control.get(), DM_DEV_CREATE, &create), kVerity);
  const std::string table = VerityTable(request);
  union {
    dm_ioctl command;
    uint8_t room[4096];
  } load{};
  constexpr size_t kHead = sizeof(dm_ioctl) + sizeof(dm_target_spec);
  if (table.size() >= sizeof load.room - kHead) throw SystemError(ENAMETOOLONG, kVerity);
  load.command = Command(name.c_str(), DM_READONLY_FLAG);
  load.command.data_size = sizeof load;
  load.command.target_count = 1;
  dm_target_spec target{};
  target.length = request.size / 512;
  strncpy(target.target_type, "verity", sizeof target.target_type - 1);
  memcpy(load.room + sizeof(dm_ioctl), &target, sizeof target);
  memcpy(load.room + kHead, table.c_str(), table.size() + 1);
  if (ioctl(control.get(), DM_TABLE_LOAD, &load) != 0) {
    const int error = errno;
    if (!HasTarget(control, "verity")) throw SystemError(ENOTSUP, kVerity, "the kernel has no dm-verity");
    throw SystemError(error, kVerity);
  }
  dm_ioctl resume = Command(name.c_str(), 0);
  // As CRYPT_ACTIVATE_PRIVATE: no probing and no automounting by udev's rules (libdevmapper.h, DM_UDEV_DISABLE_*_RULES_FLAG).
  constexpr uint32_t kUdevFlags = 0x2 | 0x4 | 0x8;
  constexpr int kUdevFlagsShift = 16;
  resume.event_nr = kUdevFlags << kUdevFlagsShift;
  CheckErrno(ioctl(control.get(), DM_DEV_SUSPEND, &resume), kVerity);
}

}  // namespace

/// A process that removes a mapping, or marks it for removal, and its node when this object or this process ends. It has
/// nothing of this process open but the control device, and makes system calls only: it may be started with threads
/// running.
class Mapping::Watchdog {
 public:
  Watchdog(const UniqueFd& control, const std::string& name, const std::string& node) {
    int ends[2];
    CheckErrno(pipe2(ends, O_CLOEXEC), "pipe2");
    const UniqueFd read_end(ends[0]);
    write_end_.Reset(ends[1]);
    dm_ioctl command = Command(name.c_str(), DM_DEFERRED_REMOVE);
    const char* path = node.c_str();
    // Like fork, but without the C library's handlers, and without a SIGCHLD that somebody else waits for.
    const long child = syscall(SYS_clone, 0UL, nullptr, nullptr, nullptr, 0UL);
    CheckErrno(child, "clone");
    if (child == 0) Stand(control.get(), read_end.get(), command, path);
    child_ = static_cast<pid_t>(child);
  }
  ~Watchdog() {
    write_end_.Reset();
    while (waitpid(child_, nullptr, __WALL) < 0 && errno == EINTR) {
    }
  }
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  [[noreturn]] static void Stand(int control, int pipe, dm_ioctl& command, const char* node) {
    // dup3 to fixed numbers, then everything else goes: an inherited pipe must not be kept open by us.
    constexpr int kPipe = 3, kControlFd = 4, kSpare = 5;
    syscall(SYS_setsid);
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, nullptr);
    const int pipe_copy = fcntl(pipe, F_DUPFD, kSpare);
    const int control_copy = fcntl(control, F_DUPFD, kSpare);
    if (pipe_copy < 0 || control_copy < 0 || dup2(pipe_copy, kPipe) < 0 || dup2(control_copy, kControlFd) < 0) _exit(1);
    for (int standard = 0; standard < 3; ++standard) close(standard);
    if (syscall(kCloseRange, kControlFd + 1, ~0U, 0) != 0) {
      for (int fd = kControlFd + 1; fd < 65536; ++fd) close(fd);
    }
    char byte;
    ssize_t n;
    do n = read(kPipe, &byte, 1);
    while (n < 0 && errno == EINTR);
    if (n == 0) {
      ioctl(kControlFd, DM_DEV_REMOVE, &command);
      unlink(node);
    }
    _exit(0);
  }

  UniqueFd write_end_;
  pid_t child_ = -1;
};

Mapping::Mapping() : name_(RandomName()), path_("/dev/mapper/" + name_) {}

Mapping::Mapping(const ActivateRequest& request) : Mapping() {
  if (request.metadata.size() > request.area_size) throw SystemError(EINVAL, kCrypt, "metadata");
  const UniqueFd control = OpenControl(kCrypt);
  watchdog_ = std::make_unique<Watchdog>(control, name_, path_);
  try {
    Activate(request, name_);
  } catch (const SystemError& error) {
    if (error.error() != EPERM && error.operation() == kCrypt && !HasTarget(control, "crypt"))
      throw SystemError(ENOTSUP, kCrypt, "the kernel has no dm-crypt");
    throw;
  }
  Hold(control, kCrypt);
}

Mapping::Mapping(const VerifyRequest& request) : Mapping() {
  const UniqueFd control = OpenControl(kVerity);
  watchdog_ = std::make_unique<Watchdog>(control, name_, path_);
  ActivateVerity(control, request, name_);
  Hold(control, kVerity);
}

void Mapping::Hold(const UniqueFd& control, const char* operation) {
  UniqueFd device = OpenMapping(control, name_, path_, operation);
  dm_ioctl removal = Command(name_.c_str(), DM_DEFERRED_REMOVE);
  CheckErrno(ioctl(control.get(), DM_DEV_REMOVE, &removal), operation);
  // A kernel before 3.13 would not have deferred it.
  dm_ioctl status = Command(name_.c_str(), 0);
  if (ioctl(control.get(), DM_DEV_STATUS, &status) == 0 && (status.flags & DM_DEFERRED_REMOVE) == 0)
    throw SystemError(ENOTSUP, operation, "the kernel does not know deferred removal");
  device_ = std::move(device);
}

Mapping::~Mapping() { unlink(path_.c_str()); }

}  // namespace sifcrypt::mapper
