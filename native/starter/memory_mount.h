// An image unpacked into memory, where there is no FUSE.
#pragma once

#include <string>

#include "starter/options.h"

namespace sifcrypt::starter {

/// Mounts a file system in memory on `target`, of ImageOptions::memory bytes, fills it with the image's files and makes it
/// read-only. A process of its own does that: it has the key, and reads the image with as few rights as it can. It is kept from
/// the swap space where the kernel allows that (root, Linux 6.4). SystemError "memory" with ENOSPC where the files do not fit,
/// "mount", and what the image's reader throws.
void MountInMemory(const ImageOptions& image, const std::string& target);

}  // namespace sifcrypt::starter
