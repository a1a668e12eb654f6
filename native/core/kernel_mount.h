// The kernel engine: loop device, dm-verity and dm-crypt mappings where they are wanted, squashfs mount. Root only (CAP_SYS_ADMIN in the initial namespace).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/secret_buffer.h"
#include "core/verity.h"

namespace sifcrypt {

/// The encrypted part of a partition: what lib/device/luks-header.ts checked, and the key it gave.
struct KernelMountCipher {
  /// The LUKS2 metadata that was checked: primary header, then the secondary one or zeros (16 KiB to 8 MiB).
  std::vector<uint8_t> metadata;
  /// Bytes of header and keyslots area together, as in luks::UnlockRequest.
  uint64_t area_size = 0;
  SecretBuffer volume_key;
  /// Bytes from the start of the partition to the data segment.
  uint64_t segment_offset = 0;
  /// Bytes of the data segment, a multiple of 512 and inside the partition; never 0 ("dynamic" is resolved before).
  uint64_t segment_size = 0;
};

enum class KernelFileSystem {
  kSquashfs,
  /// ext3 or ext4. Its driver is no match for a hostile image: only for a file that root made and named.
  kExt,
};

/// The hash tree of a partition, in the same image.
struct KernelMountTree {
  /// Bytes; a multiple of 512, as loop(4) requires.
  uint64_t offset = 0;
  uint64_t size = 0;
  VerityParameters parameters;
};

struct KernelMountRequest {
  /// The image, open for reading.
  int image_fd = -1;
  /// Where the partition lies in the image, bytes; a multiple of 512, as loop(4) requires.
  uint64_t offset = 0;
  uint64_t size = 0;
  /// Empty: the partition is plain.
  std::optional<KernelMountCipher> cipher;
  /// Empty: the partition is not verified.
  std::optional<KernelMountTree> tree;
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
/// kernel lacks dm-verity; EINVAL, EBADMSG "verity_open": the tree is not of the partition's size), "mount", "dlopen" (ELIBACC).
void KernelMount(const KernelMountRequest& request);

}  // namespace sifcrypt
