// Places in the root to mount at, where links of the image lead to nowhere.
#pragma once

#include <string>
#include <vector>

namespace sifcrypt::starter {

/// Sees to it that `place`, absolute, leads to a folder or else a file below `root`. What is missing where a link leads to is made;
/// a link that leads round in a circle, over a file, or into what is the kernel's or mounted before (`covered`), gives way to what
/// is mounted: the OCI runtime would make on the host what the link leads to. What is missing without any link is left to the runtime.
/// SystemError "root".
/// @return Where it is below the root, without links.
std::string MakeMountPoint(const std::string& root, const std::string& place, bool is_folder,
                           const std::vector<std::string>& covered);

}  // namespace sifcrypt::starter
