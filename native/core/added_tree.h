// A tree with entries added to it: what an image needs besides what its source has.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/tree_source.h"

namespace sifcrypt {

struct AddedEntry {
  /// As TreeEntry's. Folders come before what is in them; each is named, or EINVAL.
  std::string path;
  /// A regular file, a folder or a symlink; root's.
  mode_t mode = 0;
  int64_t mtime = 0;
  std::vector<uint8_t> content;
  std::string target;
  /// What the tree has by this name stays. Otherwise it is replaced; a folder over a folder only adds to it in either case.
  bool keep = false;
};

class AddedTree final : public TreeSource {
 public:
  AddedTree(TreeSource& base, const std::vector<AddedEntry>& added);
  void Walk(TreeVisitor& visitor) override;

  struct Node {
    const AddedEntry* entry = nullptr;
    std::map<std::string, Node, std::less<>> children;
  };

 private:
  TreeSource& base_;
  Node root_;
};

}  // namespace sifcrypt
