// What answers a FUSE device.
#pragma once

namespace sifcrypt::starter {

class FileSystemServer {
 public:
  /// Stops serving; who still uses the file system gets ENOTCONN.
  virtual ~FileSystemServer() = default;
  /// Becomes readable when serving has ended: the file system was unmounted, or its connection aborted.
  virtual int ended_fd() const = 0;
};

}  // namespace sifcrypt::starter
