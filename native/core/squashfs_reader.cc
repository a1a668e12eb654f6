#include "core/squashfs_reader.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>
#include <utility>

#include "core/shared_cache.h"
#include "core/squashfs_decompress.h"

namespace sifcrypt {
namespace {

// Numbers of the squashfs 4.0 format.
constexpr uint32_t kMagic = 0x73717368;
constexpr size_t kSuperblockSize = 96;
constexpr size_t kMetadataSize = 8192;
constexpr uint16_t kMetadataUncompressed = 0x8000;
constexpr uint32_t kDataUncompressed = uint32_t{1} << 24;
constexpr uint32_t kDataSizeMask = kDataUncompressed - 1;
constexpr uint32_t kMinBlockSize = 4096;
constexpr uint32_t kMaxBlockSize = uint32_t{1} << 20;
constexpr uint64_t kNoTable = UINT64_MAX;
constexpr uint32_t kNoFragment = UINT32_MAX;
constexpr size_t kTableEntrySize = 16;  // of the fragment table and of the xattr table
constexpr uint64_t kTableEntriesPerBlock = kMetadataSize / kTableEntrySize;
constexpr size_t kDirectoryHeaderSize = 12;
constexpr size_t kDirectoryEntrySize = 8;  // without its name
constexpr uint32_t kMaxEntriesPerHeader = 256;
constexpr size_t kMinInodeSize = 20;
constexpr uint16_t kXattrPrefixMask = 0xff;
constexpr uint16_t kXattrElsewhere = 0x100;
// A header and one byte: nothing in a table is smaller on disk.
constexpr uint64_t kMinStoredMetadata = 3;

// Our own limits.
constexpr size_t kMaxTargetLength = 4096;
constexpr int kMaxLinks = 40;
// Of listings that one path leads through: a million entries without an index, three dozen times.
constexpr uint64_t kMaxResolvedBytes = uint64_t{1} << 30;
// Pointers to metadata blocks of one table: enough for 67 million fragments.
constexpr uint64_t kMaxTableBlocks = uint64_t{1} << 17;
// What Linux lets a file have: 64 KiB of names, 64 KiB in each value.
constexpr size_t kMaxXattrNames = size_t{64} << 10;
constexpr size_t kMaxXattrName = 255;
constexpr size_t kMaxXattrValue = size_t{64} << 10;
constexpr size_t kMaxXattrBytes = size_t{16} << 20;
// Reads are widened to whole sectors, so that a source that decrypts does not fetch the edges apart.
constexpr uint64_t kReadUnit = 4096;
// A file's block list is remembered at this many places at most, this many blocks apart at least: more than that only where it is
// half a gigabyte long, so that reading a file from its start to its end takes no longer for each block of a long one.
constexpr uint64_t kMaxCheckpoints = 65536;
constexpr uint64_t kMinCheckpointStride = kMetadataSize / sizeof(uint32_t);
// Of a directory's index so many entries are kept, evenly spread: it only makes finding faster.
constexpr uint32_t kMaxIndexEntries = 1024;

uint16_t Le16(const uint8_t* p) { return static_cast<uint16_t>(p[0] | p[1] << 8); }
uint32_t Le32(const uint8_t* p) { return Le16(p) | static_cast<uint32_t>(Le16(p + 2)) << 16; }
uint64_t Le64(const uint8_t* p) { return Le32(p) | static_cast<uint64_t>(Le32(p + 4)) << 32; }

[[noreturn]] void Malformed(const std::string& detail) { throw FormatError("squashfs_read", detail); }
[[noreturn]] void MalformedSuperblock(const std::string& detail) { throw FormatError("squashfs_open", detail); }

// Holes are read from here; as zeroed memory it takes no room in the file.
uint8_t zeros[kMaxBlockSize];

struct MetadataBlock {
  /// Where the block after this one starts.
  uint64_t next = 0;
  size_t size = 0;
  std::array<uint8_t, kMetadataSize> bytes;
};

struct DataBlock {
  explicit DataBlock(size_t room) : size(room), bytes(new uint8_t[room]) {}
  size_t size;
  std::unique_ptr<uint8_t[]> bytes;
};

/// A data or fragment block as it is stored: where, and its size word (with the flag).
struct BlockKey {
  uint64_t start;
  uint32_t word;
  bool operator==(const BlockKey& other) const { return start == other.start && word == other.word; }
};

struct BlockKeyHash {
  size_t operator()(const BlockKey& key) const {
    return static_cast<size_t>((key.start ^ uint64_t{key.word} << 40) * 0x9e3779b97f4a7c15u >> 8);
  }
};

/// Metadata blocks that belong together: absolute, `end` excluded.
struct Region {
  uint64_t start = 0;
  uint64_t end = 0;
  /// No more bytes than this can be decoded from it.
  uint64_t MaxDecoded() const { return ((end - start) / kMinStoredMetadata + 1) * kMetadataSize; }
};

bool ValidName(std::string_view name) {
  return name != "." && name != ".." && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos;
}

void RequireFile(const Inode& inode) {
  if (inode.type == InodeType::kDirectory) throw SystemError(EISDIR, "squashfs_read");
  if (inode.type != InodeType::kFile) throw SystemError(EINVAL, "squashfs_read");
}

dev_t DecodeDevice(uint32_t value) { return makedev(value >> 8 & 0xfff, (value & 0xff) | (value >> 12 & 0xfff00)); }

}  // namespace

mode_t FileTypeBits(InodeType type) {
  switch (type) {
    case InodeType::kDirectory:
      return S_IFDIR;
    case InodeType::kFile:
      return S_IFREG;
    case InodeType::kSymlink:
      return S_IFLNK;
    case InodeType::kBlockDevice:
      return S_IFBLK;
    case InodeType::kCharacterDevice:
      return S_IFCHR;
    case InodeType::kFifo:
      return S_IFIFO;
    case InodeType::kSocket:
      return S_IFSOCK;
  }
  return 0;
}

/// Places in a file's block list that were reached before, so that a later read starts there and not at the
/// list's start.
struct Inode::Positions {
  struct Checkpoint {
    uint64_t metadata_block;
    uint32_t metadata_offset;
    uint64_t data_start;
  };
  std::mutex mutex;
  uint64_t stride = kMinCheckpointStride;
  /// The nth is at block n * stride.
  std::vector<Checkpoint> checkpoints;
};

Inode::Inode() = default;
Inode::~Inode() = default;

struct SquashfsReader::Implementation {
  Implementation(std::shared_ptr<const ByteSource> byte_source, const Limits& limits);

  class Cursor;
  class BlockList;
  class Listing;

  std::vector<uint64_t> ReadTable(uint64_t start, uint64_t count, size_t entry_size, const char* what) const;
  void ReadTableEntry(const std::vector<uint64_t>& table, uint64_t index, uint8_t* out) const;
  SharedCache<uint64_t, MetadataBlock>::Loaded LoadMetadata(uint64_t start) const;
  SharedCache<BlockKey, DataBlock, BlockKeyHash>::Loaded LoadBlock(const BlockKey& key, size_t room) const;
  SharedCache<InodeRef, Inode>::Loaded LoadInode(InodeRef ref) const;
  std::shared_ptr<const MetadataBlock> Metadata(uint64_t start, uint64_t end) const;
  std::shared_ptr<const DataBlock> Block(const BlockKey& key, size_t room) const;
  /// Where a fragment block is stored.
  BlockKey FragmentKey(uint32_t fragment) const;
  /// The fragment block that holds a file's tail of `size` bytes.
  std::shared_ptr<const DataBlock> Fragment(const Inode& file, size_t size) const;
  InodePtr GetInode(InodeRef ref) const;
  /// Looks at no more than `left` bytes of the listing, and takes them off.
  std::optional<InodeRef> Lookup(const Inode& directory, std::string_view name, uint64_t& left) const;
  void ReadIndex(Inode& inode, Cursor& cursor, uint32_t count) const;
  void PrepareBlockList(Inode& inode, const Cursor& cursor) const;
  size_t BlockLength(const Inode& file, uint64_t block) const {
    return static_cast<size_t>(std::min<uint64_t>(info.block_size, file.size - block * info.block_size));
  }

  std::shared_ptr<const ByteSource> source;
  Info info;
  InodeRef root = 0;
  uint32_t block_log = 0;
  std::unique_ptr<SquashfsDecompressor> decompressor;
  Region inodes;
  Region directories;
  Region xattrs;
  std::vector<uint32_t> ids;
  std::vector<uint64_t> fragment_table;
  std::vector<uint64_t> xattr_table;
  uint32_t xattr_count = 0;
  mutable SharedCache<uint64_t, MetadataBlock> metadata_cache;
  mutable SharedCache<BlockKey, DataBlock, BlockKeyHash> block_cache;
  mutable SharedCache<InodeRef, Inode> inode_cache;
};

/// Reads a stream of metadata blocks. Stays inside its region.
class SquashfsReader::Implementation::Cursor {
 public:
  Cursor(const Implementation& reader, const Region& region, uint64_t block, uint32_t offset)
      : reader_(reader), end_(region.end), block_(block), offset_(offset) {
    if (block < region.start || block >= region.end) Malformed("a reference leaves its metadata table");
    current_ = reader_.Metadata(block_, end_);
    if (offset_ > current_->size) Malformed("a reference leaves its metadata block");
  }

  uint64_t block() const { return block_; }
  uint32_t offset() const { return offset_; }

  /// What is left of the current block; never empty.
  std::pair<const uint8_t*, size_t> Rest() {
    if (offset_ == current_->size) {
      const uint64_t next = current_->next;
      current_ = reader_.Metadata(next, end_);
      block_ = next;
      offset_ = 0;
    }
    return {current_->bytes.data() + offset_, current_->size - offset_};
  }
  /// At most what Rest() gave.
  void Advance(size_t size) { offset_ += static_cast<uint32_t>(size); }

  void Read(void* out, size_t size) {
    auto* to = static_cast<uint8_t*>(out);
    while (size > 0) {
      const auto [data, rest] = Rest();
      const size_t n = std::min(size, rest);
      memcpy(to, data, n);
      Advance(n);
      to += n;
      size -= n;
    }
  }
  /// The next `size` bytes where they are, or copied to `spill` when they cross a block. Valid until the next
  /// call.
  const uint8_t* View(size_t size, uint8_t* spill) {
    const auto [data, rest] = Rest();
    if (rest >= size) {
      Advance(size);
      return data;
    }
    Read(spill, size);
    return spill;
  }
  template <size_t kSize>
  std::array<uint8_t, kSize> Take() {
    std::array<uint8_t, kSize> bytes;
    Read(bytes.data(), kSize);
    return bytes;
  }
  std::string TakeString(size_t size) {
    std::string text(size, '\0');
    Read(text.data(), size);
    return text;
  }
  void Skip(uint64_t size) {
    while (size > 0) {
      const size_t n = static_cast<size_t>(std::min<uint64_t>(size, Rest().second));
      Advance(n);
      size -= n;
    }
  }

 private:
  const Implementation& reader_;
  uint64_t end_;
  uint64_t block_;
  uint32_t offset_;
  std::shared_ptr<const MetadataBlock> current_;
};

/// Steps through a file's data blocks (the fragment is not one of them).
class SquashfsReader::Implementation::BlockList {
 public:
  /// At block `first`, which exists.
  BlockList(const Implementation& reader, const Inode& file, uint64_t first)
      : reader_(reader),
        file_(file),
        start_(Nearest(file, first)),
        cursor_(reader, reader.inodes, start_.metadata_block, start_.metadata_offset),
        data_start_(start_.data_start) {
    while (next_ < first) {
      // Skipping whole runs: only the sum of their sizes matters.
      const uint64_t stride = file.positions->stride;
      const uint64_t goal = std::min(first, (next_ / stride + 1) * stride);
      while (next_ < goal) SkipRun(goal - next_);
      if (next_ % stride == 0) Remember();
    }
  }

  /// The next block; a word of 0 is a hole.
  BlockKey Next() {
    const uint32_t word = Le32(cursor_.Take<sizeof(uint32_t)>().data());
    const BlockKey key{data_start_, word};
    Add(word);
    ++next_;
    return key;
  }

 private:
  Inode::Positions::Checkpoint Nearest(const Inode& file, uint64_t first) {
    Inode::Positions& positions = *file.positions;
    const std::lock_guard<std::mutex> lock(positions.mutex);
    const uint64_t place = std::min<uint64_t>(first / positions.stride, positions.checkpoints.size() - 1);
    next_ = place * positions.stride;
    return positions.checkpoints[place];
  }
  void Remember() {
    Inode::Positions& positions = *file_.positions;
    const std::lock_guard<std::mutex> lock(positions.mutex);
    if (next_ == positions.checkpoints.size() * positions.stride)
      positions.checkpoints.push_back({cursor_.block(), cursor_.offset(), data_start_});
  }
  void SkipRun(uint64_t count) {
    const auto [data, rest] = cursor_.Rest();
    const size_t run = static_cast<size_t>(std::min<uint64_t>(count, rest / sizeof(uint32_t)));
    if (run == 0) {
      Next();  // an entry across two metadata blocks
      return;
    }
    for (size_t i = 0; i < run; ++i) Add(Le32(data + i * sizeof(uint32_t)));
    cursor_.Advance(run * sizeof(uint32_t));
    next_ += run;
  }
  void Add(uint32_t word) {
    if (word == 0) return;
    const uint32_t size = word & kDataSizeMask;
    if ((word & ~(kDataSizeMask | kDataUncompressed)) != 0 || size == 0 || size > reader_.info.block_size)
      Malformed("a data block has an impossible size");
    if (!RangeFits(data_start_, size, reader_.info.bytes_used)) Malformed("a data block lies outside the image");
    data_start_ += size;
  }

  const Implementation& reader_;
  const Inode& file_;
  uint64_t next_ = 0;
  Inode::Positions::Checkpoint start_;
  Cursor cursor_;
  uint64_t data_start_;
};

/// Steps through a directory's entries from a place in its listing.
class SquashfsReader::Implementation::Listing {
 public:
  /// `position` is where a header starts.
  Listing(const Implementation& reader, const Inode& directory, uint64_t position)
      : position_(position),
        size_(directory.size),
        inode_count_(reader.info.inode_count),
        cursor_(Place(reader, directory, position)) {}

  uint64_t position() const { return position_; }
  /// Has the current header more entries?
  bool InHeader() const { return left_ > 0; }

  /// False at the end. The name is valid until the next call, and not yet checked.
  bool Next(DirectoryEntry* entry) {
    if (left_ == 0) {
      if (position_ >= size_) return false;
      header_ = position_;
      Claim(kDirectoryHeaderSize);
      const uint8_t* header = cursor_.View(kDirectoryHeaderSize, spill_.data());
      const uint32_t count = Le32(header);
      if (count >= kMaxEntriesPerHeader) Malformed("a directory header has too many entries");
      left_ = count + 1;
      taken_ = 0;
      inode_block_ = Le32(header + 4);
      inode_number_ = Le32(header + 8);
    }
    Claim(kDirectoryEntrySize);
    const uint8_t* fixed = cursor_.View(kDirectoryEntrySize, spill_.data());
    const uint16_t type = Le16(fixed + 4);
    const size_t length = size_t{Le16(fixed + 6)} + 1;
    entry->ref = uint64_t{inode_block_} << 16 | Le16(fixed);
    // From the header's, forward or back.
    entry->inode_number = inode_number_ + static_cast<uint32_t>(static_cast<int16_t>(Le16(fixed + 2)));
    // The kernel, which does not look at that, takes whatever it has under this number for the inode; unsquashfs refuses an inode's own.
    if (entry->inode_number == 0 || entry->inode_number > inode_count_)
      Malformed("a directory entry has an impossible inode number");
    if (type < 1 || type > 7) Malformed("a directory entry has an unknown type");
    if (length > kMaxNameLength) Malformed("a directory entry has a name that is too long");
    Claim(length);
    entry->name = std::string_view(reinterpret_cast<const char*>(cursor_.View(length, spill_.data())), length);
    // Listings are sorted, and lookups rely on it: of two entries with one name each reader would take another.
    if (entry->name <= before_) Malformed("the entries of a directory are not sorted, or two have one name");
    before_ = entry->name;
    entry->type = static_cast<InodeType>(type);
    --left_;
    ++taken_;
    // Where the current header starts, and how many of its entries were taken: together they name the next entry.
    entry->next_cookie = left_ > 0 ? header_ << 8 | taken_ : position_ << 8;
    return true;
  }

 private:
  static Cursor Place(const Implementation& reader, const Inode& directory, uint64_t position) {
    // From the last place of the directory index before it: all blocks of a listing but the last decode to 8
    // KiB.
    const auto after =
        std::upper_bound(directory.index.begin(), directory.index.end(), position,
                         [](uint64_t at, const Inode::IndexEntry& entry) { return at < entry.position; });
    uint64_t from = 0, block = directory.stream_block, offset = directory.stream_offset;
    if (after != directory.index.begin() && std::prev(after)->position <= position) {
      from = std::prev(after)->position;
      block = reader.directories.start + std::prev(after)->block;
      offset = (offset + from) % kMetadataSize;
    }
    Cursor cursor(reader, reader.directories, block, static_cast<uint32_t>(offset));
    cursor.Skip(position - from);
    return cursor;
  }
  void Claim(size_t size) {
    if (size > size_ - position_) Malformed("a directory's listing ends inside an entry");
    position_ += size;
  }

  uint64_t position_;
  uint64_t size_;
  uint32_t inode_count_;
  Cursor cursor_;
  uint64_t header_ = 0;
  uint32_t left_ = 0;
  uint32_t taken_ = 0;
  uint32_t inode_block_ = 0;
  uint32_t inode_number_ = 0;
  std::string before_;
  std::array<uint8_t, kMaxNameLength> spill_;
};

SquashfsReader::Implementation::Implementation(std::shared_ptr<const ByteSource> byte_source, const Limits& limits)
    : source(std::move(byte_source)),
      metadata_cache(limits.metadata_cache),
      block_cache(limits.block_cache),
      inode_cache(limits.inode_cache) {
  std::array<uint8_t, kSuperblockSize> raw;
  if (source->Size() < raw.size()) MalformedSuperblock("too short for a squashfs");
  source->ReadAt(0, raw.data(), raw.size());
  const uint8_t* p = raw.data();
  if (Le32(p) != kMagic) MalformedSuperblock("not a squashfs");
  info.inode_count = Le32(p + 4);
  info.mtime = Le32(p + 8);
  info.block_size = Le32(p + 12);
  info.fragment_count = Le32(p + 16);
  info.compression = Le16(p + 20);
  block_log = Le16(p + 22);
  const uint16_t id_count = Le16(p + 26);
  const uint16_t major = Le16(p + 28);
  const uint16_t minor = Le16(p + 30);
  root = Le64(p + 32);
  info.bytes_used = Le64(p + 40);
  const uint64_t id_start = Le64(p + 48);
  const uint64_t xattr_start = Le64(p + 56);
  inodes.start = Le64(p + 64);
  directories.start = Le64(p + 72);
  const uint64_t fragment_start = Le64(p + 80);
  const uint64_t export_start = Le64(p + 88);

  if (major != 4 || minor != 0)
    MalformedSuperblock("squashfs " + std::to_string(major) + "." + std::to_string(minor) + ", only 4.0 is known");
  if (info.block_size < kMinBlockSize || info.block_size > kMaxBlockSize || block_log > 20 ||
      info.block_size != uint32_t{1} << block_log)
    MalformedSuperblock("an impossible block size");
  if (info.bytes_used < kSuperblockSize || info.bytes_used > source->Size())
    MalformedSuperblock("the image is longer than the place it is in");
  if (info.inode_count == 0 || id_count == 0) MalformedSuperblock("an empty table");
  decompressor = std::make_unique<SquashfsDecompressor>(info.compression);

  if (inodes.start < kSuperblockSize || inodes.start >= directories.start || directories.start >= info.bytes_used)
    MalformedSuperblock("a metadata table lies outside the image");
  inodes.end = directories.start;
  if (info.inode_count > inodes.MaxDecoded() / kMinInodeSize)
    MalformedSuperblock("more inodes than the table can hold");

  const std::vector<uint64_t> id_table = ReadTable(id_start, id_count, sizeof(uint32_t), "id");
  if (info.fragment_count > 0)
    fragment_table = ReadTable(fragment_start, info.fragment_count, kTableEntrySize, "fragment");
  info.has_xattrs = xattr_start != kNoTable;
  if (info.has_xattrs) {
    std::array<uint8_t, kTableEntrySize> header;
    if (!RangeFits(xattr_start, header.size(), info.bytes_used))
      MalformedSuperblock("the xattr table lies outside the image");
    source->ReadAt(xattr_start, header.data(), header.size());
    xattrs = {Le64(header.data()), xattr_start};
    xattr_count = Le32(header.data() + 8);
    if (xattr_count > 0) {
      if (xattrs.start < kSuperblockSize || xattrs.start >= xattrs.end)
        MalformedSuperblock("the xattr table lies outside the image");
      xattr_table = ReadTable(xattr_start + header.size(), xattr_count, kTableEntrySize, "xattr");
    }
  }

  // Directory metadata ends where the first of what follows begins.
  directories.end = info.bytes_used;
  const auto ends_before = [this](uint64_t start) {
    if (start > directories.start) directories.end = std::min(directories.end, start);
  };
  for (const uint64_t start : {id_start, xattr_start, fragment_start, export_start}) ends_before(start);
  ends_before(id_table.front());
  if (!fragment_table.empty()) ends_before(fragment_table.front());
  if (!xattr_table.empty()) ends_before(xattr_table.front());
  info.directory_bytes = directories.MaxDecoded();

  ids.reserve(id_count);
  for (const uint64_t start : id_table) {
    const auto block = LoadMetadata(start).value;
    const size_t wanted = std::min<size_t>((id_count - ids.size()) * sizeof(uint32_t), kMetadataSize);
    if (block->size < wanted) Malformed("the id table is too short");
    for (size_t at = 0; at < wanted; at += sizeof(uint32_t)) ids.push_back(Le32(block->bytes.data() + at));
  }
  if (GetInode(root)->type != InodeType::kDirectory) MalformedSuperblock("the root is not a directory");
}

// The pointers to the metadata blocks of a table of `count` entries.
std::vector<uint64_t> SquashfsReader::Implementation::ReadTable(uint64_t start, uint64_t count, size_t entry_size,
                                                                const char* what) const {
  const uint64_t blocks = (count * entry_size + kMetadataSize - 1) / kMetadataSize;
  if (start < kSuperblockSize || blocks > kMaxTableBlocks ||
      !RangeFits(start, blocks * sizeof(uint64_t), info.bytes_used))
    MalformedSuperblock(std::string("the ") + what + " table lies outside the image");
  std::vector<uint8_t> raw(blocks * sizeof(uint64_t));
  source->ReadAt(start, raw.data(), raw.size());
  std::vector<uint64_t> table(blocks);
  for (size_t i = 0; i < table.size(); ++i) {
    table[i] = Le64(raw.data() + i * sizeof(uint64_t));
    if (table[i] < kSuperblockSize || table[i] >= start)
      MalformedSuperblock(std::string("the ") + what + " table points outside its place");
  }
  return table;
}

void SquashfsReader::Implementation::ReadTableEntry(const std::vector<uint64_t>& table, uint64_t index,
                                                    uint8_t* out) const {
  const auto block = Metadata(table.at(index / kTableEntriesPerBlock), info.bytes_used);
  const size_t at = index % kTableEntriesPerBlock * kTableEntrySize;
  if (block->size < at + kTableEntrySize) Malformed("a table is too short");
  memcpy(out, block->bytes.data() + at, kTableEntrySize);
}

SharedCache<uint64_t, MetadataBlock>::Loaded SquashfsReader::Implementation::LoadMetadata(uint64_t start) const {
  if (!RangeFits(start, kMinStoredMetadata, info.bytes_used)) Malformed("a metadata block lies outside the image");
  const uint64_t limit = source->Size();
  const auto widen = [limit](uint64_t end) {
    return end > limit - limit % kReadUnit ? limit : (end + kReadUnit - 1) / kReadUnit * kReadUnit;
  };
  // Most blocks are compressed to less than half, so the first read gets them whole.
  std::array<uint8_t, kMetadataSize + 2 * kReadUnit> raw;
  const uint64_t base = start / kReadUnit * kReadUnit;
  const size_t header = start - base;
  size_t have = static_cast<size_t>(std::min<uint64_t>(2 * kReadUnit, limit - base));
  source->ReadAt(base, raw.data(), have);
  const uint16_t word = Le16(raw.data() + header);
  const size_t size = word & (kMetadataUncompressed - 1);
  if (size == 0 || size > kMetadataSize || !RangeFits(start + 2, size, info.bytes_used))
    Malformed("a metadata block has an impossible size");
  const size_t need = header + 2 + size;
  if (need > have) {
    const size_t more = static_cast<size_t>(widen(base + need) - base) - have;
    source->ReadAt(base + have, raw.data() + have, more);
  }
  auto block = std::make_shared<MetadataBlock>();
  block->next = start + 2 + size;
  if ((word & kMetadataUncompressed) != 0) {
    memcpy(block->bytes.data(), raw.data() + header + 2, size);
    block->size = size;
  } else {
    block->size = decompressor->Decode(raw.data() + header + 2, size, block->bytes.data(), block->bytes.size());
    if (block->size == 0) Malformed("a metadata block is empty");
  }
  return {block, sizeof(MetadataBlock)};
}

std::shared_ptr<const MetadataBlock> SquashfsReader::Implementation::Metadata(uint64_t start, uint64_t end) const {
  if (start >= end) Malformed("a metadata table ends too early");
  auto block = metadata_cache.Get(start, [&] { return LoadMetadata(start); });
  if (block->next > end) Malformed("a metadata block crosses the end of its table");
  return block;
}

SharedCache<BlockKey, DataBlock, BlockKeyHash>::Loaded SquashfsReader::Implementation::LoadBlock(const BlockKey& key,
                                                                                                 size_t room) const {
  const uint32_t size = key.word & kDataSizeMask;
  if (!RangeFits(key.start, size, info.bytes_used)) Malformed("a data block lies outside the image");
  if ((key.word & kDataUncompressed) != 0) {
    if (size > room) Malformed("a data block is longer than what it stands for");
    auto block = std::make_shared<DataBlock>(size);
    source->ReadAt(key.start, block->bytes.get(), size);
    return {block, size + sizeof(DataBlock)};
  }
  const uint64_t base = key.start / kReadUnit * kReadUnit;
  const uint64_t end = std::min(source->Size(), (key.start + size + kReadUnit - 1) / kReadUnit * kReadUnit);
  const std::unique_ptr<uint8_t[]> raw(new uint8_t[end - base]);
  source->ReadAt(base, raw.get(), end - base);
  auto block = std::make_shared<DataBlock>(room);
  block->size = decompressor->Decode(raw.get() + (key.start - base), size, block->bytes.get(), room);
  if (block->size < room - room / 4) {
    auto smaller = std::make_shared<DataBlock>(block->size);
    memcpy(smaller->bytes.get(), block->bytes.get(), block->size);
    block = std::move(smaller);
    room = block->size;
  }
  return {block, room + sizeof(DataBlock)};
}

std::shared_ptr<const DataBlock> SquashfsReader::Implementation::Block(const BlockKey& key, size_t room) const {
  return block_cache.Get(key, [&] { return LoadBlock(key, room); });
}

BlockKey SquashfsReader::Implementation::FragmentKey(uint32_t fragment) const {
  std::array<uint8_t, kTableEntrySize> entry;
  ReadTableEntry(fragment_table, fragment, entry.data());
  const BlockKey key{Le64(entry.data()), Le32(entry.data() + 8)};
  const uint32_t stored = key.word & kDataSizeMask;
  if ((key.word & ~(kDataSizeMask | kDataUncompressed)) != 0 || stored == 0 || stored > info.block_size)
    Malformed("a fragment block has an impossible size");
  return key;
}

std::shared_ptr<const DataBlock> SquashfsReader::Implementation::Fragment(const Inode& file, size_t size) const {
  auto block = Block(FragmentKey(file.fragment), info.block_size);
  if (!RangeFits(file.fragment_offset, size, block->size)) Malformed("a file's tail lies outside its fragment block");
  return block;
}

InodePtr SquashfsReader::Implementation::GetInode(InodeRef ref) const {
  return inode_cache.Get(ref, [&] { return LoadInode(ref); });
}

SharedCache<InodeRef, Inode>::Loaded SquashfsReader::Implementation::LoadInode(InodeRef ref) const {
  if (ref >> 48 != 0) Malformed("an impossible inode reference");
  Cursor cursor(*this, inodes, inodes.start + (ref >> 16), static_cast<uint32_t>(ref & 0xffff));
  auto inode = std::make_shared<Inode>();
  inode->ref = ref;
  const auto head = cursor.Take<16>();
  const uint16_t type = Le16(head.data());
  if (type < 1 || type > 14) Malformed("an inode of unknown type");
  const bool extended = type > 7;
  inode->type = static_cast<InodeType>(extended ? type - 7 : type);
  inode->mode = Le16(head.data() + 2) & 07777;
  const uint16_t uid = Le16(head.data() + 4);
  const uint16_t gid = Le16(head.data() + 6);
  if (uid >= ids.size() || gid >= ids.size()) Malformed("an inode's owner is not in the id table");
  inode->uid = ids[uid];
  inode->gid = ids[gid];
  inode->mtime = Le32(head.data() + 8);
  inode->inode_number = Le32(head.data() + 12);
  if (inode->inode_number == 0 || inode->inode_number > info.inode_count) Malformed("an impossible inode number");

  switch (inode->type) {
    case InodeType::kDirectory: {
      uint32_t start = 0, listing = 0, index_count = 0;
      if (extended) {
        const auto raw = cursor.Take<24>();
        inode->nlink = Le32(raw.data());
        listing = Le32(raw.data() + 4);
        start = Le32(raw.data() + 8);
        inode->parent_number = Le32(raw.data() + 12);
        index_count = Le16(raw.data() + 16);
        inode->stream_offset = Le16(raw.data() + 18);
        inode->xattr_index = Le32(raw.data() + 20);
      } else {
        const auto raw = cursor.Take<16>();
        start = Le32(raw.data());
        inode->nlink = Le32(raw.data() + 4);
        listing = Le16(raw.data() + 8);
        inode->stream_offset = Le16(raw.data() + 10);
        inode->parent_number = Le32(raw.data() + 12);
      }
      // The format counts "." and ".." as three bytes that are not stored.
      inode->size = listing < 3 ? 0 : listing - 3;
      inode->stream_block = directories.start + start;
      if (inode->size > info.directory_bytes) Malformed("a directory is longer than the directory table");
      ReadIndex(*inode, cursor, index_count);
      break;
    }
    case InodeType::kFile:
      if (extended) {
        const auto raw = cursor.Take<40>();
        inode->blocks_start = Le64(raw.data());
        inode->size = Le64(raw.data() + 8);
        inode->nlink = Le32(raw.data() + 24);
        inode->fragment = Le32(raw.data() + 28);
        inode->fragment_offset = Le32(raw.data() + 32);
        inode->xattr_index = Le32(raw.data() + 36);
      } else {
        const auto raw = cursor.Take<16>();
        inode->blocks_start = Le32(raw.data());
        inode->fragment = Le32(raw.data() + 4);
        inode->fragment_offset = Le32(raw.data() + 8);
        inode->size = Le32(raw.data() + 12);
      }
      PrepareBlockList(*inode, cursor);
      break;
    case InodeType::kSymlink: {
      const auto raw = cursor.Take<8>();
      inode->nlink = Le32(raw.data());
      inode->size = Le32(raw.data() + 4);
      if (inode->size == 0 || inode->size > kMaxTargetLength)
        Malformed("a symbolic link's target has an impossible length");
      inode->target = cursor.TakeString(inode->size);
      if (inode->target.find('\0') != std::string::npos) Malformed("a symbolic link's target has a NUL");
      if (extended) inode->xattr_index = Le32(cursor.Take<4>().data());
      break;
    }
    case InodeType::kBlockDevice:
    case InodeType::kCharacterDevice: {
      const auto raw = cursor.Take<8>();
      inode->nlink = Le32(raw.data());
      inode->rdev = DecodeDevice(Le32(raw.data() + 4));
      if (extended) inode->xattr_index = Le32(cursor.Take<4>().data());
      break;
    }
    case InodeType::kFifo:
    case InodeType::kSocket:
      inode->nlink = Le32(cursor.Take<4>().data());
      if (extended) inode->xattr_index = Le32(cursor.Take<4>().data());
      break;
  }
  size_t cost = sizeof(Inode) + inode->target.capacity() + inode->index.capacity() * sizeof(Inode::IndexEntry);
  for (const Inode::IndexEntry& entry : inode->index) cost += entry.name.capacity();
  if (inode->positions) {
    cost += sizeof(Inode::Positions) +
            (inode->block_count / inode->positions->stride + 1) * sizeof(Inode::Positions::Checkpoint);
  }
  return {inode, cost};
}

void SquashfsReader::Implementation::ReadIndex(Inode& inode, Cursor& cursor, uint32_t count) const {
  const uint32_t stride = count / kMaxIndexEntries + 1;
  uint32_t previous = 0;
  for (uint32_t i = 0; i < count; ++i) {
    const auto raw = cursor.Take<12>();
    const uint32_t position = Le32(raw.data());
    const uint64_t length = uint64_t{Le32(raw.data() + 8)} + 1;
    if (length > kMaxNameLength) Malformed("a directory index has a name that is too long");
    if (position >= inode.size || position < previous) Malformed("a directory index is out of order");
    previous = position;
    if (i % stride == 0)
      inode.index.push_back({position, Le32(raw.data() + 4), cursor.TakeString(static_cast<size_t>(length))});
    else
      cursor.Skip(length);
  }
}

void SquashfsReader::Implementation::PrepareBlockList(Inode& inode, const Cursor& cursor) const {
  if (inode.size > static_cast<uint64_t>(INT64_MAX)) Malformed("a file is impossibly long");
  const uint64_t tail = inode.size % info.block_size;
  inode.block_count = inode.size >> block_log;
  if (inode.fragment == kNoFragment) {
    if (tail > 0) ++inode.block_count;
  } else {
    if (inode.fragment >= info.fragment_count) Malformed("a file's fragment is not in the fragment table");
    if (!RangeFits(inode.fragment_offset, tail, info.block_size))
      Malformed("a file's tail lies outside its fragment block");
    if (tail == 0) inode.fragment = kNoFragment;
  }
  inode.stream_block = cursor.block();
  inode.stream_offset = cursor.offset();
  if (inode.block_count == 0) return;
  if (inode.block_count > inodes.MaxDecoded() / sizeof(uint32_t))
    Malformed("a file's block list is longer than the inode table");
  inode.positions = std::make_unique<Inode::Positions>();
  inode.positions->stride = std::max(kMinCheckpointStride, inode.block_count / kMaxCheckpoints + 1);
  inode.positions->checkpoints.push_back({inode.stream_block, inode.stream_offset, inode.blocks_start});
}

SquashfsReader::SquashfsReader(std::shared_ptr<const ByteSource> source, Limits limits)
    : impl_(std::make_unique<Implementation>(std::move(source), limits)) {}
SquashfsReader::~SquashfsReader() = default;

const SquashfsReader::Info& SquashfsReader::info() const { return impl_->info; }
InodeRef SquashfsReader::Root() const { return impl_->root; }
InodePtr SquashfsReader::GetInode(InodeRef ref) const { return impl_->GetInode(ref); }
InodePtr SquashfsReader::ReadInode(InodeRef ref) const { return impl_->LoadInode(ref).value; }

std::optional<InodeRef> SquashfsReader::Lookup(const Inode& directory, std::string_view name) const {
  uint64_t left = UINT64_MAX;
  return impl_->Lookup(directory, name, left);
}

std::optional<InodeRef> SquashfsReader::Implementation::Lookup(const Inode& directory, std::string_view name,
                                                               uint64_t& left) const {
  if (directory.type != InodeType::kDirectory) throw SystemError(ENOTDIR, "squashfs_lookup");
  if (directory.size == 0 || name.empty() || name.size() > kMaxNameLength || !ValidName(name)) return std::nullopt;
  const auto after =
      std::upper_bound(directory.index.begin(), directory.index.end(), name,
                       [](std::string_view wanted, const Inode::IndexEntry& entry) { return wanted < entry.name; });
  const uint64_t start = after == directory.index.begin() ? 0 : std::prev(after)->position;
  const uint64_t end = after == directory.index.end() ? directory.size : after->position;
  Listing listing(*this, directory, start);
  DirectoryEntry entry;
  while (listing.position() < end || listing.InHeader()) {
    const uint64_t before = listing.position();
    if (!listing.Next(&entry)) break;
    const uint64_t taken = listing.position() - before;
    if (taken > left) Malformed("a path leads through listings that are too long");
    left -= taken;
    if (entry.name == name) return entry.ref;
    // Entries are sorted; the kernel, too, relies on it for the first byte only.
    if (static_cast<uint8_t>(entry.name[0]) > static_cast<uint8_t>(name[0])) break;
  }
  return std::nullopt;
}

void SquashfsReader::ReadDir(const Inode& directory, uint64_t cookie, const DirectoryVisitor& visit) const {
  if (directory.type != InodeType::kDirectory) throw SystemError(ENOTDIR, "squashfs_readdir");
  // A cookie is where a header starts in the listing, and how many of its entries are behind.
  const uint64_t start = cookie >> 8;
  if (start > directory.size) throw SystemError(EINVAL, "squashfs_readdir", "no such place in the directory");
  if (start == directory.size) return;
  Implementation::Listing listing(*impl_, directory, start);
  DirectoryEntry entry;
  for (uint64_t behind = cookie & 0xff; behind > 0; --behind) {
    if (!listing.Next(&entry) || !listing.InHeader())
      throw SystemError(EINVAL, "squashfs_readdir", "no such place in the directory");
  }
  while (listing.Next(&entry)) {
    if (!ValidName(entry.name)) Malformed("a directory entry has a name that no file can have");
    if (!visit(entry)) return;
  }
}

std::vector<PinnedBytes> SquashfsReader::ReadPinned(const Inode& file, uint64_t offset, size_t size) const {
  RequireFile(file);
  std::vector<PinnedBytes> pieces;
  if (offset >= file.size) return pieces;
  uint64_t left = std::min<uint64_t>(size, file.size - offset);
  uint64_t block = offset >> impl_->block_log;
  size_t skip = static_cast<size_t>(offset & (impl_->info.block_size - 1));
  if (left > 0 && block < file.block_count) {
    Implementation::BlockList list(*impl_, file, block);
    for (; left > 0 && block < file.block_count; ++block, skip = 0) {
      const size_t length = impl_->BlockLength(file, block);
      const size_t n = static_cast<size_t>(std::min<uint64_t>(left, length - skip));
      const BlockKey key = list.Next();
      if (key.word == 0) {
        pieces.push_back({nullptr, zeros, n});
      } else {
        auto decoded = impl_->Block(key, length);
        if (decoded->size != length) Malformed("a data block decodes to the wrong length");
        const uint8_t* data = decoded->bytes.get() + skip;
        pieces.push_back({std::move(decoded), data, n});
      }
      left -= n;
    }
  }
  if (left > 0) {
    auto fragment = impl_->Fragment(file, impl_->BlockLength(file, file.block_count));
    const uint8_t* data = fragment->bytes.get() + file.fragment_offset + skip;
    pieces.push_back({std::move(fragment), data, static_cast<size_t>(left)});
  }
  return pieces;
}

size_t SquashfsReader::Read(const Inode& file, uint64_t offset, void* out, size_t size) const {
  RequireFile(file);
  auto* to = static_cast<uint8_t*>(out);
  // A few blocks at a time, so that a large read does not hold all of them.
  const size_t most = size_t{4} << 20;
  size_t done = 0;
  while (done < size) {
    const auto pieces = ReadPinned(file, offset + done, std::min(size - done, most));
    if (pieces.empty()) break;
    for (const PinnedBytes& piece : pieces) {
      memcpy(to + done, piece.data, piece.size);
      done += piece.size;
    }
  }
  return done;
}

void SquashfsReader::ReadThrough(const Inode& file, uint64_t offset, void* out, size_t size) const {
  RequireFile(file);
  if (!RangeFits(offset, size, file.size)) throw SystemError(EOVERFLOW, "squashfs_read");
  auto* to = static_cast<uint8_t*>(out);
  uint64_t block = offset >> impl_->block_log;
  size_t skip = static_cast<size_t>(offset & (impl_->info.block_size - 1));
  if (size > 0 && block < file.block_count) {
    Implementation::BlockList list(*impl_, file, block);
    // Stored blocks that follow each other, not yet read.
    uint64_t run_start = 0;
    size_t run = 0;
    const auto read_run = [&] {
      if (run > 0) impl_->source->ReadAt(run_start, to - run, run);
      run = 0;
    };
    for (; size > 0 && block < file.block_count; ++block, skip = 0) {
      const size_t length = impl_->BlockLength(file, block);
      const size_t n = std::min(size, length - skip);
      const BlockKey key = list.Next();
      if (key.word == (kDataUncompressed | length)) {
        if (run > 0 && run_start + run != key.start + skip) read_run();
        if (run == 0) run_start = key.start + skip;
        run += n;
      } else {
        read_run();
        if (Read(file, (block << impl_->block_log) + skip, to, n) != n) Malformed("a file ends early");
      }
      to += n, size -= n;
    }
    read_run();
  }
  if (size > 0 && Read(file, (block << impl_->block_log) + skip, to, size) != size) Malformed("a file ends early");
}

void SquashfsReader::Prefetch(const Inode& file, uint64_t offset) const {
  if (file.type != InodeType::kFile || offset >= file.size) return;
  ReadPinned(file, offset, 1);
}

std::optional<uint32_t> SquashfsReader::FragmentOf(const Inode& file) const {
  if (file.type != InodeType::kFile || file.fragment == kNoFragment) return std::nullopt;
  return file.fragment;
}

void SquashfsReader::PrefetchFragment(uint32_t fragment) const {
  if (fragment < impl_->info.fragment_count) impl_->Block(impl_->FragmentKey(fragment), impl_->info.block_size);
}

uint64_t SquashfsReader::ExtentEnd(const Inode& file, uint64_t offset, uint64_t limit, bool* hole) const {
  if (file.type != InodeType::kFile || offset >= file.size) throw SystemError(EINVAL, "squashfs_seek");
  const uint64_t end = offset + std::min(limit, file.size - offset);
  uint64_t block = offset >> impl_->block_log;
  *hole = false;
  if (block >= file.block_count) return end;
  Implementation::BlockList list(*impl_, file, block);
  *hole = list.Next().word == 0;
  for (++block; block << impl_->block_log < end; ++block) {
    const bool next_hole = block < file.block_count && list.Next().word == 0;
    if (next_hole != *hole) return block << impl_->block_log;
  }
  return end;
}

std::optional<uint64_t> SquashfsReader::StoredAt(const Inode& file) const {
  RequireFile(file);
  if (file.size == 0 || impl_->BlockLength(file, 0) != file.size) return std::nullopt;
  if (file.block_count == 0) {
    const BlockKey key = impl_->FragmentKey(file.fragment);
    if ((key.word & kDataUncompressed) == 0) return std::nullopt;
    if (!RangeFits(file.fragment_offset, file.size, key.word & kDataSizeMask) ||
        !RangeFits(key.start, key.word & kDataSizeMask, impl_->info.bytes_used))
      Malformed("a file's tail lies outside its fragment block");
    return key.start + file.fragment_offset;
  }
  const BlockKey key = Implementation::BlockList(*impl_, file, 0).Next();
  if (key.word != (kDataUncompressed | file.size)) return std::nullopt;
  return key.start;
}

std::vector<Xattr> SquashfsReader::Xattrs(const Inode& inode) const {
  std::vector<Xattr> found;
  if (!inode.has_xattrs()) return found;
  if (inode.xattr_index >= impl_->xattr_count) Malformed("an inode's xattrs are not in the xattr table");
  std::array<uint8_t, kTableEntrySize> entry;
  impl_->ReadTableEntry(impl_->xattr_table, inode.xattr_index, entry.data());
  const auto place = [this](uint64_t ref) {
    if (ref >> 48 != 0) Malformed("an impossible xattr reference");
    return Implementation::Cursor(*impl_, impl_->xattrs, impl_->xattrs.start + (ref >> 16),
                                  static_cast<uint32_t>(ref & 0xffff));
  };
  const auto take_value = [](Implementation::Cursor& cursor) {
    const uint32_t size = Le32(cursor.Take<4>().data());
    if (size > kMaxXattrValue) Malformed("an xattr's value is too long");
    return cursor.TakeString(size);
  };
  Implementation::Cursor cursor = place(Le64(entry.data()));
  size_t name_bytes = 0, value_bytes = 0;
  for (uint32_t left = Le32(entry.data() + 8); left > 0; --left) {
    const auto head = cursor.Take<4>();
    const uint16_t type = Le16(head.data());
    const size_t length = Le16(head.data() + 2);
    const char* const prefixes[] = {"user.", "trusted.", "security."};
    const size_t prefix = type & kXattrPrefixMask;
    Xattr xattr;
    if (prefix < std::size(prefixes)) xattr.name = prefixes[prefix];
    if (length == 0 || xattr.name.size() + length > kMaxXattrName)
      Malformed("an xattr's name has an impossible length");
    xattr.name += cursor.TakeString(length);
    if (xattr.name.find('\0') != std::string::npos) Malformed("an xattr's name has a NUL");
    xattr.value = take_value(cursor);
    if ((type & kXattrElsewhere) != 0) {
      if (xattr.value.size() != sizeof(uint64_t)) Malformed("an xattr's value is referred to in an impossible way");
      Implementation::Cursor other = place(Le64(reinterpret_cast<const uint8_t*>(xattr.value.data())));
      xattr.value = take_value(other);
    }
    name_bytes += xattr.name.size() + 1;
    value_bytes += xattr.value.size();
    if (name_bytes > kMaxXattrNames || value_bytes > kMaxXattrBytes) Malformed("an inode has too many xattrs");
    // Prefixes of later versions are skipped, as the kernel does.
    if (prefix < std::size(prefixes)) found.push_back(std::move(xattr));
  }
  return found;
}

InodeRef SquashfsReader::Resolve(std::string_view path, bool follow) const {
  // Parts still to walk, the next one last; and the directories from the root to here.
  std::vector<std::string> parts;
  const auto push = [&parts](std::string_view text) {
    size_t end = text.size();
    while (end > 0) {
      const size_t slash = text.rfind('/', end - 1);
      const size_t start = slash == std::string_view::npos ? 0 : slash + 1;
      if (start < end) parts.emplace_back(text.substr(start, end - start));
      end = start == 0 ? 0 : start - 1;
    }
  };
  push(path);
  std::vector<InodeRef> walked{Root()};
  InodePtr current = GetInode(Root());
  int links = 0;
  uint64_t left = kMaxResolvedBytes;
  while (!parts.empty()) {
    if (current->type != InodeType::kDirectory) throw SystemError(ENOTDIR, "squashfs_lookup");
    const std::string part = std::move(parts.back());
    parts.pop_back();
    if (part == ".") continue;
    if (part == "..") {
      if (walked.size() > 1) walked.pop_back();
      current = GetInode(walked.back());
      continue;
    }
    const std::optional<InodeRef> ref = impl_->Lookup(*current, part, left);
    if (!ref) throw SystemError(ENOENT, "squashfs_lookup");
    InodePtr next = GetInode(*ref);
    if (next->type == InodeType::kSymlink && (follow || !parts.empty())) {
      if (++links > kMaxLinks) throw SystemError(ELOOP, "squashfs_lookup");
      if (next->target.front() == '/') {
        walked.resize(1);
        current = GetInode(Root());
      }
      push(next->target);
      continue;
    }
    walked.push_back(*ref);
    current = std::move(next);
  }
  return current->ref;
}

}  // namespace sifcrypt
