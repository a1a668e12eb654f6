// From the command line to the image's bytes, or to the kernel's mount of them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/byte_range.h"
#include "core/kernel_mount.h"
#include "starter/options.h"

namespace sifcrypt::starter {

/// The plain squashfs. Reads the key from its pipe and closes that.
std::shared_ptr<const ByteSource> OpenImage(const ImageOptions& options);

/// What comes until a pipe's end; closes it. EMSGSIZE: more than `limit`.
std::vector<uint8_t> ReadPipe(int fd, size_t limit);

/// The kernel engine. Reads key and metadata from their pipes and closes them.
void MountWithKernel(const ImageOptions& options, const std::string& target,
                     KernelFileSystem file_system = KernelFileSystem::kSquashfs, bool writable = false);

/// From here on other processes of the user can neither trace this one nor read its memory, and it leaves no core dump.
void ProtectSecrets();

}  // namespace sifcrypt::starter
