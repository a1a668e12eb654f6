// The loop that takes requests from a FUSE device and hands them to a file system of ours.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "core/unique_fd.h"

struct fuse_session;
struct fuse_loop_config;
struct fuse_lowlevel_ops;

namespace sifcrypt::starter {

struct FuseFileSystem;

class FuseSession {
 public:
  /// `device` is a /dev/fuse that is mounted already. Serves on threads of its own from here on, and has
  /// answered the kernel once. Throws SystemError "fuse".
  FuseSession(const fuse_lowlevel_ops& operations, std::unique_ptr<FuseFileSystem> system, UniqueFd device);
  /// Stops serving; who still uses the file system gets ENOTCONN.
  ~FuseSession();
  FuseSession(const FuseSession&) = delete;
  FuseSession& operator=(const FuseSession&) = delete;

  /// Becomes readable when serving has ended: the file system was unmounted, or its connection aborted.
  int ended_fd() const { return ended_.get(); }
  /// How often the file system was asked for something.
  uint64_t requests() const;

 private:
  void Start();

  std::unique_ptr<FuseFileSystem> system_;
  fuse_session* session_ = nullptr;
  fuse_loop_config* loop_ = nullptr;
  UniqueFd ended_;
  std::atomic<bool> has_ended_ = false;
  std::thread thread_;
};

}  // namespace sifcrypt::starter
