// Sees to it that a mount goes when the process that serves it ends.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>

#include "starter/channel.h"

namespace sifcrypt::starter {

/// Two processes that see to it that the mount goes at the end, also when this one is killed: the first unmounts, and
/// the second in its place should it be killed itself. They know nothing of the image, are not in our process group, and
/// keep the privileges that this one gives up.
class MountGuard {
 public:
  /// To be made before the mount. `at_start` runs in each of them first.
  explicit MountGuard(const std::string& target, const std::function<void()>& at_start = {});
  ~MountGuard() { Unmount(); }
  MountGuard(const MountGuard&) = delete;
  MountGuard& operator=(const MountGuard&) = delete;
  /// As long as a process has this open the guard waits for its end, too.
  int fd() const { return first_.orders.fd(); }
  void Watch(const std::string& identity) const;
  /// Unmounts if nobody uses it, in a while: the session ends then.
  void UnmountUnused() const;
  /// The mount stays.
  void Dismiss() const;
  /// Idempotent; nothing when it is unmounted already.
  void Unmount();

 private:
  struct Process {
    Channel orders;
    pid_t id = -1;
  };

  /// Back when it outlives this process: nothing is to be mounted before.
  template <typename Body>
  static void Start(Process& process, const Channel& life, Body body);

  Process first_;
  Process second_;
};

}  // namespace sifcrypt::starter
