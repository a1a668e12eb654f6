#include "starter/scratch_volume.h"

#include <sys/mount.h>
#include <unistd.h>

#include <cstring>

#include "core/loop.h"
#include "core/luks.h"
#include "core/mapper.h"
#include "core/system_error.h"
#include "starter/spawn.h"

namespace sifcrypt::starter {
namespace {

constexpr uint64_t kMebibyte = 1 << 20;
/// Never written: the device begins with a hole of this size.
constexpr uint64_t kHeader = 4 * kMebibyte;
constexpr uint64_t kLeast = 16 * kMebibyte;
constexpr size_t kKeySize = 64;
constexpr uint32_t kSector = 4096;
// Nobody will look for it after a crash, so nothing waits for the disk. Inode tables become zero when they are used.
constexpr char kMountOptions[] = "discard,nobarrier,noinit_itable,errors=remount-ro";

}  // namespace

void MountVolume(UniqueFd file, uint64_t size, const std::string& target) {
  size = size / kMebibyte * kMebibyte;
  if (size < kLeast) throw SystemError(ENOSPC, "scratch", "there is no room for a volume on the disk");
  CheckErrno(ftruncate(file.get(), static_cast<off_t>(kHeader + size)), "scratch");
  const luks::Formatted volume = luks::Format({kKeySize, kSector, kHeader, {}});
  const loop::Device device = loop::Attach(file.get(), 0, kHeader + size, false);
  file.Reset();
  mapper::ActivateRequest request{volume.header, volume.header.size(), volume.volume_key, device.path};
  request.writable = true;
  request.discards = true;
  const mapper::Mapping mapping(request);
  RunProgram(FindProgram("mkfs.ext4", "scratch"),
             {"-q", "-F", "-m", "0", "-b", std::to_string(kSector), "-O", "^has_journal", "-E",
              "lazy_itable_init=1,nodiscard", mapping.path()},
             "scratch");
  if (mount(mapping.path().c_str(), target.c_str(), "ext4", 0, kMountOptions) != 0)
    throw SystemError(errno, "scratch", std::string("ext4: ") + std::strerror(errno));
  rmdir((target + "/lost+found").c_str());
}

}  // namespace sifcrypt::starter
