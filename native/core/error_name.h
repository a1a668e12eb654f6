// Names of errno values, as Node and the starter's parent know them.
#pragma once

#include <string>

namespace sifcrypt {

/// "EPERM"; "E" and the number for the rare ones.
std::string ErrorName(int error);

}  // namespace sifcrypt
