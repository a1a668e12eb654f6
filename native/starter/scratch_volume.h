// A throw-away encrypted volume: the scratch of a build as root, where the kernel has dm-crypt.
#pragma once

#include <cstdint>
#include <string>

#include "core/unique_fd.h"

namespace sifcrypt::starter {

/// Makes a LUKS2 volume of `size` bytes in `file`, which is empty, with a random key that nothing but the kernel keeps and a
/// header that is in memory alone; puts an ext4 file system on it and mounts that at `target`. When it returns,
/// unmounting is all it takes to undo everything, as the kernel does when the mount namespace ends. To be called outside
/// of a PID namespace that may be killed: a process of its own sees to what is half made. Throws SystemError
/// "loop_attach", "crypt_activate", "dlopen", "scratch".
void MountVolume(UniqueFd file, uint64_t size, const std::string& target);

}  // namespace sifcrypt::starter
