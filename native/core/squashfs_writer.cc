#include "core/squashfs_writer.h"

#include <openssl/evp.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <deque>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/squashfs_tables.h"
#include "core/system_error.h"

namespace sifcrypt {
namespace {

using namespace squashfs;

// Ours.
constexpr size_t kCopyPiece = 1024 * 1024;
// Entries that wait for the blocks of a file before them.
constexpr size_t kMaximumPending = 4096;
// Files and tails remembered to find duplicates; in a tree with more, later ones are stored again.
constexpr size_t kRememberedContents = 512 * 1024;
// A file's list of blocks is kept in memory: 128 MiB, which is 4 TiB of blocks of 128 KiB.
constexpr uint64_t kMaximumBlocks = uint64_t{1} << 25;

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
    if (file.Size() > kMaximumBlocks * codec_.block_size)
      Fail(EFBIG, entry, "the file has too many blocks for this block size");
    QueueContent(std::move(node), file);
  }
  uint64_t StoreContent(const TreeFile& file) override {
    if (file.Size() > kMaximumBlocks * codec_.block_size)
      throw SystemError(EFBIG, "squashfs_write", "a file has too many blocks for this block size");
    Node node;
    node.event = Node::Event::kContent;
    node.type = kFile;
    QueueContent(std::move(node), file);
    return content_count_++;
  }
  void AddStoredFile(const TreeEntry& entry, uint64_t content) override {
    while (stored_.size() < content_count_ && pipeline_.DeliverOldest()) continue;
    TakeFinished();
    Node node = Describe(entry);
    if (node.event != Node::Event::kLink) {
      if (content >= stored_.size()) throw SystemError(EINVAL, "squashfs_write", "content that was not stored");
      const StoredContent& stored = stored_[content];
      node.size = stored.size;
      node.start = stored.start;
      node.sparse = stored.sparse;
      node.fragment = stored.tail.fragment;
      node.fragment_offset = stored.tail.offset;
      node.expected_blocks = stored.blocks.size();
      node.blocks = stored.blocks;
    }
    Queue(std::move(node));
  }

 private:
  struct Extent {
    uint64_t start;
    std::vector<uint32_t> blocks;
  };
  struct TailPlace {
    uint32_t fragment, offset;
  };
  /// What waits for its entry: one for each content, so it is kept small.
  struct StoredContent {
    uint64_t size, start, sparse;
    TailPlace tail;
    std::vector<uint32_t> blocks;
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
    node.uid = tables_.ids().IndexOf(options_.owner ? options_.owner->uid : entry.uid);
    node.gid = tables_.ids().IndexOf(options_.owner ? options_.owner->gid : entry.gid);
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

  void QueueContent(Node&& node, const TreeFile& file) {
    const uint64_t size = file.Size();
    node.size = size;
    // A file that fills no block shares a fragment; the tail of a larger one is a block of its own, so that reading it
    // does not decode others' data.
    const bool small = size < codec_.block_size;
    if (!small)
      node.expected_blocks = (size - 1) / codec_.block_size + 1;
    else if (size > 0)
      AddTail(node, file);
    Queue(std::move(node));
    if (!small) SubmitBlocks(file, size);
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
      Node& node = pending_.front();
      if (node.event == Node::Event::kContent) {
        node.blocks.shrink_to_fit();
        stored_.push_back(
            {node.size, node.start, node.sparse, {node.fragment, node.fragment_offset}, std::move(node.blocks)});
      } else {
        tables_.Take(std::move(node));
      }
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
    const Superblock fields{tables_.inode_count(),
                            static_cast<uint32_t>(time),
                            fragment_count_,
                            flags,
                            static_cast<uint16_t>(tables_.ids().all().size()),
                            tables_.root()};
    const Packed superblock = EncodeSuperblock(codec_, fields, places);
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
  uint64_t content_count_ = 0;
  std::deque<StoredContent> stored_;
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
