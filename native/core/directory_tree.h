// A folder on disk as a TreeSource. Nothing outside the folder is ever opened, even while others change it.
#pragma once

#include <string>
#include <unordered_set>
#include <vector>

#include "core/tree_source.h"
#include "core/unique_fd.h"

namespace sifcrypt {

class DirectoryTree final : public TreeSource {
 public:
  /// `exclude`: paths inside the folder, no leading slash, left out with all below them.
  DirectoryTree(const std::string& path, const std::vector<std::string>& exclude);
  /// A file that gets shorter or an entry that is replaced during the walk is ESTALE, "changed while it was read".
  void Walk(TreeVisitor& visitor) override;

 private:
  UniqueFd root_;
  std::unordered_set<std::string> exclude_;
};

}  // namespace sifcrypt
