// Places in the root to mount at, where links of the image lead to nowhere.
#pragma once

#include <string>

namespace sifcrypt::starter {

/// Sees to it that `place`, absolute, leads to a folder or else a file below `root`. What is missing where a link leads to is made;
/// a link that leads round in a circle, over a file, or into what is the kernel's, gives way to what is mounted. What is missing
/// without any link is left to the OCI runtime. SystemError "root".
void MakeMountPoint(const std::string& root, const std::string& place, bool is_folder);

}  // namespace sifcrypt::starter
