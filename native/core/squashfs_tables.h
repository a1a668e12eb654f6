// What a squashfs 4.0 has besides its data, under construction: inodes, listings, the other tables and the superblock.
// Whoever uses this has put the data in place.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/byte_range.h"
#include "core/squashfs_compress.h"
#include "core/system_error.h"
#include "core/tree_source.h"

namespace sifcrypt::squashfs {

// The format (all numbers little endian).
constexpr uint32_t kMagic = 0x73717368;
constexpr uint16_t kMajor = 4;
constexpr size_t kSuperblockSize = 96;
constexpr size_t kMetadataBlock = 8192;
constexpr uint16_t kMetadataRaw = 0x8000;
constexpr uint32_t kDataRaw = 1U << 24;
constexpr uint64_t kNoTable = UINT64_MAX;
constexpr uint32_t kNone = UINT32_MAX;
constexpr size_t kMaximumName = 256;
constexpr size_t kMaximumTarget = 65535;
constexpr size_t kMaximumIds = 65535;
constexpr size_t kEntriesPerHeader = 256;
// A listing's size counts three bytes for "." and "..", which are not stored.
constexpr uint64_t kListingExtra = 3;
enum Flags : uint16_t {
  kNoFragments = 0x10,
  kDuplicatesFound = 0x40,
  kExportable = 0x80,
  kNoXattrs = 0x200,
  kHasOptions = 0x400,
};
// Basic types; the extended ones are kExtended higher.
enum Type : uint16_t { kDirectory = 1, kFile, kSymlink, kBlockDevice, kCharacterDevice, kFifo, kSocket };
constexpr uint16_t kExtended = 7;

/// An image is padded to a multiple of this, and written in pieces that end at one.
constexpr uint64_t kPadding = 4096;

/// Bytes under construction.
class Packed {
 public:
  Packed& U16(uint64_t value) { return Put(value, 2); }
  Packed& U32(uint64_t value) { return Put(value, 4); }
  Packed& U64(uint64_t value) { return Put(value, 8); }
  Packed& Raw(std::string_view bytes) {
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    return *this;
  }
  const uint8_t* data() const { return bytes_.data(); }
  size_t size() const { return bytes_.size(); }
  void clear() { bytes_.clear(); }

 private:
  Packed& Put(uint64_t value, int count) {
    for (int i = 0; i < count; ++i) bytes_.push_back(static_cast<uint8_t>(value >> (8 * i)));
    return *this;
  }
  std::vector<uint8_t> bytes_;
};

/// Collects small writes into large ones that end on sector boundaries.
class Output {
 public:
  /// Starts at `base` of the sink.
  explicit Output(ByteSink& sink, uint64_t base = 0) : sink_(sink), base_(base) {}
  uint64_t position() const { return base_ + buffer_.size(); }
  void Append(const uint8_t* data, size_t size);
  /// Forgets what was appended from `position` on.
  void Rewind(uint64_t position);
  /// Writes the rest; what the sink has behind it goes.
  void Finish();

 private:
  void Write(size_t size);
  ByteSink& sink_;
  uint64_t base_;
  std::vector<uint8_t> buffer_;
};

/// A stream of metadata blocks, kept encoded in memory until its place in the image is known.
class Metadata {
 public:
  explicit Metadata(SquashfsCompressor& compressor) : compressor_(compressor) { pending_.reserve(kMetadataBlock); }

  void Append(const uint8_t* data, size_t size);
  void Append(const Packed& packed) { Append(packed.data(), packed.size()); }
  /// Where the block being filled starts among the encoded ones, and how far it is filled (below the block size).
  uint64_t block() const { return blocks_.size(); }
  uint32_t offset() const { return static_cast<uint32_t>(pending_.size()); }
  uint64_t reference() const { return block() << 16 | offset(); }
  /// The blocks' places, from the first one's.
  const std::vector<uint64_t>& starts() const { return starts_; }
  const std::vector<uint8_t>& Finish() {
    if (!pending_.empty()) EndBlock();
    return blocks_;
  }

 private:
  void EndBlock();

  SquashfsCompressor& compressor_;
  std::vector<uint8_t> pending_;
  std::vector<uint8_t> encoded_ = std::vector<uint8_t>(kMetadataBlock);
  std::vector<uint8_t> blocks_;
  std::vector<uint64_t> starts_;
};

struct HashDigest {
  size_t operator()(const SquashfsDigest& digest) const {
    size_t hash;
    memcpy(&hash, digest.data(), sizeof(hash));
    return hash;
  }
};
template <typename Value>
using ByDigest = std::unordered_map<SquashfsDigest, Value, HashDigest>;

/// The numbers that inodes give users and groups by.
class Ids {
 public:
  uint16_t IndexOf(uint32_t id);
  const std::vector<uint32_t>& all() const { return ids_; }

 private:
  std::unordered_map<uint32_t, uint16_t> indexes_;
  std::vector<uint32_t> ids_;
};

/// Sets of extended attributes; equal sets are stored once.
class Xattrs {
 public:
  explicit Xattrs(SquashfsCompressor& compressor) : values_(compressor) {}

  /// kNone: nothing to store.
  uint32_t IndexOf(const std::vector<TreeXattr>& xattrs);
  uint32_t count() const { return count_; }
  uint64_t Write(Output& output, SquashfsCompressor& compressor);

 private:
  Metadata values_;
  Packed sets_;
  uint32_t count_ = 0;
  ByDigest<uint32_t> indexes_;
};

/// What an inode is found by.
struct InodePlace {
  uint64_t reference = 0;
  uint32_t number = 0;
  uint16_t type = 0;
};

/// One entry on its way from the walk to the tables.
struct Node {
  /// kContent: of an inode that comes later.
  enum class Event { kEnter, kLeave, kInode, kLink, kContent };
  Event event = Event::kInode;
  uint16_t type = 0;
  std::string name;
  uint16_t mode = 0;
  uint16_t uid = 0;
  uint16_t gid = 0;
  uint32_t mtime = 0;
  uint32_t xattrs = kNone;
  uint32_t links = 1;
  /// Of an inode with several names: filled by the first, read by the others.
  InodePlace* shared = nullptr;
  std::string target;
  uint32_t device = 0;
  /// Files.
  uint64_t size = 0;
  uint64_t start = 0;
  uint64_t sparse = 0;
  uint64_t expected_blocks = 0;
  uint32_t fragment = kNone;
  uint32_t fragment_offset = 0;
  std::vector<uint32_t> blocks;
};

/// A directory whose entries are being collected.
struct OpenDirectory {
  struct Child {
    uint64_t reference;
    uint32_t number;
    uint32_t name_offset;
    uint16_t name_size;
    uint16_t type;
  };
  Node node;
  uint32_t number = 0;
  uint32_t subdirectories = 0;
  std::vector<Child> children;
  std::string names;

  std::string_view NameOf(const Child& child) const {
    return std::string_view(names).substr(child.name_offset, child.name_size);
  }
  void Add(std::string_view name, const InodePlace& place);
};

/// Takes nodes in the walk's order with all their blocks stored, and makes inodes and listings.
class Tables {
 public:
  explicit Tables(const SquashfsCodec& codec)
      : compressor_(codec), inodes_(compressor_), listings_(compressor_), xattrs_(compressor_) {}

  Ids& ids() { return ids_; }
  Xattrs& xattrs() { return xattrs_; }
  uint32_t inode_count() const { return static_cast<uint32_t>(references_.size()); }
  uint64_t root() const { return references_.at(0); }

  void Take(Node&& node);
  struct Places {
    uint64_t inodes, listings, fragments, exports, ids, xattrs, end;
  };
  /// The order is the one that the kernel checks; each table begins where the one before ends.
  Places Write(Output& output, const Packed& fragments);

 private:
  struct IndexEntry {
    uint32_t position, block;
    std::string_view name;
  };

  static uint64_t AppendAll(Output& output, Metadata& metadata);
  uint64_t WriteEntries(Output& output, const Packed& entries);
  uint32_t NewNumber();
  /// Starts an inode in packed_ and notes its place.
  Packed& Begin(const Node& node, uint32_t number, bool extended);
  uint64_t End(uint32_t number);
  uint64_t WriteInode(const Node& node, uint32_t number);
  void CloseDirectory();
  /// Returns the listing's size. Each metadata block it reaches into gets a header near its start, and but for the first
  /// an entry in the index, so that a name is found without reading the blocks before.
  uint64_t WriteListing(const OpenDirectory& directory, std::vector<IndexEntry>& index);

  SquashfsCompressor compressor_;
  Metadata inodes_;
  Metadata listings_;
  Xattrs xattrs_;
  Ids ids_;
  std::vector<OpenDirectory> open_;
  /// By inode number, from 1.
  std::vector<uint64_t> references_;
  Packed packed_;
};

struct Superblock {
  uint32_t inode_count = 0;
  /// Seconds since 1970.
  uint32_t time = 0;
  uint32_t fragment_count = 0;
  uint16_t flags = 0;
  uint16_t id_count = 0;
  uint64_t root = 0;
};
Packed EncodeSuperblock(const SquashfsCodec& codec, const Superblock& superblock, const Tables::Places& places);

}  // namespace sifcrypt::squashfs
