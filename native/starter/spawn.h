// Programs of the system that the starter runs to their end: from fixed places, with no environment but a PATH.
#pragma once

#include <string>
#include <vector>

namespace sifcrypt::starter {

/// No PATH of the caller decides what runs. SystemError `operation`, ENOENT.
std::string FindProgram(const std::string& name, const char* operation);

/// Throws SystemError `operation`, EPERM, with what it complained about unless it ends with status 0. `input`: its
/// standard input, or -1 for none. `environment`: besides PATH.
void RunProgram(const std::string& program, const std::vector<std::string>& arguments, const char* operation,
                int input = -1, const std::string& environment = {});

}  // namespace sifcrypt::starter
