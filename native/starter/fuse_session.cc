#define FUSE_USE_VERSION 312

#include "starter/fuse_session.h"

#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <chrono>
#include <cstdarg>
#include <string>
#include <utility>

#include "starter/fuse_answers.h"

namespace sifcrypt::starter {
namespace {

constexpr unsigned kMaxThreads = 8;
/// Than processors. Where those are all busy, each more only takes turns with the others.
constexpr unsigned kMoreThreads = 1;
constexpr int kWakeSignal = SIGUSR2;
constexpr unsigned kMaxBackground = 64;

FuseFileSystem& SystemOf(fuse_req_t request) { return *static_cast<FuseFileSystem*>(fuse_req_userdata(request)); }

/// ENOSYS makes the kernel open by itself from then on.
void ReplyOpen(fuse_req_t request, bool kernel_opens, const fuse_file_info* file) {
  if (kernel_opens)
    fuse_reply_err(request, ENOSYS);
  else
    fuse_reply_open(request, file);
}

}  // namespace

FuseSession::FuseSession(const fuse_lowlevel_ops& operations, std::unique_ptr<FuseFileSystem> system, UniqueFd device)
    : system_(std::move(system)), ended_(CheckErrno(eventfd(0, EFD_CLOEXEC), "eventfd")) {
  fuse_set_log_func([](fuse_log_level, const char*, va_list) {});
  // libfuse wants to know how it was mounted.
  std::string name = "sifcrypt", flag = "-o", mounted_with = "max_read=" + std::to_string(kFuseMaxRead);
  char* argv[] = {name.data(), flag.data(), mounted_with.data(), nullptr};
  fuse_args arguments = FUSE_ARGS_INIT(3, argv);
  session_ = fuse_session_new(&arguments, &operations, sizeof operations, system_.get());
  fuse_opt_free_args(&arguments);
  loop_ = fuse_loop_cfg_create();
  // libfuse takes a device that is mounted already by this name.
  const std::string path = "/dev/fd/" + std::to_string(device.get());
  const bool usable = session_ != nullptr && loop_ != nullptr && fuse_session_mount(session_, path.c_str()) == 0;
  if (!usable) {
    if (session_ != nullptr) fuse_session_destroy(session_);
    if (loop_ != nullptr) fuse_loop_cfg_destroy(loop_);
    throw SystemError(EIO, "fuse", "the device is not usable");
  }
  static_cast<void>(device.Release());  // closed by fuse_session_destroy
  Start();
  // The kernel's first request comes with the mount. Before it is answered there may be no thread at all that answers.
  if (system_->connection.Await()) return;
  thread_.join();
  fuse_session_destroy(session_);
  fuse_loop_cfg_destroy(loop_);
  throw SystemError(EIO, "fuse", "serving has ended before it began");
}

FuseSession::~FuseSession() {
  if (thread_.joinable()) {
    fuse_session_exit(session_);
    // The loop looks at that only when a signal interrupts it, and may be just about to wait: so once is not enough.
    while (!has_ended_) {
      pthread_kill(thread_.native_handle(), kWakeSignal);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    thread_.join();
  }
  fuse_session_destroy(session_);
  fuse_loop_cfg_destroy(loop_);
}

uint64_t FuseSession::requests() const { return system_->requests.load(std::memory_order_relaxed); }

void FuseSession::Start() {
  struct sigaction wake {};
  wake.sa_handler = [](int) {};  // without SA_RESTART: the wait ends
  CheckErrno(sigaction(kWakeSignal, &wake, nullptr), "sigaction");
  fuse_loop_cfg_set_clone_fd(loop_, 1);
  fuse_loop_cfg_set_max_threads(loop_, std::min(kMaxThreads, std::thread::hardware_concurrency() + kMoreThreads));
  thread_ = std::thread([this] {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, kWakeSignal);
    pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
    fuse_session_loop_mt(session_, loop_);
    has_ended_ = true;
    system_->connection.Ended();
    const uint64_t one = 1;
    static_cast<void>(!write(ended_.get(), &one, sizeof one));
  });
}

fuse_lowlevel_ops OpeningOperations() {
  fuse_lowlevel_ops operations{};
  operations.open = [](fuse_req_t request, fuse_ino_t, fuse_file_info* file) {
    file->keep_cache = 1;
    ReplyOpen(request, SystemOf(request).kernel_opens_files, file);
  };
  operations.opendir = [](fuse_req_t request, fuse_ino_t, fuse_file_info* file) {
    file->keep_cache = 1;
    file->cache_readdir = 1;
    ReplyOpen(request, SystemOf(request).kernel_opens_directories, file);
  };
  return operations;
}

void Connect(FuseFileSystem& system, fuse_conn_info* connection, std::initializer_list<unsigned> unwanted) {
  for (const unsigned capability : {FUSE_CAP_NO_OPEN_SUPPORT, FUSE_CAP_NO_OPENDIR_SUPPORT, FUSE_CAP_CACHE_SYMLINKS,
                                    FUSE_CAP_READDIRPLUS, FUSE_CAP_ASYNC_READ, FUSE_CAP_PARALLEL_DIROPS})
    if (connection->capable & capability) connection->want |= capability;
  for (const unsigned capability : unwanted) connection->want &= ~capability;
  system.kernel_opens_files = (connection->capable & FUSE_CAP_NO_OPEN_SUPPORT) != 0;
  system.kernel_opens_directories = (connection->capable & FUSE_CAP_NO_OPENDIR_SUPPORT) != 0;
  connection->max_read = kFuseMaxRead;
  connection->max_readahead = kFuseMaxRead;
  connection->max_background = kMaxBackground;
  system.connection.Made();
}

void ReplyXattr(fuse_req_t request, const std::string& value, size_t size) {
  if (size == 0)
    fuse_reply_xattr(request, value.size());
  else if (value.size() > size)
    fuse_reply_err(request, ERANGE);
  else
    fuse_reply_buf(request, value.data(), value.size());
}

}  // namespace sifcrypt::starter
