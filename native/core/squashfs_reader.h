// Reads a squashfs 4.0 from any ByteSource. The image is hostile: every reference is checked against what
// exists, and memory stays within the limits below whatever the image claims.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/byte_range.h"
#include "core/system_error.h"

namespace sifcrypt {

/// Where an inode is: metadata block (from the start of the inode table) << 16 | offset in the decoded block.
/// Below 2^48.
using InodeRef = uint64_t;

enum class InodeType : uint8_t {
  kDirectory = 1,
  kFile = 2,
  kSymlink = 3,
  kBlockDevice = 4,
  kCharacterDevice = 5,
  kFifo = 6,
  kSocket = 7,
};

/// S_IFDIR and so on.
mode_t FileTypeBits(InodeType type);

/// What anybody is told of an inode.
struct InodeStat {
  InodeType type = InodeType::kFile;
  /// 0 to 07777, without the type.
  uint16_t mode = 0;
  uint32_t uid = 0;
  uint32_t gid = 0;
  /// Seconds since 1970.
  uint32_t mtime = 0;
  uint32_t inode_number = 0;
  uint32_t nlink = 1;
  /// Bytes of a file, length of a symlink's target, bytes of a directory's listing.
  uint64_t size = 0;
  dev_t rdev = 0;
  /// A symlink's target: 1 to 4096 bytes, no NUL.
  std::string target;
};

/// One inode, decoded. Immutable for its users.
struct Inode : InodeStat {
  Inode();
  ~Inode();
  Inode(const Inode&) = delete;
  Inode& operator=(const Inode&) = delete;

  InodeRef ref = 0;
  /// A directory's parent, by number.
  uint32_t parent_number = 0;
  bool has_xattrs() const { return xattr_index != UINT32_MAX; }

  // What follows is the reader's own.
  struct IndexEntry {
    /// Offset in the listing, and the metadata block (from the start of the directory table) it lies in.
    uint32_t position;
    uint32_t block;
    std::string name;
  };
  struct Positions;
  uint32_t xattr_index = UINT32_MAX;
  uint32_t fragment = UINT32_MAX;
  uint32_t fragment_offset = 0;
  /// Files: absolute place of the first data block, and how many entries the block list has.
  uint64_t blocks_start = 0;
  uint64_t block_count = 0;
  /// Where the block list (files) or the listing (directories) starts: absolute metadata block, and offset in
  /// it.
  uint64_t stream_block = 0;
  uint32_t stream_offset = 0;
  std::vector<IndexEntry> index;
  std::unique_ptr<Positions> positions;
};

using InodePtr = std::shared_ptr<const Inode>;

/// Bytes that stay valid as long as `owner` is held (null: they are static).
struct PinnedBytes {
  std::shared_ptr<const void> owner;
  const uint8_t* data = nullptr;
  size_t size = 0;
};

struct Xattr {
  /// With its prefix: "user.", "trusted." or "security.".
  std::string name;
  std::string value;
};

/// What a directory says of one of its entries.
struct DirectoryEntry {
  /// As long as the visit lasts.
  std::string_view name;
  InodeRef ref = 0;
  InodeType type = InodeType::kFile;
  uint32_t inode_number = 0;
  /// Where to go on behind it.
  uint64_t next_cookie = 0;
};

/// Thread-safe throughout. Throws SystemError: EBADMSG (FormatError) when the image breaks its format,
/// ENOTDIR, EISDIR or EINVAL when the inode is of another type, and whatever the source throws.
class SquashfsReader {
 public:
  struct Limits {
    /// Bytes of decoded data and fragment blocks kept.
    size_t block_cache = size_t{64} << 20;
    /// Bytes of decoded metadata blocks kept.
    size_t metadata_cache = size_t{8} << 20;
    /// Bytes of decoded inodes kept, roughly.
    size_t inode_cache = size_t{4} << 20;
  };
  struct Info {
    uint32_t inode_count = 0;
    uint32_t block_size = 0;
    uint32_t fragment_count = 0;
    uint32_t mtime = 0;
    uint16_t compression = 0;
    /// Is there a table of them?
    bool has_xattrs = false;
    uint64_t bytes_used = 0;
    /// All listings together are not longer than this, however well they are compressed.
    uint64_t directory_bytes = 0;
  };

  static constexpr size_t kMaxNameLength = 256;

  /// Checks the superblock and reads the small tables. ENOTSUP when the compressor is lzo or lzma.
  explicit SquashfsReader(std::shared_ptr<const ByteSource> source) : SquashfsReader(std::move(source), Limits{}) {}
  SquashfsReader(std::shared_ptr<const ByteSource> source, Limits limits);
  ~SquashfsReader();
  SquashfsReader(const SquashfsReader&) = delete;
  SquashfsReader& operator=(const SquashfsReader&) = delete;

  const Info& info() const;
  InodeRef Root() const;
  InodePtr GetInode(InodeRef ref) const;
  /// The same, and does not keep it: of many that are looked at once.
  InodePtr ReadInode(InodeRef ref) const;

  /// nullopt: no such name.
  std::optional<InodeRef> Lookup(const Inode& directory, std::string_view name) const;

  /// Gives entries in the directory's (sorted) order, without "." and "..". `cookie` is 0 to start, or a
  /// `next_cookie` that was given before: it resumes right there. Returning false stops; that entry counts as
  /// not consumed, so resume with the `next_cookie` of the one before. Any other cookie is EINVAL or EBADMSG,
  /// never harm. Cookies are below 2^63.
  using DirectoryVisitor = std::function<bool(const DirectoryEntry& entry)>;
  void ReadDir(const Inode& directory, uint64_t cookie, const DirectoryVisitor& visit) const;

  /// Bytes read: fewer than `size` only at the file's end.
  size_t Read(const Inode& file, uint64_t offset, void* out, size_t size) const;
  /// The same without a copy: pieces in order, none empty, holes as static zeros. `size` of all pieces
  /// together is what Read would return.
  std::vector<PinnedBytes> ReadPinned(const Inode& file, uint64_t offset, size_t size) const;
  /// As Read, for what lies inside the file; blocks that are stored as they are come straight from the source, several in
  /// one read, and are not cached.
  void ReadThrough(const Inode& file, uint64_t offset, void* out, size_t size) const;
  /// Decodes the block at `offset` into the cache, on this thread; nothing when it is there, a hole or past
  /// the end.
  void Prefetch(const Inode& file, uint64_t offset) const;
  /// The number of the block that a file's tail shares with others, which lie in it in the order of the tree; nullopt: it shares none.
  std::optional<uint32_t> FragmentOf(const Inode& file) const;
  /// Decodes that block into the cache, on this thread; nothing when there is none by this number.
  void PrefetchFragment(uint32_t fragment) const;
  /// The first offset >= `offset` (which is below the size) where a hole ends or starts: [offset, result) is
  /// all hole or all data. Looks at no more than `limit` bytes.
  uint64_t ExtentEnd(const Inode& file, uint64_t offset, uint64_t limit, bool* hole) const;

  /// Where in the source a file's content lies, if all of it is stored as it is and in one piece.
  std::optional<uint64_t> StoredAt(const Inode& file) const;

  /// In the image's order. Empty when it has none.
  std::vector<Xattr> Xattrs(const Inode& inode) const;

  /// Walks `path` ("/" separated, absolute or relative to the root; ".", ".." and empty parts allowed),
  /// following symbolic links inside the image, at most 40, and the last part only with `follow`. ENOENT,
  /// ENOTDIR, ELOOP.
  InodeRef Resolve(std::string_view path, bool follow) const;

 private:
  struct Implementation;
  std::unique_ptr<Implementation> impl_;
};

}  // namespace sifcrypt
