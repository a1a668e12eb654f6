#include "starter/say.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include <utility>

namespace sifcrypt::starter {
namespace {

std::string message_name = "sifcrypt";

}  // namespace

void SayAs(std::string name) { message_name = std::move(name); }

void Say(const char* format, ...) {
  va_list values;
  va_start(values, format);
  char text[1024];
  vsnprintf(text, sizeof text, format, values);
  va_end(values);
  dprintf(STDERR_FILENO, "%s: %s\n", message_name.c_str(), text);
}

}  // namespace sifcrypt::starter
