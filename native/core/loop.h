// Loop devices: a part of a file as a block device. Root only.
#pragma once

#include <cstdint>
#include <string>

#include "core/unique_fd.h"

namespace sifcrypt::loop {

/// An attached device, open. It has the autoclear flag: the kernel detaches it when the last user (this descriptor, a
/// mapping, a mount) is gone, whatever becomes of this process.
struct Device {
  UniqueFd fd;
  /// "/dev/loopN"
  std::string path;
};

/// Attaches [offset, offset + size) of `fd`, both multiples of 512, to a free device. Another process may take the
/// device that was free a moment ago, and a device may be broken: then the next one is tried. Throws SystemError
/// "loop_attach": EBUSY when none is free, EPERM or EACCES without privilege, ENOTSUP without loop devices in the
/// kernel.
Device Attach(int fd, uint64_t offset, uint64_t size, bool read_only);

}  // namespace sifcrypt::loop
