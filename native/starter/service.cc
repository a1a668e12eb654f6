#include "starter/service.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <vector>

#include "core/system_error.h"
#include "starter/status.h"

namespace sifcrypt::starter {
namespace {

constexpr int kFailure = 255;
constexpr size_t kJournalSize = 1024;
constexpr size_t kMaxReason = 500;
constexpr int64_t kFirstDelayMs = 100;
constexpr int64_t kMostDelayMs = 60'000;
/// Who has run for so long has not failed at its start.
constexpr int64_t kSettledMs = 10'000;
constexpr size_t kPiece = 64 << 10;

int64_t MillisecondsSince1970() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  return now.tv_sec * int64_t{1000} + now.tv_nsec / 1'000'000;
}

/// One of the two files, and the older ones: NAME, NAME.1, NAME.2.
class LogFile {
 public:
  LogFile(std::string path, const LogOptions& options) : path_(std::move(path)), options_(options) { Open(); }

  void Write(const char* data, size_t size) {
    while (size > 0) {
      if (size_ >= options_.max_size) Rotate();
      // One that cannot be put aside stays full, and would be written to without end.
      if (size_ >= options_.max_size) throw SystemError(EIO, "log", path_ + ": it is full, and cannot be replaced");
      const size_t part = static_cast<size_t>(std::min<uint64_t>(size, options_.max_size - size_));
      const ssize_t written = write(file_.get(), data, part);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) throw SystemError(errno, "log", path_ + ": " + std::strerror(errno));
      size_ += static_cast<uint64_t>(written);
      data += written;
      size -= static_cast<size_t>(written);
    }
  }

 private:
  void Open() {
    file_.Reset(open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600));
    struct stat info {};
    if (!file_ || fstat(file_.get(), &info) != 0) throw SystemError(errno, "log", path_ + ": " + std::strerror(errno));
    size_ = static_cast<uint64_t>(info.st_size);
  }

  void Rotate() {
    const auto older = [&](unsigned number) { return number == 0 ? path_ : path_ + "." + std::to_string(number); };
    for (unsigned number = options_.max_files - 1; number > 0; --number)
      rename(older(number - 1).c_str(), older(number).c_str());
    // Who is reading it reads on; with a single file nothing older is kept.
    if (options_.max_files == 1) unlink(path_.c_str());
    Open();
  }

  std::string path_;
  const LogOptions& options_;
  UniqueFd file_;
  uint64_t size_ = 0;
};

}  // namespace

void Journal::Started() {
  state_ = "running";
  started_ = MillisecondsSince1970();
  Write();
}

void Journal::Restarting(int code) {
  state_ = "restarting";
  code_ = code;
  ended_ = MillisecondsSince1970();
  ++restarts_;
  Write();
}

void Journal::Ended(int code) {
  state_ = "ended";
  code_ = code;
  ended_ = MillisecondsSince1970();
  Write();
}

void Journal::Failed(const std::string& reason) {
  state_ = "ended";
  failure_ = reason.substr(0, kMaxReason);
  ended_ = MillisecondsSince1970();
  Write();
}

void Journal::Is(Health health) {
  if (health == health_) return;
  health_ = health;
  Write();
}

void Journal::Write() const {
  if (fd_ < 0) return;
  constexpr const char* kHealths[] = {"", "starting", "healthy", "unhealthy"};
  std::string line = std::string(R"({"state":")") + state_ + R"(","health":")" +
                     kHealths[static_cast<size_t>(health_)] + R"(","code":)" + std::to_string(code_) +
                     R"(,"restarts":)" + std::to_string(restarts_) + R"(,"startedAt":)" + std::to_string(started_) +
                     R"(,"endedAt":)" + std::to_string(ended_) + R"(,"failure":)";
  line += Quote(failure_) + "}";
  line.resize(std::max(line.size(), kJournalSize - 1), ' ');
  line += '\n';
  // Nobody is there to be told that the disk is full.
  static_cast<void>(!pwrite(fd_, line.data(), line.size(), 0));
}

int64_t RestartPolicy::Delay(int code, int restarts, int64_t ran_ms) {
  if (options_.restart == ServiceOptions::Restart::kNo) return -1;
  if (options_.restart == ServiceOptions::Restart::kOnFailure &&
      (code == 0 || (options_.retries >= 0 && restarts >= options_.retries)))
    return -1;
  if (ran_ms >= kSettledMs) delay_ms_ = 0;
  delay_ms_ = delay_ms_ == 0 ? kFirstDelayMs : std::min(delay_ms_ * 2, kMostDelayMs);
  return delay_ms_;
}

int LogProcess(const LogOptions& options, const Channel& main, UniqueFd out, UniqueFd err) {
  setpgid(0, 0);
  CloseAllBut({main.fd(), out.get(), err.get()});
  DetachStandardStreams();
  umask(077);
  try {
    LogFile files[] = {{options.out, options}, {options.err, options}};
    pollfd pipes[] = {{out.get(), POLLIN, 0}, {err.get(), POLLIN, 0}};
    std::vector<char> piece(kPiece);
    while (pipes[0].fd >= 0 || pipes[1].fd >= 0) {
      if (poll(pipes, std::size(pipes), -1) < 0 && errno != EINTR) throw SystemError(errno, "poll");
      for (size_t i = 0; i < std::size(pipes); ++i) {
        if (pipes[i].fd < 0 || pipes[i].revents == 0) continue;
        const ssize_t size = read(pipes[i].fd, piece.data(), piece.size());
        if (size > 0) files[i].Write(piece.data(), static_cast<size_t>(size));
        if (size == 0 || (size < 0 && errno != EINTR && errno != EAGAIN)) pipes[i].fd = -1;
      }
    }
    return 0;
  } catch (const SystemError& failure) {
    main.SendFailure(failure, "log");
  }
  return kFailure;
}

}  // namespace sifcrypt::starter
