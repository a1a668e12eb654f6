#include "starter/say.h"

#include <stdio.h>
#include <unistd.h>

#include <utility>

namespace sifcrypt::starter {
namespace {

std::string message_name = "sifcrypt";

}  // namespace

void SayAs(std::string name) { message_name = std::move(name); }

void Say(const std::string& text) { dprintf(STDERR_FILENO, "%s: %s\n", message_name.c_str(), text.c_str()); }

}  // namespace sifcrypt::starter
