#include "core/scratch_fill.h"

#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/stat.h>

#include <algorithm>
#include <utility>

#include "core/system_error.h"

namespace sifcrypt {
namespace {

constexpr uint8_t kBeginContent = 'c', kData = 'd', kEndContent = 'e';
constexpr uint8_t kEnter = 'n', kLeave = 'l', kFile = 'f', kSpecial = 's', kEnd = 'z';
/// A file without one.
constexpr uint64_t kNoContent = UINT64_MAX;
/// A piece begins with its size.
constexpr size_t kHeader = sizeof(uint32_t);
/// Content is looked at for zeros, which become holes, in parts of this size.
constexpr size_t kBlock = size_t{128} << 10;
/// Where files lie that have no name of their own yet.
constexpr char kContentsName[] = ".contents";

template <typename Number>
void Put(std::string& out, Number number) {
  for (size_t i = 0; i < sizeof number; ++i) out += static_cast<char>(number >> (8 * i));
}

template <typename Number>
Number Get(const uint8_t* bytes) {
  Number number = 0;
  for (size_t i = 0; i < sizeof number; ++i) number |= static_cast<Number>(static_cast<Number>(bytes[i]) << (8 * i));
  return number;
}

[[noreturn]] void FailBroken() { throw FormatError("scratch", "what comes is no piece of a tree"); }

bool Knows(const std::vector<ScratchRights::Range>& ranges, uint32_t id) {
  return std::any_of(ranges.begin(), ranges.end(), [id](const ScratchRights::Range& range) {
    return id >= range.first && id - range.first < range.count;
  });
}

bool HasNul(const std::string& text) { return text.find('\0') != std::string::npos; }

bool IsAtTop(ScratchTree& tree, ScratchTree::Id id) {
  bool found = false;
  tree.List(ScratchTree::kRoot, 0, false, [&](const std::string&, const struct stat& entry, uint64_t) {
    found = entry.st_ino == id;
    return !found;
  });
  return found;
}

}  // namespace

/// What is put into a piece as a whole.
class ScratchPieces::Record {
 public:
  explicit Record(uint8_t kind) { bytes_ += static_cast<char>(kind); }
  template <typename Number>
  Record& Add(Number number) {
    Put(bytes_, number);
    return *this;
  }
  Record& Text(std::string_view text) {
    Put(bytes_, static_cast<uint32_t>(text.size()));
    bytes_ += text;
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

ScratchPieces::ScratchPieces(Send send, std::optional<TreeOwner> owner, Progress progress)
    : send_(std::move(send)), owner_(owner), progress_(std::move(progress)), piece_(kMostBytes), used_(kHeader) {}

void ScratchPieces::SendPiece() {
  std::string header;
  Put(header, static_cast<uint32_t>(used_));
  std::copy(header.begin(), header.end(), piece_.begin());
  send_(piece_.data(), used_);
  used_ = kHeader;
}

uint8_t* ScratchPieces::Room(size_t size) {
  // Attributes that no file of a scratch has room for.
  if (size > kMostBytes - kHeader) throw SystemError(ENOSPC, "scratch");
  if (size > kMostBytes - used_) SendPiece();
  return piece_.data() + used_;
}

void ScratchPieces::Add(const Record& record) {
  const std::string& bytes = record.bytes();
  std::copy(bytes.begin(), bytes.end(), Room(bytes.size()));
  used_ += bytes.size();
}

ScratchPieces::Record ScratchPieces::Describe(uint8_t kind, const TreeEntry& entry) const {
  Record record(kind);
  record.Text(entry.name())
      .Add(static_cast<uint32_t>(entry.mode))
      .Add(owner_ ? owner_->uid : entry.uid)
      .Add(owner_ ? owner_->gid : entry.gid)
      // As an image has it.
      .Add(static_cast<uint32_t>(std::clamp<int64_t>(entry.mtime, 0, UINT32_MAX)))
      .Add(static_cast<uint64_t>(entry.rdev))
      .Add(entry.link_id)
      .Text(entry.target)
      .Add(static_cast<uint32_t>(entry.xattrs.size()));
  for (const TreeXattr& xattr : entry.xattrs) record.Text(xattr.name).Text(xattr.value);
  return record;
}

void ScratchPieces::EnterDirectory(const TreeEntry& entry) { Add(Describe(kEnter, entry)); }

void ScratchPieces::LeaveDirectory() { Add(Record(kLeave)); }

void ScratchPieces::AddSpecial(const TreeEntry& entry) { Add(Describe(kSpecial, entry)); }

void ScratchPieces::AddFile(const TreeEntry& entry, const TreeFile& file) {
  AddStoredFile(entry, file.Size() == 0 ? kNoContent : StoreContent(file));
}

void ScratchPieces::AddStoredFile(const TreeEntry& entry, uint64_t content) {
  Add(Describe(kFile, entry).Add(content));
}

uint64_t ScratchPieces::StoreContent(const TreeFile& file) {
  Add(Record(kBeginContent));
  const uint64_t size = file.Size();
  uint64_t data = 0;
  for (uint64_t at = 0; at < size;) {
    const size_t n = std::min<uint64_t>(kBlock, size - at);
    if (data < at + n) data = std::max(data, file.NextData(std::max(data, at)));
    if (data < at + n) {
      const std::string head = Record(kData).Add(at).Add(static_cast<uint32_t>(n)).bytes();
      uint8_t* const room = Room(head.size() + n);
      file.ReadAt(at, room + head.size(), n);
      if (!IsZero(room + head.size(), n)) {
        std::copy(head.begin(), head.end(), room);
        used_ += head.size() + n;
      }
    }
    at += n;
    bytes_ += n;
    if (progress_) progress_(bytes_);
  }
  Add(Record(kEndContent).Add(size));
  return contents_++;
}

void ScratchPieces::Finish() {
  Add(Record(kEnd));
  SendPiece();
}

/// One piece, from its start on.
class ScratchFilling::Reader {
 public:
  Reader(const uint8_t* piece, size_t size) : at_(piece + kHeader), end_(piece + size) {}
  bool HasMore() const { return at_ < end_; }
  template <typename Number>
  Number Next() {
    return sifcrypt::Get<Number>(Bytes(sizeof(Number)));
  }
  std::string Text() {
    const size_t size = Next<uint32_t>();
    const uint8_t* const bytes = Bytes(size);
    return {reinterpret_cast<const char*>(bytes), size};
  }
  const uint8_t* Bytes(size_t size) {
    if (size > static_cast<size_t>(end_ - at_)) FailBroken();
    return std::exchange(at_, at_ + size);
  }

 private:
  const uint8_t* at_;
  const uint8_t* end_;
};

struct ScratchFilling::Entry {
  std::string name;
  mode_t mode = 0;
  uid_t uid = 0;
  gid_t gid = 0;
  uint32_t mtime = 0;
  dev_t rdev = 0;
  uint64_t link_id = 0;
  std::string target;
  std::vector<TreeXattr> xattrs;
};

struct ScratchFilling::Level {
  ScratchTree::Id folder;
  Entry entry;
};

ScratchFilling::ScratchFilling(ScratchTree& tree, ScratchTree::Id folder, ScratchTree::Id file,
                               const ScratchRights& rights)
    : tree_(tree), root_(folder), file_(file), rights_(rights) {
  for (const ScratchTree::Id id : {folder, file})
    if (!IsAtTop(tree, id)) throw SystemError(EPERM, "scratch");
  if (!S_ISREG(tree.Attributes(file).st_mode)) throw SystemError(EISDIR, "scratch");
  tree.List(folder, 0, false, [](const auto&...) -> bool { throw SystemError(ENOTEMPTY, "scratch"); });
  contents_ = tree.Make(ScratchTree::kRoot, kContentsName, {S_IFDIR | 0700, 0, 0, 0, {}}).st_ino;
  tree.Forget(contents_, 1);
}

ScratchFilling::~ScratchFilling() = default;

bool ScratchFilling::Take(uint64_t offset, const void* data, size_t size) {
  const std::lock_guard lock(mutex_);
  if (failure_) std::rethrow_exception(failure_);
  try {
    return TakePart(offset, static_cast<const uint8_t*>(data), size);
  } catch (...) {
    failure_ = std::current_exception();
    throw;
  }
}

bool ScratchFilling::TakePart(uint64_t offset, const uint8_t* bytes, size_t size) {
  if (offset == 0) parts_.clear();
  // A kernel that asks for less at a time than a piece has.
  const bool is_part = offset != 0 || size < kHeader || Get<uint32_t>(bytes) != size;
  if (!is_part) return Parse(bytes, size);
  if (offset != parts_.size() || size > ScratchPieces::kMostBytes - parts_.size()) FailBroken();
  parts_.insert(parts_.end(), bytes, bytes + size);
  if (parts_.size() < kHeader || Get<uint32_t>(parts_.data()) != parts_.size()) return false;
  const std::vector<uint8_t> piece = std::exchange(parts_, {});
  return Parse(piece.data(), piece.size());
}

bool ScratchFilling::Parse(const uint8_t* piece, size_t size) {
  Reader reader(piece, size);
  while (reader.HasMore()) {
    switch (reader.Next<uint8_t>()) {
      case kBeginContent:
        BeginContent();
        break;
      case kData:
        AddData(reader);
        break;
      case kEndContent:
        EndContent(reader);
        break;
      case kEnter:
        Enter(ReadEntry(reader));
        break;
      case kLeave:
        Leave();
        break;
      case kFile: {
        const Entry entry = ReadEntry(reader);
        AddFile(entry, reader.Next<uint64_t>());
        break;
      }
      case kSpecial:
        AddSpecial(ReadEntry(reader));
        break;
      case kEnd:
        if (reader.HasMore()) FailBroken();
        Finish();
        return true;
      default:
        FailBroken();
    }
  }
  return false;
}

void ScratchFilling::BeginContent() {
  if (content_ != 0) FailBroken();
  content_ = Make(contents_, std::to_string(content_count_++), S_IFREG | 0600, {});
}

void ScratchFilling::AddData(Reader& reader) {
  const auto offset = reader.Next<uint64_t>();
  const size_t size = reader.Next<uint32_t>();
  const uint8_t* const bytes = reader.Bytes(size);
  if (content_ == 0) FailBroken();
  if (tree_.Write(content_, offset, bytes, size) != size) throw SystemError(ENOSPC, "scratch");
}

void ScratchFilling::EndContent(Reader& reader) {
  const auto size = reader.Next<uint64_t>();
  if (content_ == 0) FailBroken();
  const ScratchTree::Id id = std::exchange(content_, 0);
  if (static_cast<uint64_t>(tree_.Attributes(id).st_size) == size) return;
  ScratchTree::Change change;
  change.size = size;
  tree_.SetAttributes(id, change);
}

ScratchFilling::Entry ScratchFilling::ReadEntry(Reader& reader) const {
  Entry entry;
  entry.name = reader.Text();
  entry.mode = reader.Next<uint32_t>();
  entry.uid = reader.Next<uint32_t>();
  entry.gid = reader.Next<uint32_t>();
  entry.mtime = reader.Next<uint32_t>();
  entry.rdev = reader.Next<uint64_t>();
  entry.link_id = reader.Next<uint64_t>();
  entry.target = reader.Text();
  for (auto left = reader.Next<uint32_t>(); left > 0; --left) {
    std::string name = reader.Text();
    // It would be several in a list.
    if (name.empty() || HasNul(name)) FailBroken();
    entry.xattrs.push_back({std::move(name), reader.Text()});
  }
  if (levels_.empty()) return entry;
  const std::string& name = entry.name;
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos || HasNul(name)) FailBroken();
  return entry;
}

ScratchTree::Id ScratchFilling::Folder() const {
  if (levels_.empty()) FailBroken();
  return levels_.back().folder;
}

ScratchTree::Id ScratchFilling::Make(ScratchTree::Id folder, const std::string& name, mode_t mode, const Entry& entry) {
  const ScratchTree::Id id = tree_.Make(folder, name, {mode, entry.rdev, 0, 0, entry.target}).st_ino;
  // It has a name.
  tree_.Forget(id, 1);
  return id;
}

bool ScratchFilling::Link(const Entry& entry) {
  const auto found = links_.find(entry.link_id);
  if (entry.link_id == 0 || found == links_.end()) return false;
  tree_.Link(found->second, Folder(), entry.name);
  tree_.Forget(found->second, 1);
  return true;
}

void ScratchFilling::Enter(const Entry& entry) {
  if (!S_ISDIR(entry.mode) || (levels_.empty() && std::exchange(has_root_, true))) FailBroken();
  const ScratchTree::Id id = levels_.empty() ? root_ : Make(Folder(), entry.name, S_IFDIR | 0700, {});
  levels_.push_back({id, entry});
}

void ScratchFilling::Leave() {
  const ScratchTree::Id id = Folder();
  // Making what is in it has changed its times.
  SetAttributes(id, levels_.back().entry);
  levels_.pop_back();
}

ScratchTree::Id ScratchFilling::NameContent(uint64_t number, const std::string& name) {
  const std::string before = std::to_string(number);
  const auto found = tree_.Lookup(contents_, before);
  if (!found) FailBroken();
  tree_.Forget(found->st_ino, 1);
  if (found->st_ino == content_) FailBroken();
  tree_.Rename(contents_, before, Folder(), name, RENAME_NOREPLACE);
  return found->st_ino;
}

void ScratchFilling::AddFile(const Entry& entry, uint64_t content) {
  if (!S_ISREG(entry.mode)) FailBroken();
  if (Link(entry)) return;
  const ScratchTree::Id id =
      content == kNoContent ? Make(Folder(), entry.name, S_IFREG | 0600, {}) : NameContent(content, entry.name);
  if (entry.link_id != 0) links_.emplace(entry.link_id, id);
  SetAttributes(id, entry);
}

void ScratchFilling::AddSpecial(const Entry& entry) {
  const bool is_device = S_ISCHR(entry.mode) || S_ISBLK(entry.mode);
  const bool is_link = S_ISLNK(entry.mode);
  // The kernel shows nobody what is of no kind, and reads no longer target.
  if (!is_device && !is_link && !S_ISFIFO(entry.mode) && !S_ISSOCK(entry.mode)) FailBroken();
  if (is_link && (entry.target.empty() || entry.target.size() >= PATH_MAX || HasNul(entry.target))) FailBroken();
  if (is_device && !rights_.is_root) return;
  if (Link(entry)) return;
  const mode_t permissions = is_link ? 0777 : 0600;
  const ScratchTree::Id id = Make(Folder(), entry.name, (entry.mode & S_IFMT) | permissions, entry);
  if (entry.link_id != 0) links_.emplace(entry.link_id, id);
  SetAttributes(id, entry);
}

void ScratchFilling::SetAttributes(ScratchTree::Id id, const Entry& entry) {
  for (const TreeXattr& xattr : entry.xattrs)
    if (MaySet(xattr.name, entry.mode)) tree_.SetXattr(id, xattr.name, xattr.value, 0);
  ScratchTree::Change change;
  if (!S_ISLNK(entry.mode)) change.mode = entry.mode;
  change.uid = change.gid = 0;
  if (KeepsOwners()) {
    if (!rights_.is_root && (!Knows(rights_.users, entry.uid) || !Knows(rights_.groups, entry.gid)))
      throw SystemError(EINVAL, "chown");
    change.uid = entry.uid;
    change.gid = entry.gid;
  }
  change.atime = change.mtime = timespec{static_cast<time_t>(entry.mtime), 0};
  tree_.SetAttributes(id, change);
}

/// As the kernel has it.
bool ScratchFilling::MaySet(const std::string& name, mode_t mode) const {
  if (name.starts_with("user.")) return S_ISREG(mode) || S_ISDIR(mode);
  return rights_.is_root || (KeepsOwners() && name == "security.capability");
}

void ScratchFilling::Finish() {
  if (!levels_.empty() || !has_root_ || content_ != 0) FailBroken();
  // Of files that nothing is called by in the end.
  std::vector<std::string> unnamed;
  tree_.List(contents_, 0, false, [&unnamed](const std::string& name, const struct stat&, uint64_t) {
    unnamed.push_back(name);
    return true;
  });
  for (const std::string& name : unnamed) tree_.Unlink(contents_, name);
  tree_.RemoveDirectory(ScratchTree::kRoot, kContentsName);
}

}  // namespace sifcrypt
