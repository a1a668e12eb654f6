#include "core/squashfs_tables.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace sifcrypt::squashfs {
namespace {

constexpr size_t kWriteBuffer = 512 * 1024;
/// In the order of their numbers.
constexpr std::string_view kPrefixes[] = {"user", "trusted", "security"};

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

}  // namespace

void Output::Append(const uint8_t* data, size_t size) {
  buffer_.insert(buffer_.end(), data, data + size);
  if (buffer_.size() >= kWriteBuffer) Write(position() / kPadding * kPadding - base_);
}

void Output::Rewind(uint64_t position) {
  if (position >= base_) {
    buffer_.resize(position - base_);
  } else {
    buffer_.clear();
    base_ = position;
  }
}

void Output::Finish() {
  const uint64_t end = position();
  Write(buffer_.size());
  if (sink_.Size() > end) sink_.Truncate(end);
}

void Output::Write(size_t size) {
  sink_.WriteAt(base_, buffer_.data(), size);
  buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<ptrdiff_t>(size));
  base_ += size;
}

void Metadata::Append(const uint8_t* data, size_t size) {
  while (size > 0) {
    const size_t n = std::min(size, kMetadataBlock - pending_.size());
    pending_.insert(pending_.end(), data, data + n);
    data += n, size -= n;
    if (pending_.size() == kMetadataBlock) EndBlock();
  }
}

void Metadata::EndBlock() {
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

uint16_t Ids::IndexOf(uint32_t id) {
  const auto [found, added] = indexes_.try_emplace(id, static_cast<uint16_t>(ids_.size()));
  if (added) {
    if (ids_.size() == kMaximumIds) throw SystemError(EFBIG, "squashfs_write", "the tree has too many owners");
    ids_.push_back(id);
  }
  return found->second;
}

uint32_t Xattrs::IndexOf(const std::vector<TreeXattr>& xattrs) {
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

uint64_t Xattrs::Write(Output& output, SquashfsCompressor& compressor) {
  const uint64_t start = output.position();
  const std::vector<uint8_t>& values = values_.Finish();
  output.Append(values.data(), values.size());
  Metadata sets(compressor);
  sets.Append(sets_);
  Packed head;
  head.U64(start).U32(count_).U32(0);
  return WriteTable(output, sets, head);
}

void OpenDirectory::Add(std::string_view name, const InodePlace& place) {
  if (names.size() > UINT32_MAX - kMaximumName) throw SystemError(EFBIG, "squashfs_write", "a directory is too large");
  children.push_back({place.reference, place.number, static_cast<uint32_t>(names.size()),
                      static_cast<uint16_t>(name.size()), place.type});
  names += name;
  if (place.type == kDirectory) ++subdirectories;
}

void Tables::Take(Node&& node) {
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
    case Node::Event::kContent:
      throw SystemError(EINVAL, "squashfs_write", "content without a name");
  }
}

Tables::Places Tables::Write(Output& output, const Packed& fragments) {
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

uint64_t Tables::AppendAll(Output& output, Metadata& metadata) {
  const uint64_t start = output.position();
  const std::vector<uint8_t>& blocks = metadata.Finish();
  output.Append(blocks.data(), blocks.size());
  return start;
}

uint64_t Tables::WriteEntries(Output& output, const Packed& entries) {
  Metadata table(compressor_);
  table.Append(entries);
  return WriteTable(output, table);
}

uint32_t Tables::NewNumber() {
  if (references_.size() >= UINT32_MAX - 1) throw SystemError(EFBIG, "squashfs_write", "the tree has too many entries");
  references_.push_back(0);
  return static_cast<uint32_t>(references_.size());
}

Packed& Tables::Begin(const Node& node, uint32_t number, bool extended) {
  references_[number - 1] = inodes_.reference();
  packed_.clear();
  return packed_.U16(node.type + (extended ? kExtended : 0))
      .U16(node.mode)
      .U16(node.uid)
      .U16(node.gid)
      .U32(node.mtime)
      .U32(number);
}

uint64_t Tables::End(uint32_t number) {
  inodes_.Append(packed_);
  return references_[number - 1];
}

uint64_t Tables::WriteInode(const Node& node, uint32_t number) {
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

void Tables::CloseDirectory() {
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

uint64_t Tables::WriteListing(const OpenDirectory& directory, std::vector<IndexEntry>& index) {
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

Packed EncodeSuperblock(const SquashfsCodec& codec, const Superblock& superblock, const Tables::Places& places) {
  Packed packed;
  packed.U32(kMagic).U32(superblock.inode_count).U32(superblock.time).U32(codec.block_size);
  packed.U32(superblock.fragment_count).U16(static_cast<uint16_t>(codec.compression));
  packed.U16(static_cast<uint64_t>(std::countr_zero(codec.block_size))).U16(superblock.flags);
  packed.U16(superblock.id_count).U16(kMajor).U16(0);
  packed.U64(superblock.root).U64(places.end).U64(places.ids).U64(places.xattrs);
  packed.U64(places.inodes).U64(places.listings).U64(places.fragments).U64(places.exports);
  return packed;
}

}  // namespace sifcrypt::squashfs
