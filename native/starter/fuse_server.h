// Serves a squashfs as a FUSE file system.
#pragma once

#include <memory>
#include <optional>

#include "core/squashfs_reader.h"
#include "core/unique_fd.h"
#include "starter/file_system_server.h"
#include "starter/options.h"

namespace sifcrypt::starter {

class FuseServer final : public FileSystemServer {
 public:
  struct Settings {
    /// Every file's owner, instead of what the image says.
    std::optional<Owner> owner;
    /// False: the kernel is told never to ask for extended attributes again.
    bool has_xattrs = true;
  };

  /// `device` is a /dev/fuse that is mounted already. Throws SystemError "fuse".
  FuseServer(std::shared_ptr<const SquashfsReader> reader, Settings settings, UniqueFd device);
  ~FuseServer() override;
  FuseServer(const FuseServer&) = delete;
  FuseServer& operator=(const FuseServer&) = delete;

  /// Serves on threads of its own from here on.
  void Start();
  int ended_fd() const override;

  struct Implementation;

 private:
  std::unique_ptr<Implementation> impl_;
};

}  // namespace sifcrypt::starter
