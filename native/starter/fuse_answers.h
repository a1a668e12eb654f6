// What file systems of ours that are served by FUSE have in common. Whoever includes this defines FUSE_USE_VERSION first.
#pragma once

#include <fuse3/fuse_lowlevel.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>

#include "core/system_error.h"
#include "starter/fuse_mount.h"
#include "starter/fuse_session.h"

namespace sifcrypt::starter {

/// Seconds. An image does not change, and a scratch only through the kernel, so that may remember what it was told.
constexpr double kForever = 86400;

/// With the kernel. Not std::atomic's wait, which the compiler of the oldest system that we build on does not have.
class Connection {
 public:
  void Made() { Decide(true); }
  /// Without effect on one that was made.
  void Ended() { Decide(false); }
  /// Whether it was made.
  bool Await() {
    std::unique_lock lock(mutex_);
    decided_.wait(lock, [this] { return made_.has_value(); });
    return *made_;
  }

 private:
  void Decide(bool made) {
    const std::lock_guard lock(mutex_);
    if (!made_) made_ = made;
    decided_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable decided_;
  std::optional<bool> made_;
};

/// What sessions serve, and what libfuse hands to each answer as its user data.
struct FuseFileSystem {
  virtual ~FuseFileSystem() = default;
  bool kernel_opens_files = false;
  bool kernel_opens_directories = false;
  /// How often it was asked for something.
  std::atomic<uint64_t> requests = 0;
  Connection connection;
};

/// The answers to open and opendir: the kernel opens by itself, where it can, and keeps what it has cached.
fuse_lowlevel_ops OpeningOperations();

/// To be called by init: caches whatever may be cached, and does without the `unwanted` (FUSE_CAP_…).
void Connect(FuseFileSystem& system, fuse_conn_info* connection, std::initializer_list<unsigned> unwanted);

void ReplyXattr(fuse_req_t request, const std::string& value, size_t size);

/// Has `body` answer the request; with what goes wrong there, in the words of `meaning`, answers it itself.
template <typename System, typename Body>
void AnswerBy(fuse_req_t request, int (*meaning)(const SystemError&), Body body) noexcept {
  int error = EIO;
  auto& system = *static_cast<FuseFileSystem*>(fuse_req_userdata(request));
  system.requests.fetch_add(1, std::memory_order_relaxed);
  try {
    body(static_cast<System&>(system));
    return;
  } catch (const std::bad_alloc&) {
    error = ENOMEM;
  } catch (const SystemError& failure) {
    error = meaning(failure);
  } catch (const std::exception&) {
  }
  fuse_reply_err(request, error);
}

/// Collects directory entries, as plain ones or with attributes, until the kernel's buffer is full.
template <bool plus>
class Listing {
 public:
  // Not std::make_unique, which would clear it first.
  Listing(fuse_req_t request, size_t size)
      : request_(request), size_(std::min<size_t>(size, kFuseMaxRead)), out_(new char[size_]) {}

  /// Of a plain one, only the inode number and the type in `entry.attr` count. False: it did not fit.
  bool Add(const std::string& name, const fuse_entry_param& entry, uint64_t next) {
    const size_t room = size_ - used_;
    char* const end = out_.get() + used_;
    const size_t need =
        plus ? fuse_add_direntry_plus(request_, end, room, name.c_str(), &entry, static_cast<off_t>(next))
             : fuse_add_direntry(request_, end, room, name.c_str(), &entry.attr, static_cast<off_t>(next));
    if (need > room) return false;
    used_ += need;
    return true;
  }
  void Reply() const { fuse_reply_buf(request_, out_.get(), used_); }

 private:
  fuse_req_t request_;
  size_t size_;
  std::unique_ptr<char[]> out_;
  size_t used_ = 0;
};

}  // namespace sifcrypt::starter
