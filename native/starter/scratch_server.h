// Serves a file system that lies in memory and, encrypted, in a file: the scratch of a build.
#pragma once

#include <memory>

#include "core/scratch_tree.h"
#include "core/unique_fd.h"

namespace sifcrypt::starter {

class ScratchServer {
 public:
  /// `device` is a /dev/fuse that is mounted already. Serves on threads of its own from here on. Throws SystemError
  /// "fuse".
  ScratchServer(std::unique_ptr<ScratchTree> tree, UniqueFd device);
  ~ScratchServer();
  ScratchServer(const ScratchServer&) = delete;
  ScratchServer& operator=(const ScratchServer&) = delete;

  /// Becomes readable when serving has ended: the file system was unmounted, or its connection aborted.
  int ended_fd() const;

  struct Implementation;

 private:
  std::unique_ptr<Implementation> impl_;
};

}  // namespace sifcrypt::starter
