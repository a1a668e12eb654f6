// What the starter has to say to the user, beside its status.
#pragma once

#include <string>

namespace sifcrypt::starter {

/// What messages of this process, and of those that it starts, begin with.
void SayAs(std::string name);

/// A line on standard error.
[[gnu::format(printf, 1, 2)]] void Say(const char* format, ...);

}  // namespace sifcrypt::starter
