#include "core/loop.h"

#include <linux/fs.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>

#include "core/system_error.h"

namespace sifcrypt::loop {
namespace {

constexpr char kOperation[] = "loop_attach";
constexpr uint32_t kUnit = 512;
constexpr int kLoopMajor = 7;  // Documentation/admin-guide/devices.txt
/// How often a race for the device that was said to be free may be lost.
constexpr int kRaces = 64;
/// Devices with a number up to this are tried one by one when the free one that the kernel names is broken.
constexpr int kScan = 256;

enum class Outcome { kAttached, kTaken, kBroken };

void Pause() {
  const timespec interval{0, 2'000'000};
  nanosleep(&interval, nullptr);
}

/// The node, made if a private /dev lacks it. Invalid when the device cannot be used.
UniqueFd OpenNode(int number, const std::string& path, bool read_only) {
  const int flags = (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC;
  UniqueFd device(open(path.c_str(), flags));
  if (!device && errno == ENOENT &&
      mknod(path.c_str(), S_IFBLK | 0600, makedev(kLoopMajor, static_cast<unsigned>(number))) == 0)
    device = UniqueFd(open(path.c_str(), flags));
  if (!device) return device;
  struct stat info {};
  const bool ours = fstat(device.get(), &info) == 0 && S_ISBLK(info.st_mode) &&
                    info.st_rdev == makedev(kLoopMajor, static_cast<unsigned>(number));
  if (!ours) {
    device.Reset();
    errno = ENXIO;
  }
  return device;
}

loop_info64 Info(uint64_t offset, uint64_t size, bool read_only) {
  loop_info64 info{};
  info.lo_offset = offset;
  info.lo_sizelimit = size;
  info.lo_flags = LO_FLAGS_AUTOCLEAR | (read_only ? static_cast<uint32_t>(LO_FLAGS_READ_ONLY) : 0);
  return info;
}

/// The two steps of kernels before 5.8. Between them the device shows the whole file.
void ConfigureInTwoSteps(int device, int fd, const loop_info64& info) {
  CheckErrno(ioctl(device, LOOP_SET_FD, fd), kOperation);
  loop_info64 status = info;
  for (int i = 0;; ++i) {
    if (ioctl(device, LOOP_SET_STATUS64, &status) == 0) return;
    // EAGAIN: pages of the whole file are still cached (loop_set_status); it passes.
    if (errno == EAGAIN && i < kRaces) {
      Pause();
      continue;
    }
    const int error = errno;
    ioctl(device, LOOP_CLR_FD, 0);
    throw SystemError(error, kOperation);
  }
}

Outcome Configure(int device, int fd, const loop_info64& info) {
#ifdef LOOP_CONFIGURE
  loop_config config{};
  config.fd = static_cast<uint32_t>(fd);
  config.info = info;
  if (ioctl(device, LOOP_CONFIGURE, &config) == 0) return Outcome::kAttached;
  if (errno == EBUSY) return Outcome::kTaken;
  if (errno == ENXIO || errno == ENODEV) return Outcome::kBroken;
  // EINVAL, ENOTTY, ENOSYS: the kernel does not know the call; a real fault shows again below.
  if (errno != EINVAL && errno != ENOTTY && errno != ENOSYS) throw SystemError(errno, kOperation);
#endif
  try {
    ConfigureInTwoSteps(device, fd, info);
  } catch (const SystemError& error) {
    if (error.error() == EBUSY) return Outcome::kTaken;
    throw;
  }
  return Outcome::kAttached;
}

/// Does the device show what was asked for? A kernel bug or a shared node (containers) may make it someone else's.
bool ShowsRange(int device, uint64_t offset, uint64_t size) {
  loop_info64 info{};
  uint64_t bytes = 0;
  return ioctl(device, LOOP_GET_STATUS64, &info) == 0 && info.lo_offset == offset && info.lo_sizelimit == size &&
         ioctl(device, BLKGETSIZE64, &bytes) == 0 && bytes == size;
}

Outcome TryDevice(int number, int fd, uint64_t offset, uint64_t size, bool read_only, Device& out) {
  out.path = "/dev/loop" + std::to_string(number);
  out.fd = OpenNode(number, out.path, read_only);
  if (!out.fd) {
    // Root privilege is missing, not this device.
    if (errno == EACCES || errno == EPERM) throw SystemError(errno, kOperation, "cannot open " + out.path);
    return Outcome::kBroken;
  }
  const Outcome outcome = Configure(out.fd.get(), fd, Info(offset, size, read_only));
  if (outcome != Outcome::kAttached) return outcome;
  if (ShowsRange(out.fd.get(), offset, size)) return Outcome::kAttached;
  ioctl(out.fd.get(), LOOP_CLR_FD, 0);
  return Outcome::kBroken;
}

UniqueFd OpenControl() {
  constexpr char kPath[] = "/dev/loop-control";
  UniqueFd control(open(kPath, O_RDWR | O_CLOEXEC));
  if (control) return control;
  const int error = errno;
  if (error == ENOENT || error == ENODEV || error == ENXIO)
    throw SystemError(ENOTSUP, kOperation, "the kernel has no loop devices (/dev/loop-control is missing)");
  throw SystemError(error, kOperation, std::string("cannot open ") + kPath);
}

}  // namespace

Device Attach(int fd, uint64_t offset, uint64_t size, bool read_only) {
  if (offset % kUnit != 0 || size % kUnit != 0 || size == 0)
    throw SystemError(
        EINVAL, kOperation,
        "range of " + std::to_string(size) + " bytes at " + std::to_string(offset) + " is not in units of 512");
  const UniqueFd control = OpenControl();
  Device device;
  bool broken = false;
  for (int race = 0; race < kRaces && !broken; ++race) {
    const int number = ioctl(control.get(), LOOP_CTL_GET_FREE);
    if (number < 0 && (errno == EACCES || errno == EPERM)) throw SystemError(errno, kOperation, "LOOP_CTL_GET_FREE");
    if (number < 0) break;
    const Outcome outcome = TryDevice(number, fd, offset, size, read_only, device);
    if (outcome == Outcome::kAttached) return device;
    broken = outcome == Outcome::kBroken;
    if (!broken) Pause();
  }
  // The kernel names the first free device for ever, also when it is broken: look at the others.
  for (int number = 0; broken && number < kScan; ++number) {
    if (ioctl(control.get(), LOOP_CTL_ADD, number) < 0 && errno != EEXIST) continue;
    if (TryDevice(number, fd, offset, size, read_only, device) == Outcome::kAttached) return device;
  }
  throw SystemError(EBUSY, kOperation,
                    broken ? "no usable loop device of " + std::to_string(kScan) : "no free loop device");
}

}  // namespace sifcrypt::loop
