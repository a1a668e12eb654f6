// The workspace of one build: private namespaces with a scratch for root file systems under construction, and a program
// that builds in it. When the program ends, or whoever started it is gone, all of it is gone.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "starter/id_map.h"
#include "starter/processes.h"

namespace sifcrypt::starter {

struct WorkspaceOptions {
  /// The folder that the workspace is mounted over; absolute, without symbolic links.
  std::string session;
  /// Bytes of memory that files under construction may take.
  uint64_t memory = 0;
  /// The folder of a file without a name for what does not fit, encrypted. Empty: there is none, and a tmpfs does.
  std::string spill;
  /// The folder of a file without a name for a throw-away LUKS2 volume instead. Root only.
  std::string volume;
  /// Bytes that this file, or that one, may take.
  uint64_t disk = 0;
  /// Instead of a tmpfs: an existing folder.
  std::string folder;
  /// More than one line, or none: the caller alone becomes root, or nothing is mapped at all when that is root.
  std::vector<IdRange> uid_map;
  std::vector<IdRange> gid_map;
  int status_fd = -1;
  int watch_fd = -1;
  /// What runs inside: an absolute path and its arguments. It inherits all other descriptors.
  std::vector<std::string> program;
};

/// Throws UsageError.
WorkspaceOptions ParseWorkspaceOptions(std::vector<std::string> arguments);

/// The exit status: the program's, or 255.
int WorkspaceCommand(const WorkspaceOptions& options, const SignalQueue& signals);

}  // namespace sifcrypt::starter
