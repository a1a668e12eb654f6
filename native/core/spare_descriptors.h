// Want of descriptors behind calls of libraries that say anything of it but that.
#pragma once

namespace sifcrypt {

/// After a failure: SystemError EMFILE or ENFILE with this operation, if this process or the machine has not even a few descriptors left,
/// as a library needs for a moment.
void CheckSpareDescriptors(const char* operation);

}  // namespace sifcrypt
