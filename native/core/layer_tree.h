// The tree that the layers of an OCI or Docker image make when they are applied one over the other. Names are in memory,
// data goes on while a layer is read: newest first, so that what a newer one replaces is passed by. Once is enough, but for
// data that looked replaced and was not.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "core/layer_stream.h"
#include "core/tar_reader.h"
#include "core/tree_source.h"
#include "core/work_budget.h"

namespace sifcrypt {

struct Layer {
  std::shared_ptr<const ByteSource> blob;
  /// For messages.
  std::string name;
  /// Of the blob as it is; empty: nobody says.
  ExpectedDigest digest;
  /// Of its uncompressed content.
  ExpectedDigest diff_id;
  /// If the blob is decoded out of an archive: who decodes it tells of it here, on whatever thread. Layers may share it.
  std::shared_ptr<ReadProgress> decoded;
};

struct LayerLimits {
  /// Of all layers uncompressed, and of all files in them with their holes.
  uint64_t bytes = uint64_t{64} << 30;
  /// Of the tree: what its names, links and attributes take.
  uint64_t memory = uint64_t{2} << 30;
  /// Steps of work (work_budget.h) for all layers: entries, records, parts of names that are looked up, names that are removed,
  /// bytes copied. Two million files take a fourth of it at most, in however many layers; it takes half a minute to use up.
  uint64_t work = uint64_t{1} << 29;
};

class LayerTree final : public TreeSource {
 public:
  /// Base first.
  LayerTree(std::vector<Layer> layers, const LayerLimits& limits, ReadProgress progress);
  /// Verifies every blob, then reads it, and hands its data over before all names. Once. SystemError with "layer_digest",
  /// "layer_format", "layer_limit", "layer_names", "layer_unsupported", "layer_work"; what `progress` throws passes through.
  void Walk(TreeVisitor& visitor) override;

  /// Extended attributes that cannot be stored in a squashfs.
  uint64_t skipped_xattrs() const { return skipped_xattrs_; }
  /// Bytes that the tree takes, by its own account.
  uint64_t memory() const { return memory_; }
  /// Steps of work that were taken.
  uint64_t work() const { return work_.taken(); }

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
  enum class Data : uint8_t { kUnread, kHeld, kStored };
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
    Data data = Data::kUnread;
    /// Its number at the visitor, or in held_.
    uint64_t content = 0;
    /// The newest layer that removed what older ones have in this folder, from 1: all that is in it now is that layer's, or
    /// newer.
    uint32_t emptied = 0;
    std::unique_ptr<Children> children;
    std::unique_ptr<Extra> extra;
  };
  /// A folder on the way down from the root; the root's own place has no name.
  struct Step {
    Index inode;
    Child* place;
  };
  using Steps = std::vector<Step>;
  /// An entry of a layer that waits for those below.
  struct Found {
    TarEntry entry;
    Data data = Data::kUnread;
    uint64_t content = 0;
  };
  /// Hashes of names. Two that are the same only make for a second look.
  class Names {
   public:
    void Add(std::string_view name) { added_.push_back(std::hash<std::string_view>{}(name)); }
    /// What was added is there from now on.
    void Sort();
    bool Has(std::string_view name) const;

   private:
    using Hashes = std::vector<size_t>;
    Hashes added_;
    /// Sorted, each more than twice as long as the one behind it: what many small layers add is not sorted into all of them.
    std::vector<Hashes> runs_;
  };

  /// Takes a layer's entries, and the data of those that no newer layer may have replaced.
  void Read(uint32_t layer, TreeVisitor& visitor);
  void ReadData(Found& found, LayerStream& stream, TreeVisitor& visitor);
  /// What hides something in the layers below.
  void Remember(const std::deque<Found>& layer);
  void Apply(uint32_t layer);
  void ApplyEntry(Found& found);
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
  void RemoveAllOlder(Inode& folder);
  void SetMetadata(Inode& inode, TarEntry& entry);
  /// Its parts, without those that say nothing; ".." takes one back and never leaves the root.
  std::vector<std::string> Cleaned(std::string_view path);
  /// Steps of work on the current layer.
  void Take(uint64_t steps) { work_.Take(steps, layers_[layer_].name); }
  /// Of reading, on the thread that walks.
  void Progress(uint64_t bytes);
  /// Of decoding an archive around a layer.
  void ProgressAround(uint64_t bytes);
  void Account(uint64_t bytes);
  void Discount(uint64_t bytes) { memory_ -= bytes; }
  uint64_t Weight(const Inode& inode) const;
  static uint64_t Weight(const Found& found);
  [[noreturn]] void Fail(const std::string& path, const std::string& what) const;
  /// Data that was held or passed by, and belongs to a file all the same.
  void StoreRest(TreeVisitor& visitor);
  void ReadAgain(uint32_t layer, TreeVisitor& visitor);
  void WalkNames(TreeVisitor& visitor);
  TreeEntry Describe(const Inode& inode, Index index, std::string_view path) const;

  std::vector<Layer> layers_;
  LayerLimits limits_;
  ReadProgress progress_;
  WorkBudget work_;
  std::thread::id walker_;
  /// Bytes of the archive around a layer that are not counted as work yet.
  std::atomic<uint64_t> around_ = 0;
  /// The layer that is read ahead is not wanted any more.
  std::atomic<bool> stopped_ = false;
  std::deque<Inode> inodes_;
  std::vector<Index> free_;
  /// That is being applied, from 0.
  uint32_t layer_ = 0;
  uint64_t bytes_ = 0;
  /// Uncompressed, of the layers that were read.
  uint64_t decoded_ = 0;
  uint64_t memory_ = 0;
  /// Of each layer.
  std::vector<std::deque<Found>> found_;
  /// Whole paths that newer layers have, and the last parts of those that hide something.
  Names paths_;
  Names names_;
  /// A newer layer has made the root opaque.
  bool all_hidden_ = false;
  std::vector<std::vector<uint8_t>> held_;
  uint64_t held_bytes_ = 0;
  uint64_t skipped_xattrs_ = 0;
};

}  // namespace sifcrypt
