#include "starter/spawn.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/system_error.h"
#include "core/unique_fd.h"

namespace sifcrypt::starter {
namespace {

constexpr const char* kFolders[] = {"/usr/bin/", "/usr/sbin/", "/bin/", "/sbin/", "/usr/local/bin/"};
constexpr size_t kMaxComplaint = 4000;

class SpawnActions {
 public:
  SpawnActions() { posix_spawn_file_actions_init(&actions_); }
  ~SpawnActions() { posix_spawn_file_actions_destroy(&actions_); }
  SpawnActions(const SpawnActions&) = delete;
  SpawnActions& operator=(const SpawnActions&) = delete;
  void Duplicate(int from, int to) { posix_spawn_file_actions_adddup2(&actions_, from, to); }
  const posix_spawn_file_actions_t* get() const { return &actions_; }

 private:
  posix_spawn_file_actions_t actions_;
};

class SpawnAttributes {
 public:
  /// Signals are as a new program expects them: this process blocks some.
  SpawnAttributes() {
    sigset_t set;
    posix_spawnattr_init(&attributes_);
    sigemptyset(&set);
    posix_spawnattr_setsigmask(&attributes_, &set);
    sigaddset(&set, SIGPIPE);
    posix_spawnattr_setsigdefault(&attributes_, &set);
    posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  }
  ~SpawnAttributes() { posix_spawnattr_destroy(&attributes_); }
  SpawnAttributes(const SpawnAttributes&) = delete;
  SpawnAttributes& operator=(const SpawnAttributes&) = delete;
  const posix_spawnattr_t* get() const { return &attributes_; }

 private:
  posix_spawnattr_t attributes_;
};

std::string ReadComplaint(int fd) {
  std::string text;
  char part[256];
  for (;;) {
    const ssize_t n = read(fd, part, sizeof part);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    if (text.size() < kMaxComplaint) text.append(part, static_cast<size_t>(n));
  }
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

}  // namespace

std::string FindProgram(const std::string& name, const char* operation) {
  for (const char* folder : kFolders)
    if (access((folder + name).c_str(), X_OK) == 0) return folder + name;
  throw SystemError(ENOENT, operation, name + " is not installed");
}

void RunProgram(const std::string& program, const std::vector<std::string>& arguments, const char* operation, int input,
                const std::string& environment) {
  const std::string name = program.substr(program.rfind('/') + 1);
  int ends[2];
  CheckErrno(pipe2(ends, O_CLOEXEC), "pipe2");
  const UniqueFd complaints(ends[0]);
  UniqueFd child_end(ends[1]);
  const UniqueFd nothing(CheckErrno(open("/dev/null", O_RDWR | O_CLOEXEC), "open"));
  SpawnActions actions;
  actions.Duplicate(input >= 0 ? input : nothing.get(), STDIN_FILENO);
  actions.Duplicate(child_end.get(), STDOUT_FILENO);
  actions.Duplicate(child_end.get(), STDERR_FILENO);
  const SpawnAttributes attributes;
  std::vector<std::string> words = arguments;
  std::vector<char*> argv{const_cast<char*>(name.c_str())};
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  char path[] = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
  std::string more = environment;
  char* variables[] = {path, more.empty() ? nullptr : more.data(), nullptr};
  pid_t child = -1;
  if (const int error = posix_spawn(&child, program.c_str(), actions.get(), attributes.get(), argv.data(), variables))
    throw SystemError(error, operation, program + ": " + std::strerror(error));
  child_end.Reset();
  const std::string complaint = ReadComplaint(complaints.get());
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    throw SystemError(EPERM, operation, complaint.empty() ? name + " failed" : complaint);
}

}  // namespace sifcrypt::starter
