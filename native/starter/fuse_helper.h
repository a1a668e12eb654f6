// FUSE file systems of other programs (fuse2fs, fuse-overlayfs) in this mount namespace: for what an ordinary user's
// kernel has no driver. They run for as long as they are mounted. What they read is somebody else's, so they see and may do
// nothing beyond it: mounting is done for them, here.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "starter/confine.h"

namespace sifcrypt::starter {

struct HelperProgram {
  /// In one of the system's folders.
  std::string name;
  /// Before the mount point, which comes last.
  std::vector<std::string> arguments;
  /// What it sees besides what it needs to run. Its working directory is "/".
  std::vector<SeenPlace> places;
  /// Of an image, which it finds as kHelperImage; -1: none.
  int image_fd = -1;
};

constexpr char kHelperImage[] = "/proc/self/fd/4";

class FuseHelper {
 public:
  /// Mounts at `target`, starts the program for it and waits until it answers. `flags` and `access`: those of MountFuse. Throws
  /// SystemError of `operation`: ENOENT when it is not installed, EIO with its own words when it ends. It dies with this
  /// process.
  FuseHelper(HelperProgram program, std::string target, unsigned long flags, const std::string& access,
             const char* operation);
  FuseHelper(const FuseHelper&) = delete;
  FuseHelper& operator=(const FuseHelper&) = delete;
  FuseHelper(FuseHelper&& other) noexcept;
  /// Unmounts, and waits for it to write what is left.
  ~FuseHelper();

  pid_t process() const { return process_; }
  const std::string& name() const { return name_; }

 private:
  std::string name_;
  std::string target_;
  pid_t process_ = -1;
};

/// Is this program started by a helper that takes it for the setuid program that mounts (fusermount)?
bool IsAskedToMount(const char* program);
/// Answers it as that does: with the device of the mount that is there already.
int HandOverMount();

}  // namespace sifcrypt::starter
