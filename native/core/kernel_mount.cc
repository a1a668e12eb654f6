#include "core/kernel_mount.h"

#include <sys/mount.h>
#include <sys/stat.h>

#include <algorithm>

#include "core/byte_range.h"
#include "core/loop.h"
#include "core/luks.h"
#include "core/mapper.h"
#include "core/system_error.h"

namespace sifcrypt {
namespace {

constexpr uint64_t kUnit = 512;
/// The one for images, ever: a file system driver is only as safe as its author thought images hostile.
constexpr char kSquashfs[] = "squashfs";
/// Also for ext3, which has no driver of its own any more.
constexpr char kExt[] = "ext4";

void Mount(const std::string& device, const KernelMountRequest& request) {
  const char* type = request.file_system == KernelFileSystem::kExt ? kExt : kSquashfs;
  const unsigned long flags = MS_NOSUID | MS_NODEV | (request.writable ? 0 : MS_RDONLY);
  CheckErrno(mount(device.c_str(), request.target.c_str(), type, flags, nullptr), "mount");
}

uint64_t FileSize(int fd) {
  struct stat info {};
  CheckErrno(fstat(fd, &info), "fstat");
  return static_cast<uint64_t>(std::max<off_t>(info.st_size, 0));
}

bool IsEncrypted(const KernelMountRequest& request) { return request.image.cipher.type != Cipher::Type::kNone; }

/// Where the part that is mapped ends.
uint64_t SegmentEnd(const KernelMountRequest& request) {
  const auto& [offset, size] = request.image.segment;
  if (request.image.cipher.type != Cipher::Type::kXts || request.area_size > luks::kMaxAreaSize || size == 0 ||
      size % kUnit != 0 || offset % kUnit != 0 || !RangeFits(offset, size, request.image.partition.size))
    throw SystemError(EINVAL, "crypt_activate", "the data segment does not lie inside the partition");
  return offset + size;
}

void MountCipher(const KernelMountRequest& request, const std::string& device) {
  const mapper::Mapping mapping({request.metadata, request.area_size, request.key, device, request.writable});
  Mount(mapping.path(), request);
}

/// The partition through dm-verity. That reads and compares whole blocks, so the data segment has to consist of such.
void MountVerified(const KernelMountRequest& request, uint64_t file_size) {
  if (request.writable) throw SystemError(EROFS, "mount");
  const auto& [fd, partition, verity, parameters, segment, cipher] = request.image;
  const VerityLayout layout(partition.size);
  if (!RangeFits(verity.offset, verity.size, file_size)) throw SystemError(EOVERFLOW, "loop_attach", "image too short");
  if (verity.size != layout.size()) throw FormatError("verity_open", "the hash tree is not of the partition's size");
  uint64_t size = partition.size;
  if (IsEncrypted(request)) {
    size = SegmentEnd(request);
    if (segment.offset % kVerityBlock != 0 || size % kVerityBlock != 0)
      throw SystemError(ENOTSUP, "verity_activate", "the data segment does not consist of blocks of 4096 bytes");
  }
  const loop::Device data = loop::Attach(fd, partition.offset, partition.size, true);
  const loop::Device hashes = loop::Attach(fd, verity.offset, verity.size, true);
  const mapper::Mapping verified({data.path, size, layout.data_blocks(), hashes.path, parameters});
  if (IsEncrypted(request)) return MountCipher(request, verified.path());
  Mount(verified.path(), request);
}

}  // namespace

void KernelMount(const KernelMountRequest& request) {
  if (request.writable && request.file_system != KernelFileSystem::kExt) throw SystemError(EROFS, "mount");
  const auto& [offset, size] = request.image.partition;
  const uint64_t file_size = FileSize(request.image.fd);
  if (!RangeFits(offset, size, file_size)) throw SystemError(EOVERFLOW, "loop_attach", "image too short");
  if (request.image.verified()) return MountVerified(request, file_size);
  if (!IsEncrypted(request)) {
    // A squashfs may end anywhere; the device must hold its last bytes. What is beyond is not looked at.
    const uint64_t whole = std::min((size + kUnit - 1) / kUnit * kUnit, (file_size - offset) / kUnit * kUnit);
    const loop::Device device = loop::Attach(request.image.fd, offset, whole, !request.writable);
    return Mount(device.path, request);
  }
  // The device ends where the segment ends, so "dynamic" in the metadata means the same to the kernel as it did to us.
  const loop::Device device = loop::Attach(request.image.fd, offset, SegmentEnd(request), !request.writable);
  MountCipher(request, device.path);
}

}  // namespace sifcrypt
