// Fills a folder of a scratch with a tree that another process has, where the scratch is: in pieces, which that process writes to a file
// there. Whoever made it through the kernel would take half a dozen requests for each file. Data may come before all names, as it does
// in layers, and lies where it stays from then on.
#pragma once

#include <linux/ioctl.h>

#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/scratch_tree.h"
#include "core/tree_source.h"

namespace sifcrypt {

/// What a folder of a scratch is told by ioctl(2): the inode number of a file. What is written to that from then on are pieces. Any
/// other file system says ENOTTY. The kernel lets whoever may read a folder ask, whatever he may do otherwise, and what comes of it is
/// root's. So only root of the scratch may ask, and both have to be at its top, where nothing is that who is in one of its folders could
/// name.
constexpr unsigned long kScratchFill = _IOW('s', 1, uint64_t);

/// Says whether anything in a scratch has, or has had, an extended attribute.
constexpr unsigned long kScratchXattrs = _IOR('s', 2, uint32_t);

/// What those may do for whom a scratch is.
struct ScratchRights {
  struct Range {
    uint32_t first = 0;
    uint32_t count = 0;
  };
  /// They are root of the machine: all owners, device nodes and any extended attribute.
  bool is_root = false;
  /// Otherwise the ids that their user namespace knows. There are none: everything is root's.
  std::vector<Range> users;
  std::vector<Range> groups;
};

/// Packs a tree into pieces.
class ScratchPieces final : public TreeVisitor {
 public:
  /// What one piece has at most: one request of the kernel.
  static constexpr size_t kMostBytes = size_t{1} << 20;
  /// Gets one after the other. Each is written at the start of the file, whose pages so stay the same.
  using Send = std::function<void(const uint8_t* piece, size_t size)>;
  /// Gets how many bytes of content were packed.
  using Progress = std::function<void(uint64_t bytes)>;

  /// `owner`: of everything.
  ScratchPieces(Send send, std::optional<TreeOwner> owner, Progress progress);
  void EnterDirectory(const TreeEntry& entry) override;
  void LeaveDirectory() override;
  void AddFile(const TreeEntry& entry, const TreeFile& file) override;
  uint64_t StoreContent(const TreeFile& file) override;
  void AddStoredFile(const TreeEntry& entry, uint64_t content) override;
  void AddSpecial(const TreeEntry& entry) override;
  /// Behind the walk.
  void Finish();

 private:
  class Record;
  Record Describe(uint8_t kind, const TreeEntry& entry) const;
  void Add(const Record& record);
  /// Where so many bytes of the piece go.
  uint8_t* Room(size_t size);
  void SendPiece();

  const Send send_;
  const std::optional<TreeOwner> owner_;
  const Progress progress_;
  std::vector<uint8_t> piece_;
  size_t used_;
  uint64_t contents_ = 0;
  uint64_t bytes_ = 0;
};

/// Makes of pieces what they say.
class ScratchFilling {
 public:
  /// SystemError: EPERM for what is not at the top, ENOTDIR, EISDIR, ENOTEMPTY when the folder has something in it.
  ScratchFilling(ScratchTree& tree, ScratchTree::Id folder, ScratchTree::Id file, const ScratchRights& rights);
  ~ScratchFilling();
  ScratchFilling(const ScratchFilling&) = delete;
  ScratchFilling& operator=(const ScratchFilling&) = delete;
  /// The one that pieces are written to.
  ScratchTree::Id file() const { return file_; }
  /// A piece, or a part of it that begins at `offset`. Thread-safe. True: that was the last one. SystemError: EINVAL for an owner whom
  /// nobody knows, EBADMSG for what is no piece, ENOSPC, and what a scratch says of names. What was made until then stays.
  bool Take(uint64_t offset, const void* data, size_t size);

 private:
  class Reader;
  struct Entry;
  bool TakePart(uint64_t offset, const uint8_t* bytes, size_t size);
  bool Parse(const uint8_t* piece, size_t size);
  void BeginContent();
  void AddData(Reader& reader);
  void EndContent(Reader& reader);
  void Enter(const Entry& entry);
  void Leave();
  void AddFile(const Entry& entry, uint64_t content);
  void AddSpecial(const Entry& entry);
  ScratchTree::Id NameContent(uint64_t number, const std::string& name);
  void Finish();
  Entry ReadEntry(Reader& reader) const;
  ScratchTree::Id Folder() const;
  ScratchTree::Id Make(ScratchTree::Id folder, const std::string& name, mode_t mode, const Entry& entry);
  /// Another name of a file that is there: false if there is none yet.
  bool Link(const Entry& entry);
  void SetAttributes(ScratchTree::Id id, const Entry& entry);
  bool MaySet(const std::string& name, mode_t mode) const;
  bool KeepsOwners() const { return rights_.is_root || !rights_.users.empty(); }

  ScratchTree& tree_;
  const ScratchTree::Id root_;
  const ScratchTree::Id file_;
  const ScratchRights rights_;
  std::mutex mutex_;
  /// Nothing goes on behind it.
  std::exception_ptr failure_;
  std::vector<uint8_t> parts_;
  /// What has no name of its own yet lies here, called by its number.
  ScratchTree::Id contents_ = 0;
  uint64_t content_count_ = 0;
  /// That is being written, 0: none.
  ScratchTree::Id content_ = 0;
  struct Level;
  std::vector<Level> levels_;
  bool has_root_ = false;
  std::unordered_map<uint64_t, ScratchTree::Id> links_;
};

}  // namespace sifcrypt
