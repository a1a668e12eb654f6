#include "core/layer_tree.h"

#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <set>
#include <utility>

#include "core/system_error.h"

namespace sifcrypt {
namespace {

constexpr size_t kMaximumName = 255;
// As others that resolve links inside a root.
constexpr int kMaximumLinks = 255;
// As deep as what unpacks an image goes (unfolding.cc).
constexpr size_t kMaximumDepth = 2048;
// Names that are looked up on the way to one folder, those in the targets of links included.
constexpr size_t kMaximumWay = 2 * kMaximumDepth;
// What a look-up costs, in steps: folders are large, and names long.
constexpr uint64_t kStepsPerLookup = 4;
// Bytes of an archive around a layer that are decoded in a step, in vain for the most part.
constexpr uint64_t kDecodedPerStep = 4096;
constexpr uint32_t kFolderMode = 0755;
constexpr std::string_view kWhiteout = ".wh.";
constexpr std::string_view kOpaque = ".wh..wh..opq";
// What a map's node costs besides its value, with what the allocator adds.
constexpr uint64_t kNodeOverhead = 48;
// What is remembered of data that was handed over.
constexpr uint64_t kContentOverhead = 64;
// Files that may have been replaced are held until that is known: what each and all may have.
constexpr uint64_t kHeldFile = uint64_t{2} << 20;
constexpr uint64_t kHeldFiles = uint64_t{24} << 20;

std::string Joined(const std::vector<std::string>& parts) {
  std::string path;
  for (const std::string& part : parts) {
    if (!path.empty()) path += '/';
    path += part;
  }
  return path;
}

bool IsStorable(std::string_view name) {
  return name.starts_with("user.") || name.starts_with("security.") || name.starts_with("trusted.");
}

/// About the machine that the layer was made on, or about an overlay: wrong anywhere else.
bool IsForeign(std::string_view name) {
  return name == "security.selinux" || name == "system.nfs4_acl" || name == "user.rootlesscontainers" ||
         name.starts_with("trusted.overlay.") || name.starts_with("user.overlay.");
}

/// Data of one file out of a layer that is read front to back.
class StreamedFile final : public TreeFile {
 public:
  StreamedFile(LayerStream& stream, uint64_t size) : stream_(stream), start_(stream.position()), size_(size) {}
  uint64_t Size() const override { return size_; }
  void ReadAt(uint64_t offset, void* out, size_t size) const override {
    const uint64_t at = start_ + offset;
    if (at < stream_.position() || !RangeFits(offset, size, size_)) throw SystemError(EINVAL, "layer_read");
    stream_.Skip(at - stream_.position());
    stream_.ReadFully(out, size);
  }

 private:
  LayerStream& stream_;
  uint64_t start_;
  uint64_t size_;
};

/// The same with holes.
class StreamedSparseFile final : public TreeFile {
 public:
  StreamedSparseFile(LayerStream& stream, uint64_t size, const std::vector<SparseSegment>& segments)
      : stream_(stream), size_(size), segments_(segments) {}
  uint64_t Size() const override { return size_; }
  uint64_t NextData(uint64_t offset) const override {
    for (size_t i = next_; i < segments_.size(); ++i) {
      const auto [start, size] = segments_[i];
      if (size > 0 && start + size > offset) return std::max(start, offset);
    }
    return size_;
  }
  void ReadAt(uint64_t offset, void* out, size_t size) const override {
    if (offset < position_ || !RangeFits(offset, size, size_)) throw SystemError(EINVAL, "layer_read");
    memset(out, 0, size);
    position_ = offset + size;
    for (; next_ < segments_.size(); ++next_, taken_ = 0) {
      const auto [start, length] = segments_[next_];
      if (start >= position_) return;
      const uint64_t from = std::max(start + taken_, offset);
      const uint64_t to = std::min(start + length, position_);
      stream_.Skip(std::min(from, start + length) - (start + taken_));
      taken_ = std::min(from, start + length) - start;
      if (from < to) {
        stream_.ReadFully(static_cast<uint8_t*>(out) + (from - offset), to - from);
        taken_ = to - start;
      }
      if (taken_ < length) return;
    }
  }

 private:
  LayerStream& stream_;
  uint64_t size_;
  const std::vector<SparseSegment>& segments_;
  mutable uint64_t position_ = 0;
  mutable size_t next_ = 0;
  /// Of that segment.
  mutable uint64_t taken_ = 0;
};

class HeldFile final : public TreeFile {
 public:
  explicit HeldFile(const std::vector<uint8_t>& bytes) : bytes_(bytes) {}
  uint64_t Size() const override { return bytes_.size(); }
  void ReadAt(uint64_t offset, void* out, size_t size) const override {
    if (!RangeFits(offset, size, bytes_.size())) throw SystemError(EOVERFLOW, "layer_read");
    memcpy(out, bytes_.data() + offset, size);
  }

 private:
  const std::vector<uint8_t>& bytes_;
};

/// Ends what is decoded for a layer, before whoever reads the layer ahead is waited for.
class StopAround {
 public:
  explicit StopAround(std::atomic<bool>& stopped) : stopped_(stopped) { stopped_ = false; }
  ~StopAround() { stopped_ = true; }
  StopAround(const StopAround&) = delete;
  StopAround& operator=(const StopAround&) = delete;

 private:
  std::atomic<bool>& stopped_;
};

class EmptyFile final : public TreeFile {
 public:
  uint64_t Size() const override { return 0; }
  void ReadAt(uint64_t, void*, size_t size) const override {
    if (size > 0) throw SystemError(EOVERFLOW, "layer_read");
  }
};

}  // namespace

LayerTree::LayerTree(std::vector<Layer> layers, const LayerLimits& limits, ReadProgress progress)
    : layers_(std::move(layers)),
      limits_(limits),
      progress_(std::move(progress)),
      work_("layer_work", limits.work, [this] {
        if (progress_) progress_(0);
      }) {
  for (const Layer& layer : layers_)
    if (layer.decoded) *layer.decoded = [this](uint64_t bytes) { ProgressAround(bytes); };
  Inode& root = inodes_[NewInode()];
  root.mode = S_IFDIR | kFolderMode;
  root.children = std::make_unique<Children>();
  found_.resize(layers_.size());
}

void LayerTree::Names::Sort() {
  if (added_.empty()) return;
  std::sort(added_.begin(), added_.end());
  for (; !runs_.empty() && runs_.back().size() <= 2 * added_.size(); runs_.pop_back()) {
    const auto middle = static_cast<Hashes::difference_type>(added_.size());
    added_.insert(added_.end(), runs_.back().begin(), runs_.back().end());
    std::inplace_merge(added_.begin(), added_.begin() + middle, added_.end());
  }
  runs_.push_back(std::exchange(added_, {}));
}

bool LayerTree::Names::Has(std::string_view name) const {
  const size_t hash = std::hash<std::string_view>{}(name);
  return std::any_of(runs_.begin(), runs_.end(),
                     [hash](const Hashes& run) { return std::binary_search(run.begin(), run.end(), hash); });
}

std::vector<std::string> LayerTree::Cleaned(std::string_view path) {
  std::vector<std::string> parts;
  uint64_t steps = 0;
  while (!path.empty()) {
    const size_t slash = std::min(path.find('/'), path.size());
    const std::string_view part = path.substr(0, slash);
    path.remove_prefix(std::min(slash + 1, path.size()));
    ++steps;
    if (part.empty() || part == ".") continue;
    if (part == "..") {
      if (!parts.empty()) parts.pop_back();
    } else {
      parts.emplace_back(part);
    }
  }
  Take(steps);
  return parts;
}

void LayerTree::Fail(const std::string& path, const std::string& what) const {
  throw FormatError("layer_format", layers_[layer_].name + ": " + path + ": " + what);
}

void LayerTree::Progress(uint64_t bytes) {
  Take(around_.exchange(0) / kDecodedPerStep);
  if (progress_) progress_(bytes);
}

void LayerTree::ProgressAround(uint64_t bytes) {
  around_ += bytes;
  if (std::this_thread::get_id() == walker_) return Progress(0);
  if (stopped_) throw SystemError(ECANCELED, "layer_read");
}

void LayerTree::Account(uint64_t bytes) {
  memory_ += bytes;
  if (memory_ > limits_.memory)
    throw SystemError(
        EFBIG, "layer_names",
        layers_[layer_].name + ": the tree takes more than " + std::to_string(limits_.memory) + " bytes of memory");
}

uint64_t LayerTree::Weight(const Inode& inode) const {
  uint64_t weight = sizeof(Inode);
  if (inode.children) weight += sizeof(Children) + 16;
  if (inode.extra) {
    weight += sizeof(Extra) + 16 + inode.extra->target.capacity();
    for (const TreeXattr& xattr : inode.extra->xattrs)
      weight += sizeof(TreeXattr) + xattr.name.capacity() + xattr.value.capacity();
    weight += inode.extra->segments.size() * sizeof(SparseSegment);
  }
  return weight;
}

LayerTree::Index LayerTree::NewInode() {
  Index index;
  if (!free_.empty()) {
    index = free_.back();
    free_.pop_back();
    inodes_[index] = Inode{};
  } else {
    index = static_cast<Index>(inodes_.size());
    inodes_.emplace_back();
  }
  return index;
}

LayerTree::Child& LayerTree::AddChild(Index folder, const std::string& name, Index inode) {
  Account(kNodeOverhead + sizeof(Children::value_type) + (name.size() > 15 ? name.size() + 16 : 0));
  return inodes_[folder].children->insert_or_assign(name, Child{inode, layer_ + 1}).first->second;
}

void LayerTree::Release(Index first) {
  std::vector<Index> pending{first};
  while (!pending.empty()) {
    const Index index = pending.back();
    pending.pop_back();
    Inode& inode = inodes_[index];
    if (--inode.links > 0) continue;
    Discount(Weight(inode));
    if (inode.children)
      for (const auto& [name, child] : *inode.children) {
        Discount(kNodeOverhead + sizeof(Children::value_type) + (name.size() > 15 ? name.size() + 16 : 0));
        pending.push_back(child.inode);
      }
    inode = Inode{};
    inode.links = 0;
    free_.push_back(index);
  }
}

void LayerTree::Touch(const Steps& steps) {
  for (const Step& step : steps)
    if (step.place != nullptr) step.place->touched = layer_ + 1;
}

/// Gives an inode a name; what had it goes.
void LayerTree::Link(Steps& folder, const std::string& name, Index inode) {
  Touch(folder);
  Children& children = *inodes_[folder.back().inode].children;
  const auto place = children.find(name);
  if (place != children.end()) {
    const Index before = place->second.inode;
    place->second = {inode, layer_ + 1};
    Release(before);
    return;
  }
  AddChild(folder.back().inode, name, inode);
}

bool LayerTree::Descend(std::vector<std::string> parts, bool create, int64_t mtime, const std::string& path,
                        Steps& steps) {
  std::reverse(parts.begin(), parts.end());
  steps.assign(1, {0, nullptr});
  int links = 0;
  for (size_t way = 0; !parts.empty(); ++way) {
    if (way > kMaximumWay) Fail(path, "too many names on the way to it");
    Take(kStepsPerLookup);
    const std::string name = std::move(parts.back());
    parts.pop_back();
    if (name == ".." && steps.size() > 1) steps.pop_back();
    if (name == "..") continue;
    if (name.size() > kMaximumName) Fail(path, "a name of " + std::to_string(name.size()) + " bytes");
    Children& children = *inodes_[steps.back().inode].children;
    const auto place = children.find(name);
    if (place == children.end()) {
      if (!create) return false;
      if (steps.size() > kMaximumDepth) Fail(path, "too deep");
      const Index index = NewInode();
      Inode& inode = inodes_[index];
      inode.mode = S_IFDIR | kFolderMode;
      inode.mtime = mtime;
      inode.children = std::make_unique<Children>();
      Account(Weight(inode));
      Child& child = AddChild(steps.back().inode, name, index);
      steps.push_back({index, &child});
      continue;
    }
    const Inode& inode = inodes_[place->second.inode];
    if (inode.children) {
      steps.push_back({place->second.inode, &place->second});
    } else if (S_ISLNK(inode.mode)) {
      if (++links > kMaximumLinks) Fail(path, "too many symbolic links");
      const std::string& target = inode.extra->target;
      if (target.starts_with('/')) steps.resize(1);
      // Not cleaned: ".." goes up from where a link has led to.
      std::vector<std::string> more;
      for (size_t at = 0; at < target.size();) {
        const size_t slash = std::min(target.find('/', at), target.size());
        const std::string part = target.substr(at, slash - at);
        if (!part.empty() && part != ".") more.push_back(part);
        at = slash + 1;
      }
      if (parts.size() + more.size() > 2 * kMaximumDepth) Fail(path, "too deep");
      parts.insert(parts.end(), more.rbegin(), more.rend());
    } else {
      if (!create) return false;
      Fail(path, name + " is no folder");
    }
  }
  return true;
}

void LayerTree::RemoveOlder(Children& first, Children::iterator firstPlace) {
  // What this layer made stays, and so do the folders around it.
  struct Level {
    Children* children;
    Children::iterator next, end;
  };
  std::vector<Level> levels{{&first, firstPlace, std::next(firstPlace)}};
  while (!levels.empty()) {
    Level& level = levels.back();
    if (level.next == level.end) {
      levels.pop_back();
      continue;
    }
    const auto place = level.next++;
    Take(1);
    if (place->second.touched != layer_ + 1) {
      const Index inode = place->second.inode;
      Discount(kNodeOverhead + sizeof(Children::value_type) +
               (place->first.size() > 15 ? place->first.size() + 16 : 0));
      level.children->erase(place);
      Release(inode);
    } else if (Inode& inside = inodes_[place->second.inode]; inside.children && inside.emptied != layer_ + 1) {
      inside.emptied = layer_ + 1;
      levels.push_back({inside.children.get(), inside.children->begin(), inside.children->end()});
    }
  }
}

void LayerTree::RemoveAllOlder(Inode& folder) {
  if (std::exchange(folder.emptied, layer_ + 1) == layer_ + 1) return;
  Children& children = *folder.children;
  for (auto place = children.begin(); place != children.end();) RemoveOlder(children, place++);
}

void LayerTree::ApplyWhiteout(Steps& folder, std::string_view name) {
  if (name == kOpaque) return RemoveAllOlder(inodes_[folder.back().inode]);
  Children& children = *inodes_[folder.back().inode].children;
  const auto place = children.find(name.substr(kWhiteout.size()));
  if (place != children.end()) RemoveOlder(children, place);
}

void LayerTree::SetMetadata(Inode& inode, TarEntry& entry) {
  inode.mode = (inode.mode & S_IFMT) | entry.mode;
  inode.uid = entry.uid;
  inode.gid = entry.gid;
  inode.mtime = entry.mtime;
  std::vector<TreeXattr> xattrs;
  for (TreeXattr& xattr : entry.xattrs) {
    if (IsForeign(xattr.name)) continue;
    if (!IsStorable(xattr.name) || xattr.name.size() > kMaximumName || xattr.name.find('\0') != std::string::npos ||
        xattr.value.size() > 65536) {
      ++skipped_xattrs_;
      continue;
    }
    xattrs.push_back(std::move(xattr));
  }
  std::sort(xattrs.begin(), xattrs.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  if (!xattrs.empty() && !inode.extra) inode.extra = std::make_unique<Extra>();
  if (inode.extra) inode.extra->xattrs = std::move(xattrs);
}

void LayerTree::ApplyHardLink(const TarEntry& entry, Steps& folder, const std::string& name) {
  std::vector<std::string> target = Cleaned(entry.target);
  Steps steps;
  Children::iterator found;
  bool exists = false;
  if (!target.empty()) {
    const std::string last = std::move(target.back());
    target.pop_back();
    if (Descend(std::move(target), false, 0, entry.path, steps)) {
      Children& children = *inodes_[steps.back().inode].children;
      found = children.find(last);
      exists = found != children.end();
    }
  }
  if (!exists) Fail(entry.path, "a link to " + entry.target + ", which is not there");
  const Index inode = found->second.inode;
  if (inodes_[inode].children) Fail(entry.path, "a link to " + entry.target + ", which is a folder");
  if (inodes_[inode].links == UINT32_MAX) Fail(entry.path, "too many links");
  ++inodes_[inode].links;
  Link(folder, name, inode);
}

void LayerTree::ApplyEntry(Found& found) {
  TarEntry& entry = found.entry;
  std::vector<std::string> parts = Cleaned(entry.path);
  if (parts.empty()) {
    if (entry.type != TarEntry::Type::kDirectory) Fail(entry.path, "the root is no folder");
    Inode& root = inodes_[0];
    Discount(std::min(memory_, Weight(root)));
    SetMetadata(root, entry);
    Account(Weight(root));
    return;
  }
  const std::string name = std::move(parts.back());
  parts.pop_back();
  Steps folder;
  if (name.starts_with(kWhiteout)) {
    if (name == kWhiteout) Fail(entry.path, "it removes a file without a name");
    const bool other = name.starts_with(".wh..wh.") && name != kOpaque;
    if (!other && Descend(std::move(parts), false, 0, entry.path, folder)) ApplyWhiteout(folder, name);
    return;
  }
  if (name.size() > kMaximumName) Fail(entry.path, "a name of " + std::to_string(name.size()) + " bytes");
  Descend(std::move(parts), true, entry.mtime, entry.path, folder);
  if (entry.type == TarEntry::Type::kHardLink) return ApplyHardLink(entry, folder, name);

  if (entry.type == TarEntry::Type::kDirectory) {
    Children& children = *inodes_[folder.back().inode].children;
    const auto place = children.find(name);
    if (place != children.end() && inodes_[place->second.inode].children) {
      Touch(folder);
      place->second.touched = layer_ + 1;
      Inode& inode = inodes_[place->second.inode];
      Discount(Weight(inode));
      SetMetadata(inode, entry);
      Account(Weight(inode));
      return;
    }
  }
  if (folder.size() > kMaximumDepth) Fail(entry.path, "too deep");
  const Index index = NewInode();
  Inode& inode = inodes_[index];
  switch (entry.type) {
    case TarEntry::Type::kDirectory:
      inode.mode = S_IFDIR;
      inode.children = std::make_unique<Children>();
      break;
    case TarEntry::Type::kSymlink:
      if (entry.target.empty() || entry.target.size() >= PATH_MAX)
        Fail(entry.path, "a symbolic link to a name of " + std::to_string(entry.target.size()) + " bytes");
      inode.mode = S_IFLNK;
      inode.extra = std::make_unique<Extra>();
      inode.extra->target = std::move(entry.target);
      break;
    case TarEntry::Type::kCharacterDevice:
    case TarEntry::Type::kBlockDevice:
      inode.mode = entry.type == TarEntry::Type::kBlockDevice ? S_IFBLK : S_IFCHR;
      if (entry.major > 0xfff || entry.minor > 0xfffff) Fail(entry.path, "a device number out of range");
      inode.rdev = makedev(entry.major, entry.minor);
      break;
    case TarEntry::Type::kFifo:
      inode.mode = S_IFIFO;
      break;
    default:
      inode.mode = S_IFREG;
      inode.size = entry.size;
      inode.data_offset = entry.data_offset;
      inode.layer = layer_;
      inode.is_sparse = entry.is_sparse;
      inode.data = found.data;
      inode.content = found.content;
      if (entry.is_sparse) {
        inode.extra = std::make_unique<Extra>();
        inode.extra->segments = std::move(entry.segments);
      }
  }
  SetMetadata(inode, entry);
  if (S_ISLNK(inode.mode)) inode.mode = S_IFLNK | 0777;
  Account(Weight(inode));
  Link(folder, name, index);
}

uint64_t LayerTree::Weight(const Found& found) {
  const TarEntry& entry = found.entry;
  uint64_t weight = sizeof(Found) + entry.path.capacity() + entry.target.capacity();
  for (const TreeXattr& xattr : entry.xattrs)
    weight += sizeof(TreeXattr) + xattr.name.capacity() + xattr.value.capacity();
  return weight + entry.segments.size() * sizeof(SparseSegment);
}

void LayerTree::Read(uint32_t number, TreeVisitor& visitor) {
  layer_ = number;
  const Layer& layer = layers_[number];
  const ReadProgress progress = [this](uint64_t bytes) { Progress(bytes); };
  if (!layer.digest.empty()) VerifyBlob(*layer.blob, layer.digest, layer.name, progress);
  LayerStream stream(*layer.blob, layer.name, progress);
  const StopAround stop(stopped_);
  stream.Expect(layer.diff_id);
  stream.Limit(limits_.bytes, decoded_);
  TarReader reader(stream, work_);
  for (TarEntry entry; reader.Next(entry);) {
    Found found{std::move(entry)};
    if (found.entry.type == TarEntry::Type::kFile && found.entry.size > 0) ReadData(found, stream, visitor);
    if (number == 0) {
      // Nothing is below it.
      ApplyEntry(found);
    } else {
      Account(Weight(found));
      found_[number].push_back(std::move(found));
    }
  }
  stream.Finish();
  decoded_ += stream.position();
  Remember(found_[number]);
}

void LayerTree::ReadData(Found& found, LayerStream& stream, TreeVisitor& visitor) {
  const TarEntry& entry = found.entry;
  if (!RangeFits(bytes_, entry.size, limits_.bytes))
    throw SystemError(
        EFBIG, "layer_limit",
        layers_[layer_].name + ": " + entry.path + ": more than " + std::to_string(limits_.bytes) + " bytes of files");
  bytes_ += entry.size;
  const std::vector<std::string> parts = Cleaned(entry.path);
  if (all_hidden_ || parts.empty() || parts.back().starts_with(kWhiteout) || paths_.Has(Joined(parts))) return;
  // Also of what this layer replaces itself, which nothing else accounts for.
  Account(kContentOverhead);
  // A newer layer names the folder in another way, perhaps, through a link that only a layer below tells of.
  if (std::any_of(parts.begin(), parts.end(), [this](const std::string& part) { return names_.Has(part); })) {
    if (entry.is_sparse || entry.size > kHeldFile || held_bytes_ + entry.size > kHeldFiles) return;
    held_.emplace_back(entry.size);
    stream.ReadFully(held_.back().data(), entry.size);
    held_bytes_ += entry.size;
    found.data = Data::kHeld;
    found.content = held_.size() - 1;
    return;
  }
  found.content = entry.is_sparse ? visitor.StoreContent(StreamedSparseFile(stream, entry.size, entry.segments))
                                  : visitor.StoreContent(StreamedFile(stream, entry.size));
  found.data = Data::kStored;
}

void LayerTree::Remember(const std::deque<Found>& layer) {
  for (const Found& found : layer) {
    std::vector<std::string> parts = Cleaned(found.entry.path);
    if (parts.empty()) continue;
    const bool opaque = parts.back() == kOpaque;
    if (opaque) {
      parts.pop_back();
    } else if (parts.back().starts_with(kWhiteout)) {
      parts.back().erase(0, kWhiteout.size());
    }
    if (!opaque) paths_.Add(Joined(parts));
    all_hidden_ |= opaque && parts.empty();
    if (!parts.empty() && (opaque || found.entry.type != TarEntry::Type::kDirectory)) names_.Add(parts.back());
  }
  paths_.Sort();
  names_.Sort();
}

void LayerTree::Apply(uint32_t number) {
  layer_ = number;
  for (std::deque<Found>& layer = found_[number]; !layer.empty(); layer.pop_front()) {
    Discount(Weight(layer.front()));
    ApplyEntry(layer.front());
  }
}

void LayerTree::StoreRest(TreeVisitor& visitor) {
  std::set<uint32_t, std::greater<>> unread;
  for (Inode& inode : inodes_) {
    if (inode.links == 0 || !S_ISREG(inode.mode) || inode.size == 0) continue;
    if (inode.data == Data::kUnread) unread.insert(inode.layer);
    if (inode.data != Data::kHeld) continue;
    inode.content = visitor.StoreContent(HeldFile(held_[inode.content]));
    inode.data = Data::kStored;
  }
  held_ = {};
  for (const uint32_t layer : unread) ReadAgain(layer, visitor);
}

void LayerTree::ReadAgain(uint32_t number, TreeVisitor& visitor) {
  std::vector<Index> wanted;
  for (Index index = 0; index < inodes_.size(); ++index) {
    const Inode& inode = inodes_[index];
    if (inode.links > 0 && S_ISREG(inode.mode) && inode.size > 0 && inode.layer == number &&
        inode.data == Data::kUnread)
      wanted.push_back(index);
  }
  std::sort(wanted.begin(), wanted.end(),
            [this](Index a, Index b) { return inodes_[a].data_offset < inodes_[b].data_offset; });
  layer_ = number;
  const Layer& layer = layers_[number];
  LayerStream stream(*layer.blob, layer.name, [this](uint64_t bytes) { Progress(bytes); });
  const StopAround stop(stopped_);
  // It may not be what was verified any more.
  stream.Expect(layer.diff_id);
  stream.Limit(limits_.bytes);
  for (const Index index : wanted) {
    Inode& inode = inodes_[index];
    stream.Skip(inode.data_offset - stream.position());
    inode.content = inode.is_sparse
                        ? visitor.StoreContent(StreamedSparseFile(stream, inode.size, inode.extra->segments))
                        : visitor.StoreContent(StreamedFile(stream, inode.size));
    inode.data = Data::kStored;
  }
  stream.Finish();
}

TreeEntry LayerTree::Describe(const Inode& inode, Index index, std::string_view path) const {
  TreeEntry entry;
  entry.path = path;
  entry.mode = inode.mode;
  entry.uid = inode.uid;
  entry.gid = inode.gid;
  entry.mtime = inode.mtime;
  entry.rdev = inode.rdev;
  if (inode.extra) {
    entry.target = inode.extra->target;
    entry.xattrs = inode.extra->xattrs;
  }
  if (!inode.children && inode.links > 1) {
    entry.links = inode.links;
    entry.link_id = uint64_t{index} + 1;
  }
  return entry;
}

void LayerTree::Walk(TreeVisitor& visitor) {
  walker_ = std::this_thread::get_id();
  for (auto layer = static_cast<uint32_t>(layers_.size()); layer > 0; --layer) Read(layer - 1, visitor);
  for (uint32_t layer = 1; layer < layers_.size(); ++layer) Apply(layer);
  StoreRest(visitor);
  WalkNames(visitor);
}

void LayerTree::WalkNames(TreeVisitor& visitor) {
  struct Level {
    Children::const_iterator next, end;
    size_t path_size;
  };
  std::string path;
  const Inode& root = inodes_[0];
  visitor.EnterDirectory(Describe(root, 0, path));
  std::vector<Level> levels{{root.children->begin(), root.children->end(), 0}};
  while (!levels.empty()) {
    Level& level = levels.back();
    path.resize(level.path_size);
    if (level.next == level.end) {
      visitor.LeaveDirectory();
      levels.pop_back();
      continue;
    }
    const auto& [name, child] = *level.next++;
    if (!path.empty()) path += '/';
    path += name;
    const Inode& inode = inodes_[child.inode];
    const TreeEntry entry = Describe(inode, child.inode, path);
    if (inode.children) {
      visitor.EnterDirectory(entry);
      levels.push_back({inode.children->begin(), inode.children->end(), path.size()});
    } else if (!S_ISREG(inode.mode)) {
      visitor.AddSpecial(entry);
    } else if (inode.size == 0) {
      visitor.AddFile(entry, EmptyFile());
    } else {
      visitor.AddStoredFile(entry, inode.content);
    }
  }
}

}  // namespace sifcrypt
