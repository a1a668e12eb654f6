#include "starter/status.h"

#include <algorithm>
#include <cstdio>

#include "core/error_name.h"

namespace sifcrypt::starter {
namespace {

constexpr const char* kSteps[] = {
    "loop_attach", "crypt_activate", "verity_activate", "mount", "dlopen", "fuse",    "userns", "overlay",
    "crun",        "bundle",         "scratch",         "join",  "memory", "network", "port",   "log"};

/// The string after `"name":` in one line of JSON, with the simple escapes undone; others are left as they are.
std::string StringField(std::string_view line, const std::string& name) {
  const std::string field = '"' + name + '"';
  size_t at = line.find(field);
  if (at == std::string_view::npos) return {};
  at = line.find('"', at + field.size());
  if (at == std::string_view::npos) return {};
  std::string value;
  for (++at; at < line.size() && line[at] != '"'; ++at) {
    if (line[at] == '\\' && at + 1 < line.size()) {
      ++at;
      if (line[at] == 'n' || line[at] == 't')
        value += ' ';
      else if (line[at] == '"' || line[at] == '\\' || line[at] == '/')
        value += line[at];
      else
        value.append({'\\', line[at]});
    } else {
      value += line[at];
    }
  }
  return value;
}

}  // namespace

std::string Quote(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (byte < 0x20) {
      char code[8];
      snprintf(code, sizeof code, "\\u%04x", byte);
      quoted += code;
    } else {
      quoted += c;
    }
  }
  return quoted + '"';
}

std::string StepOf(const SystemError& failure) {
  for (const char* step : kSteps)
    if (failure.operation() == step) return step;
  return "server";
}

std::string FirstRuntimeError(std::string_view log) {
  while (!log.empty()) {
    const std::string_view line = log.substr(0, log.find('\n'));
    log.remove_prefix(std::min(log.size(), line.size() + 1));
    if (StringField(line, "level") != "error") continue;
    const std::string message = StringField(line, "msg");
    return message.empty() ? std::string(line) : message;
  }
  return {};
}

void Status::Ready(pid_t pid) const {
  // Who does not hear of it waits for ever; who listens no more does not wait.
  if (!Write(R"({"event":"ready","pid":)" + std::to_string(pid) + "}\n") && errno != EPIPE)
    throw SystemError(errno, "server", "it cannot be told that all is ready");
}

void Status::Error(std::string_view step, int error, std::string_view message) const {
  Write(R"({"event":"error","step":)" + Quote(step) + R"(,"errno":)" + Quote(ErrorName(error)) + R"(,"errnoNumber":)" +
        std::to_string(error) + R"(,"message":)" + Quote(message) + "}\n");
}

void Status::Exit(int code, int signal, std::string_view runtime_message) const {
  std::string line = R"({"event":"exit","code":)" + std::to_string(code);
  if (signal != 0) line += R"(,"signal":)" + std::to_string(signal);
  if (!runtime_message.empty()) line += R"(,"crun":)" + Quote(runtime_message);
  Write(line + "}\n");
}

bool Status::Write(const std::string& line) const {
  for (size_t done = 0; done < line.size();) {
    const ssize_t n = write(fd_.get(), line.data() + done, line.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    done += static_cast<size_t>(n);
  }
  return true;
}

}  // namespace sifcrypt::starter
