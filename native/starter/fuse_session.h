// The loop that takes requests from a FUSE device and hands them to a file system of ours. Whoever includes this defines
// FUSE_USE_VERSION first.
#pragma once

#include <fuse3/fuse_lowlevel.h>

#include <atomic>
#include <thread>

#include "core/unique_fd.h"

namespace sifcrypt::starter {

class FuseSession {
 public:
  /// `device` is a /dev/fuse that is mounted already. Throws SystemError "fuse".
  FuseSession(const fuse_lowlevel_ops& operations, void* user_data, UniqueFd device);
  /// Stops serving; who still uses the file system gets ENOTCONN.
  ~FuseSession();
  FuseSession(const FuseSession&) = delete;
  FuseSession& operator=(const FuseSession&) = delete;

  /// Serves on threads of its own from here on.
  void Start();
  /// Becomes readable when serving has ended: the file system was unmounted, or its connection aborted.
  int ended_fd() const { return ended_.get(); }

 private:
  fuse_session* session_ = nullptr;
  fuse_loop_config* loop_ = nullptr;
  UniqueFd ended_;
  std::atomic<bool> has_ended_ = false;
  std::thread thread_;
};

}  // namespace sifcrypt::starter
