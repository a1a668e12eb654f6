#include "core/squashfs_writer.h"

#include <openssl/evp.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <bit>
#include <deque>
#include <limits>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/system_error.h"

namespace sifcrypt {
namespace {

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

// Ours.
constexpr uint64_t kPadding = 4096;
constexpr size_t kWriteBuffer = 512 * 1024;
constexpr size_t kCopyPiece = 1024 * 1024;
// Entries that wait for the blocks of a file before them.
constexpr size_t kMaximumPending = 4096;
// Files and tails remembered to find duplicates; in a tree with more, later ones are stored again.
constexpr size_t kRememberedContents = 512 * 1024;
// A file's list of blocks is kept in memory: 128 MiB, which is 4 TiB of blocks of 128 KiB.
constexpr uint64_t kMaximumBlocks = uint64_t{1} << 25;

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
  explicit Output(ByteSink& sink) : sink_(sink) {}
  uint64_t position() const { return base_ + buffer_.size(); }
  void Append(const uint8_t* data, size_t size) {
    buffer_.insert(buffer_.end(), data, data + size);
    if (buffer_.size() >= kWriteBuffer) Write(position() / kPadding * kPadding - base_);
  }
  /// Forgets what was appended from `position` on.
  void Rewind(uint64_t position) {
    if (position >= base_) {
      buffer_.resize(position - base_);
    } else {
      buffer_.clear();
      base_ = position;
    }
  }
  void Finish() {
    const uint64_t end = position();
    Write(buffer_.size());
    if (sink_.Size() > end) sink_.Truncate(end);
  }

 private:
  void Write(size_t size) {
    sink_.WriteAt(base_, buffer_.data(), size);
    buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<ptrdiff_t>(size));
    base_ += size;
  }
  ByteSink& sink_;
  uint64_t base_ = 0;
  std::vector<uint8_t> buffer_;
};

/// A stream of metadata blocks, kept encoded in memory until its place in the image is known.
class Metadata {
 public:
  explicit Metadata(SquashfsCompressor& compressor) : compressor_(compressor) { pending_.reserve(kMetadataBlock); }

  void Append(const uint8_t* data, size_t size) {
    while (size > 0) {
      const size_t n = std::min(size, kMetadataBlock - pending_.size());
      pending_.insert(pending_.end(), data, data + n);
      data += n, size -= n;
      if (pending_.size() == kMetadataBlock) EndBlock();
    }
  }
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
  void EndBlock() {
    starts_.push_back(blocks_.size());
    size_t size = compressor_.Encode(pending_.data(), pending_.size(), encoded_.data());
    const uint8_t* stored = size > 0 ? encoded_.data() : pending_.data();
    uint16_t header = static_cast<uint16_t>(size);
    if (size == 0) {
      size = pending_.size();
      header = static_cast<uint16_t>(size | kMetadataRaw);
    }
    blocks_.push_back(static_cast<uint8_t>(header));
    blocks_.push_back(static_cast<uint8_t>(header >> 8));
    blocks_.insert(blocks_.end(), stored, stored + size);
    // References give a block's place 32 bits.
    if (blocks_.size() > UINT32_MAX) throw SystemError(EFBIG, "squashfs_write", "the tree has too many entries");
    pending_.clear();
  }

  SquashfsCompressor& compressor_;
  std::vector<uint8_t> pending_;
  std::vector<uint8_t> encoded_ = std::vector<uint8_t>(kMetadataBlock);
  std::vector<uint8_t> blocks_;
  std::vector<uint64_t> starts_;
};

/// Writes a table: its metadata blocks, then `head` and the list of their places. Returns where `head` starts.
uint64_t WriteTable(Output& output, Metadata& table, const Packed& head = {}) {
  const uint64_t base = output.position();
  const std::vector<uint8_t>& blocks = table.Finish();
  output.Append(blocks.data(), blocks.size());
  const uint64_t start = output.position();
  Packed places;
  for (const uint64_t place : table.starts()) places.U64(base + place);
  output.Append(head.data(), head.size());
  output.Append(places.data(), places.size());
  return start;
}

/// A running SHA-256.
class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new()) { Restart(); }
  void Restart() { Check(context_ ? EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) : 0); }
  void Add(const void* data, size_t size) { Check(EVP_DigestUpdate(context_.get(), data, size)); }
  SquashfsDigest Finish() {
    SquashfsDigest digest{};
    Check(EVP_DigestFinal_ex(context_.get(), digest.data(), nullptr));
    Restart();
    return digest;
  }

 private:
  struct Free {
    void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
  };
  static void Check(int result) {
    if (result != 1) throw SystemError(EIO, "EVP_Digest", "SHA-256 failed");
  }
  std::unique_ptr<EVP_MD_CTX, Free> context_;
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
  uint16_t IndexOf(uint32_t id) {
    const auto [found, added] = indexes_.try_emplace(id, static_cast<uint16_t>(ids_.size()));
    if (added) {
      if (ids_.size() == kMaximumIds) throw SystemError(EFBIG, "squashfs_write", "the tree has too many owners");
      ids_.push_back(id);
    }
    return found->second;
  }
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
  uint32_t IndexOf(const std::vector<TreeXattr>& xattrs) {
    Packed set;
    uint32_t count = 0;
    for (const TreeXattr& xattr : xattrs) {
      const size_t dot = xattr.name.find('.');
      const std::string_view prefix = std::string_view(xattr.name).substr(0, dot);
      const auto* type = std::find(std::begin(kPrefixes), std::end(kPrefixes), prefix);
      if (dot == std::string::npos || type == std::end(kPrefixes)) continue;
      const std::string_view name = std::string_view(xattr.name).substr(dot + 1);
      set.U16(static_cast<uint64_t>(type - std::begin(kPrefixes))).U16(name.size()).Raw(name);
      set.U32(xattr.value.size()).Raw(xattr.value);
      ++count;
    }
    if (count == 0) return kNone;
    const auto [found, added] = indexes_.try_emplace(DigestOf(set.data(), set.size()), count_);
    if (added) {
      sets_.U64(values_.reference()).U32(count).U32(set.size());
      values_.Append(set);
      ++count_;
    }
    return found->second;
  }
  uint32_t count() const { return count_; }
  uint64_t Write(Output& output, SquashfsCompressor& compressor) {
    const uint64_t start = output.position();
    const std::vector<uint8_t>& values = values_.Finish();
    output.Append(values.data(), values.size());
    Metadata sets(compressor);
    sets.Append(sets_);
    Packed head;
    head.U64(start).U32(count_).U32(0);
    return WriteTable(output, sets, head);
  }

 private:
  /// In the order of their numbers.
  static constexpr std::string_view kPrefixes[] = {"user", "trusted", "security"};
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
  enum class Event { kEnter, kLeave, kInode, kLink };
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
  void Add(std::string_view name, const InodePlace& place) {
    if (names.size() > UINT32_MAX - kMaximumName)
      throw SystemError(EFBIG, "squashfs_write", "a directory is too large");
    children.push_back({place.reference, place.number, static_cast<uint32_t>(names.size()),
                        static_cast<uint16_t>(name.size()), place.type});
    names += name;
    if (place.type == kDirectory) ++subdirectories;
  }
};

/// The second half: takes nodes in the walk's order with all their blocks stored, and makes inodes and listings.
class Tables {
 public:
  explicit Tables(const SquashfsCodec& codec)
      : compressor_(codec), inodes_(compressor_), listings_(compressor_), xattrs_(compressor_) {}

  Ids& ids() { return ids_; }
  Xattrs& xattrs() { return xattrs_; }
  uint32_t inode_count() const { return static_cast<uint32_t>(references_.size()); }
  uint64_t root() const { return references_.at(0); }

  void Take(Node&& node) {
    switch (node.event) {
      case Node::Event::kEnter:
        open_.emplace_back();
        open_.back().number = NewNumber();
        open_.back().node = std::move(node);
        return;
      case Node::Event::kLeave:
        CloseDirectory();
        return;
      case Node::Event::kLink:
        open_.back().Add(node.name, *node.shared);
        return;
      case Node::Event::kInode: {
        InodePlace place{0, NewNumber(), node.type};
        place.reference = WriteInode(node, place.number);
        if (node.shared != nullptr) *node.shared = place;
        open_.back().Add(node.name, place);
        return;
      }
    }
  }

  struct Places {
    uint64_t inodes, listings, fragments, exports, ids, xattrs, end;
  };
  /// The order is the one that the kernel checks; each table begins where the one before ends.
  Places Write(Output& output, const Packed& fragments) {
    Places places{};
    places.inodes = AppendAll(output, inodes_);
    places.listings = AppendAll(output, listings_);
    places.fragments = fragments.size() == 0 ? kNoTable : WriteEntries(output, fragments);
    Packed references;
    for (const uint64_t reference : references_) references.U64(reference);
    places.exports = WriteEntries(output, references);
    Packed ids;
    for (const uint32_t id : ids_.all()) ids.U32(id);
    places.ids = WriteEntries(output, ids);
    places.xattrs = xattrs_.count() == 0 ? kNoTable : xattrs_.Write(output, compressor_);
    places.end = output.position();
    return places;
  }

 private:
  struct IndexEntry {
    uint32_t position, block;
    std::string_view name;
  };

  static uint64_t AppendAll(Output& output, Metadata& metadata) {
    const uint64_t start = output.position();
    const std::vector<uint8_t>& blocks = metadata.Finish();
    output.Append(blocks.data(), blocks.size());
    return start;
  }
  uint64_t WriteEntries(Output& output, const Packed& entries) {
    Metadata table(compressor_);
    table.Append(entries);
    return WriteTable(output, table);
  }

  uint32_t NewNumber() {
    if (references_.size() >= UINT32_MAX - 1)
      throw SystemError(EFBIG, "squashfs_write", "the tree has too many entries");
    references_.push_back(0);
    return static_cast<uint32_t>(references_.size());
  }

  /// Starts an inode in packed_ and notes its place.
  Packed& Begin(const Node& node, uint32_t number, bool extended) {
    references_[number - 1] = inodes_.reference();
    packed_.clear();
    return packed_.U16(node.type + (extended ? kExtended : 0))
        .U16(node.mode)
        .U16(node.uid)
        .U16(node.gid)
        .U32(node.mtime)
        .U32(number);
  }
  uint64_t End(uint32_t number) {
    inodes_.Append(packed_);
    return references_[number - 1];
  }

  uint64_t WriteInode(const Node& node, uint32_t number) {
    const bool has_xattrs = node.xattrs != kNone;
    if (node.type == kFile) {
      const bool extended =
          has_xattrs || node.links > 1 || node.sparse > 0 || node.size > UINT32_MAX || node.start > UINT32_MAX;
      Packed& inode = Begin(node, number, extended);
      if (extended)
        inode.U64(node.start)
            .U64(node.size)
            .U64(node.sparse)
            .U32(node.links)
            .U32(node.fragment)
            .U32(node.fragment_offset)
            .U32(node.xattrs);
      else
        inode.U32(node.start).U32(node.fragment).U32(node.fragment_offset).U32(node.size);
      for (const uint32_t block : node.blocks) {
        inode.U32(block);
        if (inode.size() < kMetadataBlock) continue;
        inodes_.Append(inode);
        inode.clear();
      }
      return End(number);
    }
    Packed& inode = Begin(node, number, has_xattrs).U32(node.links);
    if (node.type == kSymlink) inode.U32(node.target.size()).Raw(node.target);
    if (node.type == kBlockDevice || node.type == kCharacterDevice) inode.U32(node.device);
    if (has_xattrs) inode.U32(node.xattrs);
    return End(number);
  }

  void CloseDirectory() {
    OpenDirectory directory = std::move(open_.back());
    open_.pop_back();
    const uint64_t block = listings_.block();
    const uint32_t offset = listings_.offset();
    std::vector<IndexEntry> index;
    const uint64_t size = WriteListing(directory, index) + kListingExtra;
    if (size > UINT32_MAX) throw SystemError(EFBIG, "squashfs_write", "a directory is too large");

    // The root's parent is a number that no inode has.
    const uint32_t parent = open_.empty() ? inode_count() + 1 : open_.back().number;
    const Node& node = directory.node;
    const uint64_t links = uint64_t{2} + directory.subdirectories;
    const bool extended = node.xattrs != kNone || !index.empty() || size > UINT16_MAX;
    Packed& inode = Begin(node, directory.number, extended);
    if (extended) {
      inode.U32(links).U32(size).U32(block).U32(parent).U16(index.size()).U16(offset).U32(node.xattrs);
      for (const IndexEntry& entry : index)
        inode.U32(entry.position).U32(entry.block).U32(entry.name.size() - 1).Raw(entry.name);
    } else {
      inode.U32(block).U32(links).U16(size).U16(offset).U32(parent);
    }
    const InodePlace place{End(directory.number), directory.number, kDirectory};
    if (!open_.empty()) open_.back().Add(node.name, place);
  }

  /// Returns the listing's size. Each metadata block it reaches into gets a header near its start, and but for the first
  /// an entry in the index, so that a name is found without reading the blocks before.
  uint64_t WriteListing(const OpenDirectory& directory, std::vector<IndexEntry>& index) {
    uint64_t size = 0;
    uint64_t last_block = listings_.block();
    const auto& children = directory.children;
    for (size_t first = 0; first < children.size();) {
      const OpenDirectory::Child& head = children[first];
      if (listings_.block() != last_block && index.size() < UINT16_MAX) {
        last_block = listings_.block();
        index.push_back({static_cast<uint32_t>(size), static_cast<uint32_t>(last_block), directory.NameOf(head)});
      }
      packed_.clear();
      size_t end = first;
      size_t room = kMetadataBlock - listings_.offset();
      Packed entries;
      do {
        const OpenDirectory::Child& child = children[end];
        const int64_t delta = int64_t{child.number} - int64_t{head.number};
        if (child.reference >> 16 != head.reference >> 16 || delta != static_cast<int16_t>(delta)) break;
        entries.U16(child.reference & 0xffff).U16(static_cast<uint16_t>(delta)).U16(child.type);
        entries.U16(child.name_size - 1U).Raw(directory.NameOf(child));
        ++end;
      } while (end < children.size() && end - first < kEntriesPerHeader && entries.size() + 12 < room);
      packed_.U32(end - first - 1).U32(head.reference >> 16).U32(head.number);
      listings_.Append(packed_);
      listings_.Append(entries);
      size += packed_.size() + entries.size();
      first = end;
    }
    return size;
  }

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

uint16_t TypeOf(mode_t mode) {
  switch (mode & S_IFMT) {
    case S_IFDIR:
      return kDirectory;
    case S_IFREG:
      return kFile;
    case S_IFLNK:
      return kSymlink;
    case S_IFBLK:
      return kBlockDevice;
    case S_IFCHR:
      return kCharacterDevice;
    case S_IFIFO:
      return kFifo;
    case S_IFSOCK:
      return kSocket;
    default:
      throw SystemError(EINVAL, "squashfs_write", "an entry of unknown type");
  }
}

// As the kernel packs a device number into 32 bits.
uint32_t PackDevice(dev_t device) {
  const uint32_t low = minor(device);
  return (low & 0xff) | (major(device) & 0xfff) << 8 | (low & 0xfff00) << 12;
}

/// The first half: takes the walk, reads the files' data into the pipeline and stores what comes out of it.
class Writer final : public TreeVisitor {
 public:
  Writer(ByteSink& sink, const SquashfsWriteOptions& options, const SquashfsProgress& progress)
      : options_(options),
        codec_(options.codec.Checked()),
        progress_(progress),
        sink_(sink),
        output_(sink),
        tables_(codec_),
        pipeline_(codec_, options.threads, [this](const SquashfsBlockPipeline::Block& block) { Store(block); }),
        fragment_(pipeline_.NewBuffer()) {}

  SquashfsWritten Run(TreeSource& tree) {
    const std::vector<uint8_t> options = codec_.Options();
    Packed start;
    start.Raw(std::string(kSuperblockSize, '\0'));
    if (!options.empty())
      start.U16(options.size() | kMetadataRaw).Raw({reinterpret_cast<const char*>(options.data()), options.size()});
    output_.Append(start.data(), start.size());

    tree.Walk(*this);
    SubmitFragment();
    while (pipeline_.DeliverOldest()) continue;
    TakeFinished();

    const Tables::Places places = tables_.Write(output_, fragments_);
    const std::vector<uint8_t> padding((kPadding - places.end % kPadding) % kPadding);
    output_.Append(padding.data(), padding.size());
    written_.size = output_.position();
    output_.Finish();
    WriteSuperblock(places, !options.empty());
    return written_;
  }

  void EnterDirectory(const TreeEntry& entry) override {
    Node node = Describe(entry);
    node.event = Node::Event::kEnter;
    names_.emplace_back();
    Queue(std::move(node));
  }
  void LeaveDirectory() override {
    names_.pop_back();
    Node node;
    node.event = Node::Event::kLeave;
    Queue(std::move(node));
  }
  void AddSpecial(const TreeEntry& entry) override {
    Node node = Describe(entry);
    if (node.type == kSymlink && (entry.target.empty() || entry.target.size() > kMaximumTarget))
      Fail(EINVAL, entry, "the link's target is empty or too long");
    node.target = entry.target;
    node.device = PackDevice(entry.rdev);
    Queue(std::move(node));
  }
  void AddFile(const TreeEntry& entry, const TreeFile& file) override {
    Node node = Describe(entry);
    if (node.event == Node::Event::kLink) {
      Queue(std::move(node));
      return;
    }
    node.size = file.Size();
    // A file that fills no block shares a fragment; the tail of a larger one is a block of its own, so that reading it
    // does not decode others' data.
    const bool small = node.size < codec_.block_size;
    if (!small) {
      const uint64_t blocks = (node.size - 1) / codec_.block_size + 1;
      if (blocks > kMaximumBlocks) Fail(EFBIG, entry, "the file has too many blocks for this block size");
      node.expected_blocks = blocks;
    } else if (node.size > 0) {
      AddTail(node, file);
    }
    const uint64_t size = node.size;
    Queue(std::move(node));
    if (!small) SubmitBlocks(file, size);
  }

 private:
  struct Extent {
    uint64_t start;
    std::vector<uint32_t> blocks;
  };
  struct TailPlace {
    uint32_t fragment, offset;
  };

  [[noreturn]] static void Fail(int error, const TreeEntry& entry, const char* reason) {
    throw SystemError(error, "squashfs_write", std::string(entry.path) + ": " + reason);
  }

  void Advance(uint64_t bytes) {
    written_.input_bytes += bytes;
    if (progress_ && !progress_(written_.input_bytes)) throw SystemError(ECANCELED, "squashfs_write");
  }

  Node Describe(const TreeEntry& entry) {
    ++written_.entries;
    Node node;
    node.type = TypeOf(entry.mode);
    node.name = entry.name();
    if (!names_.empty()) CheckName(entry, node.name);
    node.mode = static_cast<uint16_t>(entry.mode & 07777);
    node.uid = tables_.ids().IndexOf(options_.squash_owner ? 0 : entry.uid);
    node.gid = tables_.ids().IndexOf(options_.squash_owner ? 0 : entry.gid);
    int64_t mtime = std::clamp<int64_t>(entry.mtime, 0, UINT32_MAX);
    if (options_.source_date_epoch >= 0) mtime = std::min(mtime, options_.source_date_epoch);
    node.mtime = static_cast<uint32_t>(mtime);
    newest_ = std::max(newest_, node.mtime);
    node.links = entry.links;
    if (entry.link_id != 0) {
      const auto [place, first] = shared_.try_emplace(entry.link_id);
      node.shared = &place->second;
      if (!first) node.event = Node::Event::kLink;
    }
    if (node.event != Node::Event::kLink) node.xattrs = tables_.xattrs().IndexOf(entry.xattrs);
    return node;
  }

  // Readers search listings by bisection and trust names: a source must not get either wrong.
  void CheckName(const TreeEntry& entry, const std::string& name) {
    if (name.empty() || name == "." || name == ".." || name.size() > kMaximumName ||
        name.find('\0') != std::string::npos)
      Fail(EINVAL, entry, "not a name that can be stored");
    std::string& last = names_.back();
    if (!last.empty() && name <= last) Fail(EINVAL, entry, "the names of a directory are not in order");
    last = name;
  }

  void Queue(Node&& node) {
    pending_.push_back(std::move(node));
    TakeFinished();
    while (pending_.size() > kMaximumPending) pipeline_.DeliverOldest();
    Advance(0);
  }

  void SubmitBlocks(const TreeFile& file, uint64_t size) {
    uint64_t data = 0;
    for (uint64_t at = 0; at < size;) {
      const size_t n = static_cast<size_t>(std::min<uint64_t>(codec_.block_size, size - at));
      if (data < at + n) data = std::max(data, file.NextData(std::max(data, at)));
      if (data >= at + n) {
        pipeline_.SubmitHole(n);
      } else {
        file.ReadAt(at, pipeline_.Next().get(), n);
        pipeline_.Submit(SquashfsBlockPipeline::Kind::kFileBlock, n);
        data = at + n;
      }
      at += n;
      Advance(n);
    }
  }

  void AddTail(Node& node, const TreeFile& file) {
    const auto size = static_cast<size_t>(node.size);
    // Read where it will stay if it is new.
    if (fragment_used_ + size > codec_.block_size) SubmitFragment();
    uint8_t* tail = fragment_.get() + fragment_used_;
    file.ReadAt(0, tail, size);
    Advance(size);
    TailPlace place{fragment_count_, static_cast<uint32_t>(fragment_used_)};
    const SquashfsDigest digest = DigestOf(tail, size);
    const auto known = tails_.find(digest);
    if (known != tails_.end()) {
      place = known->second;
    } else {
      if (tails_.size() < kRememberedContents) tails_.emplace(digest, place);
      fragment_used_ += size;
    }
    node.fragment = place.fragment;
    node.fragment_offset = place.offset;
  }

  void SubmitFragment() {
    if (fragment_used_ == 0) return;
    std::swap(pipeline_.Next(), fragment_);
    pipeline_.Submit(SquashfsBlockPipeline::Kind::kFragmentBlock, fragment_used_);
    fragment_used_ = 0;
    ++fragment_count_;
  }

  /// Blocks come in the order of submission, so a file's block belongs to the first file that still lacks one.
  void Store(const SquashfsBlockPipeline::Block& block) {
    const uint64_t start = output_.position();
    const uint32_t word =
        static_cast<uint32_t>(block.stored_size) | (block.compressed || block.stored_size == 0 ? 0 : kDataRaw);
    if (block.kind == SquashfsBlockPipeline::Kind::kFragmentBlock) {
      output_.Append(block.stored, block.stored_size);
      fragments_.U64(start).U32(word).U32(0);
      return;
    }
    Node& file = pending_.front();
    if (file.blocks.empty()) {
      file.blocks.reserve(file.expected_blocks);
      file.start = start;
    }
    file.blocks.push_back(word);
    content_.Add(&word, sizeof(word));
    if (block.stored_size == 0) {
      file.sparse += block.size;
    } else {
      content_.Add(block.digest.data(), block.digest.size());
      output_.Append(block.stored, block.stored_size);
    }
    if (file.blocks.size() == file.expected_blocks) {
      ShareContent(file);
      TakeFinished();
    }
  }

  /// A file whose stored blocks are those of an earlier one gets that one's place, and its own are taken back: nothing
  /// else has been stored since.
  void ShareContent(Node& file) {
    const SquashfsDigest content = content_.Finish();
    // The kernel computes with (size - sparse - 1).
    file.sparse = std::min(file.sparse, file.size - 1);
    if (output_.position() == file.start) return;
    const auto known = contents_.find(content);
    if (known != contents_.end()) {
      output_.Rewind(file.start);
      file.start = known->second;
    } else if (contents_.size() < kRememberedContents) {
      contents_.emplace(content, file.start);
    }
  }

  void TakeFinished() {
    while (!pending_.empty() && pending_.front().blocks.size() == pending_.front().expected_blocks) {
      tables_.Take(std::move(pending_.front()));
      pending_.pop_front();
    }
  }

  void WriteSuperblock(const Tables::Places& places, bool has_options) {
    uint16_t flags = kExportable | kDuplicatesFound;
    if (fragment_count_ == 0) flags |= kNoFragments;
    if (places.xattrs == kNoTable) flags |= kNoXattrs;
    if (has_options) flags |= kHasOptions;
    const uint64_t time = options_.source_date_epoch < 0
                              ? newest_
                              : std::min<uint64_t>(static_cast<uint64_t>(options_.source_date_epoch), UINT32_MAX);
    Packed superblock;
    superblock.U32(kMagic).U32(tables_.inode_count()).U32(time).U32(codec_.block_size).U32(fragment_count_);
    superblock.U16(static_cast<uint16_t>(codec_.compression))
        .U16(static_cast<uint64_t>(std::countr_zero(codec_.block_size)));
    superblock.U16(flags).U16(tables_.ids().all().size()).U16(kMajor).U16(0);
    superblock.U64(tables_.root()).U64(places.end).U64(places.ids).U64(places.xattrs);
    superblock.U64(places.inodes).U64(places.listings).U64(places.fragments).U64(places.exports);
    sink_.WriteAt(0, superblock.data(), superblock.size());
  }

  const SquashfsWriteOptions& options_;
  const SquashfsCodec codec_;
  const SquashfsProgress& progress_;
  ByteSink& sink_;
  Output output_;
  Tables tables_;
  SquashfsBlockPipeline pipeline_;
  SquashfsWritten written_;
  uint32_t newest_ = 0;
  /// The last name of each directory that is being walked.
  std::vector<std::string> names_;
  std::unordered_map<uint64_t, InodePlace> shared_;
  std::deque<Node> pending_;
  Sha256 content_;
  ByDigest<uint64_t> contents_;
  ByDigest<TailPlace> tails_;
  SquashfsBlockPipeline::Buffer fragment_;
  size_t fragment_used_ = 0;
  uint32_t fragment_count_ = 0;
  Packed fragments_;
};

uint64_t ReadLittleEndian(const uint8_t* bytes, int count) {
  uint64_t value = 0;
  for (int i = 0; i < count; ++i) value |= static_cast<uint64_t>(bytes[i]) << (8 * i);
  return value;
}

}  // namespace

SquashfsWritten WriteSquashfs(TreeSource& tree, ByteSink& sink, const SquashfsWriteOptions& options,
                              const SquashfsProgress& progress) {
  return Writer(sink, options, progress).Run(tree);
}

SquashfsWritten CopySquashfs(const ByteSource& image, std::optional<uint64_t> length, ByteSink& sink,
                             const SquashfsProgress& progress) {
  uint8_t superblock[kSuperblockSize];
  if (image.Size() < sizeof(superblock)) throw FormatError("squashfs_copy", "the image is shorter than a superblock");
  image.ReadAt(0, superblock, sizeof(superblock));
  if (ReadLittleEndian(superblock, 4) != kMagic || ReadLittleEndian(superblock + 28, 2) != kMajor)
    throw FormatError("squashfs_copy", "not a squashfs 4.0");
  const uint64_t used = ReadLittleEndian(superblock + 40, 8);
  if (used < kSuperblockSize || used > image.Size()) throw FormatError("squashfs_copy", "the image ends early");
  const uint64_t size = length.value_or(used);
  if (size < used) throw SystemError(EINVAL, "squashfs_copy", "less than the image");
  if (size > image.Size()) throw SystemError(EOVERFLOW, "squashfs_copy", "more than the source has");

  SquashfsWritten written;
  written.entries = ReadLittleEndian(superblock + 4, 4);
  std::vector<uint8_t> piece(kCopyPiece);
  for (uint64_t at = 0; at < size;) {
    const size_t n = static_cast<size_t>(std::min<uint64_t>(piece.size(), size - at));
    image.ReadAt(at, piece.data(), n);
    sink.WriteAt(at, piece.data(), n);
    at += n;
    written.input_bytes = at;
    if (progress && !progress(at)) throw SystemError(ECANCELED, "squashfs_copy");
  }
  written.size = WritePadded(sink, size, {});
  return written;
}

uint64_t WritePadded(ByteSink& sink, uint64_t at, const std::vector<uint8_t>& bytes) {
  sink.WriteAt(at, bytes.data(), bytes.size());
  const uint64_t end = at + bytes.size();
  const std::vector<uint8_t> padding((kPadding - end % kPadding) % kPadding);
  sink.WriteAt(end, padding.data(), padding.size());
  return end + padding.size();
}

}  // namespace sifcrypt
