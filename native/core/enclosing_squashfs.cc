#include "core/enclosing_squashfs.h"

#include <string.h>

#include <algorithm>
#include <utility>

#include "core/squashfs_tables.h"
#include "core/system_error.h"

namespace sifcrypt {
namespace {

using namespace squashfs;

constexpr char kConfigName[] = "gocryptfs.conf";
constexpr uint64_t kConfigStart = kPadding;
constexpr size_t kMaximumConfig = 64 * 1024;
constexpr size_t kMaximumFileName = 255;
constexpr uint32_t kBlockSize = 128 * 1024;
// Its list of blocks is kept in memory: 128 MiB, which is 4 TiB.
constexpr uint64_t kMaximumFile = uint64_t{kBlockSize} << 25;
constexpr uint16_t kRootMode = 0777;
constexpr uint16_t kConfigMode = 0400;
constexpr uint16_t kFileMode = 0644;

uint64_t Padded(uint64_t size) { return (size + kPadding - 1) / kPadding * kPadding; }

Node FileNode(const std::string& name, uint16_t mode, uint32_t time, uint64_t start, uint64_t size) {
  Node node;
  node.type = kFile;
  node.name = name;
  node.mode = mode;
  node.mtime = time;
  node.start = start;
  node.size = size;
  node.blocks.assign(size / kBlockSize, kBlockSize | kDataRaw);
  if (size % kBlockSize != 0) node.blocks.push_back(static_cast<uint32_t>(size % kBlockSize) | kDataRaw);
  return node;
}

Node DirectoryNode(Node::Event event, uint32_t time) {
  Node node;
  node.event = event;
  node.type = kDirectory;
  node.mode = kRootMode;
  node.mtime = time;
  return node;
}

}  // namespace

EnclosingSquashfs::EnclosingSquashfs(std::unique_ptr<ByteSink> image, Contents contents)
    : image_(std::move(image)),
      contents_(std::move(contents)),
      file_start_(kConfigStart + Padded(contents_.config.size())) {
  const std::string& file = contents_.file;
  if (file.empty() || file.size() > kMaximumFileName || file == "." || file == ".." || file == kConfigName ||
      file.find('/') != std::string::npos || file.find('\0') != std::string::npos)
    throw SystemError(EINVAL, "squashfs_write", "not a name that can be stored");
  if (contents_.config.empty() || contents_.config.size() > kMaximumConfig)
    throw SystemError(EINVAL, "squashfs_write", "the configuration is empty or too long");
}

void EnclosingSquashfs::WriteAt(uint64_t offset, const void* data, size_t size) {
  if (offset > size_) throw SystemError(EINVAL, "pwrite", "writes must not leave gaps");
  if (!RangeFits(offset, size, kMaximumFile)) throw SystemError(EFBIG, "pwrite");
  if (image_->Size() == 0) {
    std::vector<uint8_t> head(file_start_);
    std::copy(contents_.config.begin(), contents_.config.end(), head.begin() + kConfigStart);
    image_->WriteAt(0, head.data(), head.size());
  }
  image_->WriteAt(file_start_ + offset, data, size);
  size_ = std::max(size_, offset + size);
}

void EnclosingSquashfs::ReadAt(uint64_t offset, void* out, size_t size) {
  if (!RangeFits(offset, size, size_)) throw SystemError(EOVERFLOW, "pread");
  image_->ReadAt(file_start_ + offset, out, size);
}

void EnclosingSquashfs::Truncate(uint64_t size) {
  if (size > size_) throw SystemError(EINVAL, "ftruncate");
  image_->Truncate(file_start_ + size);
  size_ = size;
}

void EnclosingSquashfs::Finish() {
  if (size_ == 0) throw SystemError(EINVAL, "squashfs_write", "the file is empty");
  // Every reader knows gzip.
  const SquashfsCodec codec = SquashfsCodec{SquashfsCompression::kGzip, -1, kBlockSize}.Checked();
  const uint32_t time = contents_.time;
  Tables tables(codec);
  std::vector<Node> files;
  files.push_back(FileNode(kConfigName, kConfigMode, time, kConfigStart, contents_.config.size()));
  files.push_back(FileNode(contents_.file, kFileMode, time, file_start_, size_));
  if (files[1].name < files[0].name) std::swap(files[0], files[1]);
  // Owner and group 0 is the one number there is.
  tables.ids().IndexOf(0);
  tables.Take(DirectoryNode(Node::Event::kEnter, time));
  for (Node& file : files) tables.Take(std::move(file));
  tables.Take(DirectoryNode(Node::Event::kLeave, time));

  Output output(*image_, file_start_ + size_);
  const Tables::Places places = tables.Write(output, {});
  const std::vector<uint8_t> padding(Padded(places.end) - places.end);
  output.Append(padding.data(), padding.size());
  output.Finish();
  const Superblock fields{tables.inode_count(), time, 0, kExportable | kNoFragments | kNoXattrs, 1, tables.root()};
  const Packed superblock = EncodeSuperblock(codec, fields, places);
  image_->WriteAt(0, superblock.data(), superblock.size());
  image_->Finish();
}

}  // namespace sifcrypt
