// What the starter has to say to the user, beside its status.
#pragma once

#include <string>

namespace sifcrypt::starter {

/// What messages of this process, and of those that it starts, begin with.
void SayAs(std::string name);

/// A line on standard error.
void Say(const std::string& text);

}  // namespace sifcrypt::starter
