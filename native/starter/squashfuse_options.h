// The command line of squashfuse_ll, which this program takes under that name.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "starter/fuse_mount.h"

namespace sifcrypt::starter {

constexpr char kSquashfuse[] = "squashfuse_ll";

struct SquashfuseOptions {
  enum class Wanted { kMount, kHelp, kVersion };
  Wanted wanted = Wanted::kMount;
  std::string archive;
  std::string mount_point;
  /// The mount point is /dev/fd/N: this device, which the caller has mounted.
  int device = -1;
  uint64_t offset = 0;
  std::optional<uid_t> uid;
  std::optional<gid_t> gid;
  std::string subdir;
  /// A FIFO that is told how it went.
  std::string notify_pipe;
  /// Seconds without a request after which what nobody uses is unmounted; 0: never.
  unsigned timeout = 0;
  bool foreground = false;
  /// As MountFuse takes them.
  unsigned long flags = kReadOnly;
  std::string access;
  std::string source = kSquashfuse;
};

/// Throws UsageError.
SquashfuseOptions ParseSquashfuseOptions(const std::vector<std::string>& arguments);

/// What --help prints.
extern const char* const kSquashfuseUsage;

}  // namespace sifcrypt::starter
