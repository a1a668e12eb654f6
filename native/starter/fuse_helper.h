// FUSE file systems of other programs (fuse2fs, fuse-overlayfs) in this mount namespace: for what an ordinary user's
// kernel has no driver. They run for as long as they are mounted.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace sifcrypt::starter {

class FuseHelper {
 public:
  /// Runs `name` from a fixed place and waits until it has mounted at `target`. Its working directory is `directory`;
  /// `kept` is a descriptor that it inherits, or -1. Throws SystemError of `operation`: ENOENT when it is not installed, EIO
  /// with its own words when it ends. It dies with this process.
  FuseHelper(const std::string& name, std::vector<std::string> arguments, std::string target,
             const std::string& directory, int kept, const char* operation);
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

}  // namespace sifcrypt::starter
