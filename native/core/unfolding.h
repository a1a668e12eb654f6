// What keeps a small squashfs from unfolding into more than it holds, for whoever walks all of a tree. Each rule is one that a
// real tree keeps: loops, inodes that are somewhere twice, folders with one listing, two things by one name are refused.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "core/squashfs_reader.h"

namespace sifcrypt {

/// A directory of a walk, by the names that lead to it.
struct WalkedFolder {
  std::shared_ptr<const WalkedFolder> parent;
  std::string name;
  unsigned depth = 0;
};
using WalkedFolderPtr = std::shared_ptr<const WalkedFolder>;

/// Throws FormatError for what breaks a rule.
class Unfolding {
 public:
  explicit Unfolding(const SquashfsReader& reader)
      : directory_bytes_(reader.info().directory_bytes), inode_count_(reader.info().inode_count) {}

  /// Before a directory's entries are looked at.
  void Enter(const Inode& directory, unsigned depth);
  /// Each entry of the directory that was entered last.
  void Visit(std::string_view name, const Inode& inode);

 private:
  const uint64_t directory_bytes_;
  const uint32_t inode_count_;
  uint64_t listed_ = 0;
  std::unordered_set<std::string> names_;
  /// How many names of each were seen.
  std::unordered_map<InodeRef, uint32_t> visited_;
};

/// Walks a directory and all below it, one folder after the other: a folder before what is in it, in the image's order.
class TreeWalk {
 public:
  struct Entry {
    std::string name;
    InodePtr inode;
  };
  struct Folder {
    /// Below where the walk started, without a slash at either end; empty: there.
    std::string path;
    std::vector<Entry> entries;
  };

  /// ENOTDIR.
  TreeWalk(const SquashfsReader& reader, std::string_view path);
  /// nullopt: that was all. EOVERFLOW for a folder with more than `max_entries`, or more than `max_text` bytes of names and
  /// targets. The reader is that of the start; between two calls a walk holds none, so that a tree that is closed is closed.
  std::optional<Folder> Next(const SquashfsReader& reader, size_t max_entries, size_t max_text);

 private:
  struct Pending {
    WalkedFolderPtr folder;
    InodeRef ref;
  };
  Unfolding unfolding_;
  std::vector<Pending> pending_;
};

}  // namespace sifcrypt
