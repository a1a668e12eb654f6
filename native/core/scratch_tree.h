// A file system that exists as long as this object: names and attributes in memory, data in a BlockStore. It does what
// tmpfs does, for who may do it: permissions are checked by the caller (the kernel).
#pragma once

#include <sys/stat.h>
#include <sys/statvfs.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "core/block_store.h"

namespace sifcrypt {

/// Thread-safe. Everything throws SystemError with the errno that is the answer.
class ScratchTree {
 public:
  using Id = uint64_t;
  static constexpr Id kRoot = 1;
  static constexpr size_t kMaxNameLength = 255;
  /// Places in a directory below this one are those of "." and "..", which are not listed.
  static constexpr uint64_t kFirstPlace = 3;

  struct New {
    mode_t mode = 0;
    dev_t rdev = 0;
    uid_t uid = 0;
    gid_t gid = 0;
    /// Of a symbolic link.
    std::string target;
  };
  struct Change {
    std::optional<mode_t> mode;
    std::optional<uid_t> uid;
    std::optional<gid_t> gid;
    std::optional<uint64_t> size;
    std::optional<timespec> atime;
    std::optional<timespec> mtime;
  };
  /// False: not this one, and no more.
  using Visit = std::function<bool(const std::string& name, const struct stat& attributes, uint64_t place)>;

  /// The root is 0755 and belongs to 0. At most `most_nodes` files, folders and so on.
  ScratchTree(std::unique_ptr<BlockStore> store, uint64_t most_nodes);
  ~ScratchTree();
  ScratchTree(const ScratchTree&) = delete;
  ScratchTree& operator=(const ScratchTree&) = delete;

  // What gives attributes of an entry counts one use of it; a file without a name lasts until all of them are forgotten.

  /// nullopt: there is none.
  std::optional<struct stat> Lookup(Id parent, std::string_view name);
  void Forget(Id id, uint64_t uses);
  struct stat Make(Id parent, const std::string& name, const New& wanted);
  struct stat Link(Id id, Id parent, const std::string& name);

  struct stat Attributes(Id id);
  struct stat SetAttributes(Id id, const Change& change);
  std::string Target(Id id);
  void Unlink(Id parent, const std::string& name);
  void RemoveDirectory(Id parent, const std::string& name);
  /// `flags`: those of renameat2(2), but for RENAME_WHITEOUT.
  void Rename(Id parent, const std::string& name, Id new_parent, const std::string& new_name, unsigned flags);
  /// The entries behind `place`, in the order in which they were made; `counted`: a use of each that was taken. `visit`
  /// calls nothing here.
  void List(Id directory, uint64_t place, bool counted, const Visit& visit);
  Id ParentOf(Id directory);

  /// Fewer at the end of the file.
  size_t Read(Id id, uint64_t offset, void* out, size_t size);
  /// Fewer when it becomes full meanwhile.
  size_t Write(Id id, uint64_t offset, const void* data, size_t size);
  /// `mode`: as fallocate(2) has it; what only moves data is refused.
  void Allocate(Id id, int mode, uint64_t offset, uint64_t size);
  /// `whence`: SEEK_DATA or SEEK_HOLE.
  uint64_t Seek(Id id, uint64_t offset, int whence);

  std::optional<std::string> Xattr(Id id, const std::string& name);
  /// `flags`: XATTR_CREATE, XATTR_REPLACE.
  void SetXattr(Id id, const std::string& name, std::string value, int flags);
  void RemoveXattr(Id id, const std::string& name);
  /// Each with a zero behind it.
  std::string XattrNames(Id id);
  /// Was one ever set?
  bool has_xattrs() const { return has_xattrs_; }

  struct statvfs Statistics() const;

 private:
  struct Node;
  struct Directory;

  Node& Get(Id id);
  Node& GetDirectory(Id id);
  static Node* Find(Node& directory, std::string_view name);
  static void CheckName(std::string_view name);
  struct stat StatOf(Node& node) const;
  struct stat Used(Node& node) const;
  /// `place`: 0 for one behind all others.
  static void Add(Node& directory, const std::string& name, Node& node, uint64_t place = 0);
  /// Gives the place that it had.
  static uint64_t Remove(Node& directory, const std::string& name);
  void Unnamed(Node& node);
  void DropIfUnused(Node& node);

  // With the lock of the node's data.
  void ReadData(Node& node, uint64_t offset, uint8_t* out, size_t size);
  size_t WriteData(Node& node, uint64_t offset, const uint8_t* data, size_t size, bool into_holes_only);
  void Clear(Node& node, uint64_t offset, uint64_t end);
  /// How many blocks of a range are holes.
  static uint64_t HolesIn(const Node& node, uint64_t offset, uint64_t end);
  void Resize(Node& node, uint64_t size);

  const std::unique_ptr<BlockStore> store_;
  const uint64_t most_nodes_;
  /// Of names and attributes. Whoever needs a node's data as well locks that second.
  mutable std::mutex mutex_;
  std::unordered_map<Id, std::unique_ptr<Node>> nodes_;
  Id next_ = kRoot;
  std::atomic<bool> has_xattrs_ = false;
};

}  // namespace sifcrypt
