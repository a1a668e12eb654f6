// The kernel engine: loop device, dm-verity and dm-crypt mappings where they are wanted, squashfs mount. Root only (CAP_SYS_ADMIN in the initial namespace).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/image_range.h"
#include "core/secret_buffer.h"

namespace sifcrypt {

enum class KernelFileSystem {
  kSquashfs,
  /// ext3 or ext4. Its driver is no match for a hostile image: only for a file that root made and named.
  kExt,
};

struct KernelMountRequest {
  /// All offsets are multiples of 512, as loop(4) requires. An encrypted segment, which lib/device/luks-header.ts checked, has such a size, too.
  ImageRange image;
  /// If it is encrypted: the volume key, and the LUKS2 metadata that was checked, primary header, then the secondary one or zeros
  /// (16 KiB to 8 MiB).
  SecretBuffer key;
  std::vector<uint8_t> metadata;
  /// Bytes of header and keyslots area together, as in luks::UnlockRequest.
  uint64_t area_size = 0;
  /// An existing folder (may be "/proc/self/fd/N"), in the caller's mount namespace.
  std::string target;
  KernelFileSystem file_system = KernelFileSystem::kSquashfs;
  /// Only of kExt; the image is open for writing then.
  bool writable = false;
};

/// Mounts what is in the request at its target: nosuid, nodev, and read-only unless it is to be written. When it returns, unmounting the target
/// is all it takes to undo everything: the mapping is marked for deferred removal and the loop device for autoclear, so
/// the kernel does it when this process, or its mount namespace, is killed. On failure nothing is left. Throws
/// SystemError whose operation names the step: "loop_attach" (EBUSY: none free), "crypt_activate" (EPERM: the key does
/// not match the header; ENOTSUP: the kernel lacks dm-crypt or the cipher), "verity_activate" (ENOTSUP: the
/// kernel lacks dm-verity; EINVAL, EBADMSG "verity_open": the hash tree is not of the partition's size), "mount", "dlopen" (ELIBACC).
void KernelMount(const KernelMountRequest& request);

}  // namespace sifcrypt
