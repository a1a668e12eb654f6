// A folder on disk as a TreeSource. Nothing outside the folder is ever opened, even while others change it.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <thread>
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
  /// Bytes of all files in it, each inode once. Nothing once `stop` is true, or where something cannot be read: Walk tells of that.
  std::optional<uint64_t> ContentSize(const std::atomic<bool>& stop) const;

 private:
  UniqueFd root_;
  std::unordered_set<std::string> exclude_;
};

/// Adds up what is in a folder, on a thread of its own, while somebody walks it.
class ContentCounter {
 public:
  explicit ContentCounter(const DirectoryTree& tree);
  ~ContentCounter();
  ContentCounter(const ContentCounter&) = delete;
  ContentCounter& operator=(const ContentCounter&) = delete;

  /// Nothing: not known yet.
  std::optional<uint64_t> total() const;

 private:
  std::atomic<bool> stop_ = false;
  std::atomic<bool> known_ = false;
  std::atomic<uint64_t> total_ = 0;
  std::thread thread_;
};

}  // namespace sifcrypt
