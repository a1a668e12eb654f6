// Where the entries of an image under construction come from: a folder on disk, OCI layers, or both together.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/byte_range.h"

namespace sifcrypt {

struct TreeOwner {
  uint32_t uid = 0;
  uint32_t gid = 0;
};

struct TreeXattr {
  /// With its prefix, "user.comment".
  std::string name;
  std::string value;
};

struct TreeEntry {
  /// From the root, without a leading slash; empty for the root itself.
  std::string_view path;
  /// Type and permissions, as in stat(2).
  mode_t mode = 0;
  uint32_t uid = 0;
  uint32_t gid = 0;
  /// Seconds since 1970.
  int64_t mtime = 0;
  /// Of a device node.
  dev_t rdev = 0;
  /// Of a symlink.
  std::string target;
  /// Sorted by name.
  std::vector<TreeXattr> xattrs;
  /// How many entries of this tree are the same inode, and if more than one, the number they share (not 0).
  uint32_t links = 1;
  uint64_t link_id = 0;

  std::string_view name() const { return path.substr(path.rfind('/') + 1); }
};

/// The content of a regular file, valid during the visitor's call. It is read once and front to back: it may be a stream.
class TreeFile : public ByteSource {
 public:
  /// The first byte from `offset` on that may be other than zero, Size() if there is none.
  virtual uint64_t NextData(uint64_t offset) const { return offset; }
};

/// Called depth first: the root is entered first, and a directory's entries come in ascending order of their names' bytes.
/// A source whose data comes in another order than its names hands all of it over before: StoreContent, then AddStoredFile.
class TreeVisitor {
 public:
  virtual ~TreeVisitor() = default;
  virtual void EnterDirectory(const TreeEntry& entry) = 0;
  virtual void LeaveDirectory() = 0;
  virtual void AddFile(const TreeEntry& entry, const TreeFile& file) = 0;
  /// Before EnterDirectory of the root only. Returns the number of the content, counted from 0.
  virtual uint64_t StoreContent(const TreeFile& file) = 0;
  virtual void AddStoredFile(const TreeEntry& entry, uint64_t content) = 0;
  /// Symlinks, devices, fifos and sockets.
  virtual void AddSpecial(const TreeEntry& entry) = 0;
};

class TreeSource {
 public:
  virtual ~TreeSource() = default;
  /// Errors name the path. What the visitor throws passes through.
  virtual void Walk(TreeVisitor& visitor) = 0;
};

}  // namespace sifcrypt
