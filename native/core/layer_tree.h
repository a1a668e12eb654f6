// The tree that the layers of an OCI or Docker image make when they are applied one over the other. Names are in memory,
// data stays in the layers: they are read twice, the first time to see what there is, the second time for the data.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/layer_stream.h"
#include "core/tar_reader.h"
#include "core/tree_source.h"

namespace sifcrypt {

struct Layer {
  std::shared_ptr<const ByteSource> blob;
  /// For messages.
  std::string name;
  /// Of the blob as it is; empty: nobody says.
  ExpectedDigest digest;
  /// Of its uncompressed content.
  ExpectedDigest diff_id;
};

struct LayerLimits {
  /// Of all layers uncompressed, and of all files in them with their holes.
  uint64_t bytes = uint64_t{64} << 30;
  /// Of the tree: what its names, links and attributes take.
  uint64_t memory = uint64_t{2} << 30;
};

class LayerTree final : public TreeSource {
 public:
  /// Base first. Verifies every blob, then reads it. SystemError with "layer_digest", "layer_format", "layer_limit",
  /// "layer_unsupported"; what `progress` throws passes through.
  LayerTree(std::vector<Layer> layers, const LayerLimits& limits, ReadProgress progress);
  /// Hands the data over first, newest layer first: what a newer layer replaced is passed by. Once.
  void Walk(TreeVisitor& visitor) override;

  /// Extended attributes that cannot be stored in a squashfs.
  uint64_t skipped_xattrs() const { return skipped_xattrs_; }
  /// Bytes that the tree takes, by its own account.
  uint64_t memory() const { return memory_; }

 private:
  using Index = uint32_t;
  struct Child {
    Index inode;
    /// The newest layer that named it or something in it, from 1.
    uint32_t touched;
  };
  using Children = std::map<std::string, Child, std::less<>>;
  /// What few inodes have.
  struct Extra {
    std::string target;
    std::vector<TreeXattr> xattrs;
    std::vector<SparseSegment> segments;
  };
  struct Inode {
    uint32_t mode = 0;
    uint32_t uid = 0;
    uint32_t gid = 0;
    uint32_t links = 1;
    int64_t mtime = 0;
    dev_t rdev = 0;
    uint64_t size = 0;
    /// Where its data lies in the layer.
    uint64_t data_offset = 0;
    /// From 0.
    uint32_t layer = 0;
    bool is_sparse = false;
    uint64_t content = UINT64_MAX;
    std::unique_ptr<Children> children;
    std::unique_ptr<Extra> extra;
  };
  /// A folder on the way down from the root; the root's own place has no name.
  struct Step {
    Index inode;
    Child* place;
  };
  using Steps = std::vector<Step>;

  void Apply(uint32_t layer);
  void ApplyEntry(TarEntry& entry);
  void ApplyWhiteout(Steps& folder, std::string_view name);
  void ApplyHardLink(const TarEntry& entry, Steps& folder, const std::string& name);
  /// Down to a folder, symlinks followed inside the root. False: it is not there (only without `create`).
  bool Descend(std::vector<std::string> parts, bool create, int64_t mtime, const std::string& path, Steps& steps);
  Index NewInode();
  Child& AddChild(Index folder, const std::string& name, Index inode);
  void Link(Steps& folder, const std::string& name, Index inode);
  void Touch(const Steps& steps);
  /// Drops one name of an inode, with all below it.
  void Release(Index inode);
  /// Removes what this layer did not make.
  void RemoveOlder(Children& children, Children::iterator place);
  void SetMetadata(Inode& inode, TarEntry& entry);
  void Account(uint64_t bytes);
  void Discount(uint64_t bytes) { memory_ -= bytes; }
  uint64_t Weight(const Inode& inode) const;
  [[noreturn]] void Fail(const std::string& path, const std::string& what) const;
  void StoreData(uint32_t layer, TreeVisitor& visitor);
  TreeEntry Describe(const Inode& inode, Index index, std::string_view path) const;

  std::vector<Layer> layers_;
  LayerLimits limits_;
  ReadProgress progress_;
  std::deque<Inode> inodes_;
  std::vector<Index> free_;
  /// That is being applied, from 0.
  uint32_t layer_ = 0;
  uint64_t bytes_ = 0;
  uint64_t memory_ = 0;
  uint64_t skipped_xattrs_ = 0;
};

}  // namespace sifcrypt
