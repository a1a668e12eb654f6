// Serves byte ranges as the files of one folder, to their owner.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "core/byte_range.h"
#include "core/unique_fd.h"
#include "starter/file_system_server.h"
#include "starter/options.h"

namespace sifcrypt::starter {

class FileServer final : public FileSystemServer {
 public:
  struct File {
    std::string name;
    /// Permission bits.
    mode_t mode = 0;
    std::shared_ptr<const ByteSource> bytes;
  };

  /// `device` is a /dev/fuse that is mounted already; `time`, seconds since 1970, is that of everything. Serves on threads of its own
  /// from here on. Throws SystemError "fuse".
  FileServer(std::vector<File> files, Owner owner, time_t time, UniqueFd device);
  ~FileServer() override;
  FileServer(const FileServer&) = delete;
  FileServer& operator=(const FileServer&) = delete;
  int ended_fd() const override;

  struct Implementation;

 private:
  std::unique_ptr<Implementation> impl_;
};

}  // namespace sifcrypt::starter
