// What a scratch is filled with by another process: pieces. Whatever they say, what comes of it is a tree that the kernel could have made
// for those who build, and nothing is left of it when that is taken away.
#include <sys/stat.h>

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/scratch_fill.h"
#include "target.h"

namespace sifcrypt::fuzz {
namespace {

using Id = ScratchTree::Id;

constexpr uint64_t kMemory = 4 << 20;
constexpr uint64_t kNodes = 200;
/// Between two pieces.
constexpr std::string_view kNext = "\xff\xfe\xfd";
constexpr uint32_t kUser = 1000;
constexpr Amount kBound{.allocations = 400'000, .allocated = 64 << 20, .reads = 0, .read = 0, .output = 0};

using Entries = std::vector<std::pair<std::string, struct stat>>;

Entries EntriesOf(ScratchTree& tree, Id folder) {
  Entries entries;
  tree.List(folder, 0, false, [&entries](const std::string& name, const struct stat& attributes, uint64_t) {
    entries.emplace_back(name, attributes);
    return true;
  });
  return entries;
}

void CheckEntry(ScratchTree& tree, const ScratchRights& rights, const std::string& name, const struct stat& entry) {
  Require(!name.empty() && name != "." && name != ".." && name.size() <= ScratchTree::kMaxNameLength &&
              name.find('/') == std::string::npos && name.find('\0') == std::string::npos,
          "a name is one");
  const bool is_device = S_ISCHR(entry.st_mode) || S_ISBLK(entry.st_mode);
  Require(is_device || S_ISDIR(entry.st_mode) || S_ISREG(entry.st_mode) || S_ISLNK(entry.st_mode) ||
              S_ISFIFO(entry.st_mode) || S_ISSOCK(entry.st_mode),
          "everything is of a kind");
  if (S_ISLNK(entry.st_mode)) {
    const std::string target = tree.Target(entry.st_ino);
    Require(!target.empty() && target.size() < 4096 && target.find('\0') == std::string::npos, "a target is one");
  }
  if (rights.is_root) return;
  Require(!is_device, "only root makes devices");
  Require(entry.st_uid == 0 || entry.st_uid == kUser, "an owner is one that is known");
  Require(!rights.users.empty() || (entry.st_uid == 0 && entry.st_gid == 0), "where there is one user, all is root's");
  const std::string names = tree.XattrNames(entry.st_ino);
  for (size_t at = 0; at < names.size(); at = names.find('\0', at) + 1) {
    const std::string_view xattr = names.c_str() + at;
    Require(xattr.starts_with("user.") || (!rights.users.empty() && xattr == "security.capability"),
            "an attribute is one that may be set");
    Require(tree.Xattr(entry.st_ino, std::string(xattr)).has_value(), "an attribute that is listed is there");
  }
}

void CheckBelow(ScratchTree& tree, const ScratchRights& rights, Id folder) {
  for (const auto& [name, entry] : EntriesOf(tree, folder)) {
    CheckEntry(tree, rights, name, entry);
    if (!S_ISDIR(entry.st_mode)) continue;
    Require(tree.ParentOf(entry.st_ino) == folder, "a folder knows where it is");
    CheckBelow(tree, rights, entry.st_ino);
  }
}

void RemoveBelow(ScratchTree& tree, Id folder) {
  for (const auto& [name, entry] : EntriesOf(tree, folder)) {
    if (!S_ISDIR(entry.st_mode)) {
      tree.Unlink(folder, name);
      continue;
    }
    RemoveBelow(tree, entry.st_ino);
    tree.RemoveDirectory(folder, name);
  }
}

/// True: that was the last one. `part`: how many bytes come at a time.
bool Take(ScratchFilling& filling, std::string_view content, size_t part) {
  const auto size = static_cast<uint32_t>(sizeof(uint32_t) + content.size());
  std::vector<uint8_t> piece;
  for (size_t i = 0; i < sizeof size; ++i) piece.push_back(static_cast<uint8_t>(size >> (8 * i)));
  piece.insert(piece.end(), content.begin(), content.end());
  bool ended = false;
  for (size_t at = 0; at < piece.size(); at += part) {
    // Just its size, so that a sanitizer sees what reads past it.
    const auto begin = piece.begin() + static_cast<ptrdiff_t>(at);
    const std::vector<uint8_t> bytes(begin, begin + static_cast<ptrdiff_t>(std::min(part, piece.size() - at)));
    ended = filling.Take(at, bytes.data(), bytes.size());
  }
  return ended;
}

bool Fill(ScratchTree& tree, Id folder, Id file, const ScratchRights& rights, std::string_view pieces, size_t part) {
  bool ended = false;
  ScratchFilling filling(tree, folder, file, rights);
  Try([&] {
    while (!ended && !pieces.empty()) {
      const size_t end = std::min(pieces.find(kNext), pieces.size());
      ended = Take(filling, pieces.substr(0, end), part);
      pieces.remove_prefix(std::min(end + kNext.size(), pieces.size()));
    }
  });
  return ended;
}

}  // namespace
}  // namespace sifcrypt::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sifcrypt;
  using namespace sifcrypt::fuzz;
  if (size < 2 || size > kMostInput) return 0;
  const Work work(kBound);
  const unsigned how = data[0];
  const size_t part = (how & 4) != 0 ? 1 + size_t{data[1]} * 16 : ScratchPieces::kMostBytes;
  ScratchRights rights;
  if ((how & 1) != 0)
    rights.is_root = true;
  else if ((how & 2) != 0)
    rights = {false, {{0, 1}, {kUser, 1}}, {{0, 2 * kUser}}};
  ScratchTree tree(std::make_unique<BlockStore>(kMemory, UniqueFd(), 0), kNodes);
  const fsfilcnt_t nodes = tree.Statistics().f_ffree;
  const Id file = tree.Make(ScratchTree::kRoot, "pieces", {S_IFREG | 0600, 0, 0, 0, {}}).st_ino;
  const Id folder = tree.Make(ScratchTree::kRoot, "root", {S_IFDIR | 0700, 0, 0, 0, {}}).st_ino;
  const bool ended = Fill(tree, folder, file, rights, {reinterpret_cast<const char*>(data) + 2, size - 2}, part);
  CheckBelow(tree, rights, ScratchTree::kRoot);
  Require(!ended || EntriesOf(tree, ScratchTree::kRoot).size() == 2, "nothing else is left when it has ended");
  RemoveBelow(tree, ScratchTree::kRoot);
  for (const Id used : {file, folder}) tree.Forget(used, 1);
  const struct statvfs left = tree.Statistics();
  Require(left.f_bfree == left.f_blocks && left.f_ffree == nodes, "nothing is left of what is taken away");
  return 0;
}
