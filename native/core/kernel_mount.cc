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

void CheckCipher(const KernelMountRequest& request, const KernelMountCipher& cipher) {
  if (cipher.area_size > luks::kMaxAreaSize || cipher.segment_size == 0 || cipher.segment_size % kUnit != 0 ||
      cipher.segment_offset % kUnit != 0 || !RangeFits(cipher.segment_offset, cipher.segment_size, request.size))
    throw SystemError(EINVAL, "crypt_activate", "the data segment does not lie inside the partition");
}

void MountCipher(const KernelMountRequest& request, const KernelMountCipher& cipher, const std::string& device) {
  const mapper::Mapping mapping({cipher.metadata, cipher.area_size, cipher.volume_key, device, request.writable});
  Mount(mapping.path(), request);
}

/// The partition through dm-verity. That reads and compares whole blocks, so the data segment has to consist of such.
void MountVerified(const KernelMountRequest& request, const KernelMountTree& tree, uint64_t file_size) {
  if (request.writable) throw SystemError(EROFS, "mount");
  const VerityLayout layout(request.size);
  if (!RangeFits(tree.offset, tree.size, file_size)) throw SystemError(EOVERFLOW, "loop_attach", "image too short");
  if (tree.size != layout.tree_size()) throw FormatError("verity_open", "the hash tree is not of the partition's size");
  uint64_t size = request.size;
  if (request.cipher) {
    CheckCipher(request, *request.cipher);
    size = request.cipher->segment_offset + request.cipher->segment_size;
    if (request.cipher->segment_offset % kVerityBlock != 0 || size % kVerityBlock != 0)
      throw SystemError(ENOTSUP, "verity_activate", "the data segment does not consist of blocks of 4096 bytes");
  }
  const loop::Device data = loop::Attach(request.image_fd, request.offset, request.size, true);
  const loop::Device hashes = loop::Attach(request.image_fd, tree.offset, tree.size, true);
  const mapper::Mapping verified({data.path, size, layout.data_blocks(), hashes.path, tree.parameters});
  if (request.cipher) return MountCipher(request, *request.cipher, verified.path());
  Mount(verified.path(), request);
}

}  // namespace

void KernelMount(const KernelMountRequest& request) {
  if (request.writable && request.file_system != KernelFileSystem::kExt) throw SystemError(EROFS, "mount");
  const uint64_t file_size = FileSize(request.image_fd);
  if (!RangeFits(request.offset, request.size, file_size))
    throw SystemError(EOVERFLOW, "loop_attach", "image too short");
  if (request.tree) return MountVerified(request, *request.tree, file_size);
  if (!request.cipher) {
    // A squashfs may end anywhere; the device must hold its last bytes. What is beyond is not looked at.
    const uint64_t size =
        std::min((request.size + kUnit - 1) / kUnit * kUnit, (file_size - request.offset) / kUnit * kUnit);
    const loop::Device device = loop::Attach(request.image_fd, request.offset, size, !request.writable);
    return Mount(device.path, request);
  }
  const KernelMountCipher& cipher = *request.cipher;
  CheckCipher(request, cipher);
  // The device ends where the segment ends, so "dynamic" in the metadata means the same to the kernel as it did to us.
  const loop::Device device =
      loop::Attach(request.image_fd, request.offset, cipher.segment_offset + cipher.segment_size, !request.writable);
  MountCipher(request, cipher, device.path);
}

}  // namespace sifcrypt
