// A tree in pieces becomes a folder of a scratch, as making it through the kernel would: contents, holes, links, attributes, owners,
// data that comes before all names; what is refused, and what a full scratch or damaged pieces come to. Prints what failed and exits
// 1, or nothing and exits 0.
#include "core/scratch_fill.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "core/system_error.h"

namespace sifcrypt {
namespace {

constexpr uint64_t kMebibyte = 1 << 20;
constexpr uint32_t kTime = 1'600'000'000;

class Content final : public TreeFile {
 public:
  explicit Content(std::string bytes) : bytes_(std::move(bytes)) {}
  uint64_t Size() const override { return bytes_.size(); }
  void ReadAt(uint64_t offset, void* out, size_t size) const override {
    bytes_.copy(static_cast<char*>(out), size, offset);
  }

 private:
  std::string bytes_;
};

std::string Large() {
  std::string bytes;
  for (int i = 0; bytes.size() < 3 * kMebibyte; ++i) bytes += std::to_string(i);
  return bytes;
}

/// A tree with one of each kind. `owner` is whose `mine` is.
class OneOfEach final : public TreeSource {
 public:
  explicit OneOfEach(uint32_t owner = 0) : owner_(owner) {}
  void Walk(TreeVisitor& visitor) override {
    visitor.EnterDirectory(Entry("", S_IFDIR | 01755));
    TreeEntry device = Entry("device", S_IFCHR | 0666);
    device.rdev = makedev(1, 3);
    visitor.AddSpecial(device);
    visitor.EnterDirectory(Entry("folder", S_IFDIR | 02750));
    visitor.AddFile(Entry("folder/large", S_IFREG | 04755), Content(Large()));
    TreeEntry link = Entry("folder/second", S_IFREG | 0600);
    link.links = 2;
    link.link_id = 1;
    visitor.AddFile(link, Content("linked"));
    visitor.LeaveDirectory();
    link.path = "linked";
    visitor.AddFile(link, Content("linked"));
    TreeEntry mine = Entry("mine", S_IFREG | 0444);
    mine.uid = owner_;
    mine.gid = owner_;
    mine.xattrs = {{"security.capability", "c"}, {"trusted.t", "t"}, {"user.u", "u"}};
    visitor.AddFile(mine, Content(""));
    visitor.AddSpecial(Entry("pipe", S_IFIFO | 0640));
    visitor.AddFile(Entry("sparse", S_IFREG | 0644), Content("x" + std::string(kMebibyte, '\0')));
    TreeEntry symlink = Entry("symlink", S_IFLNK | 0777);
    symlink.target = "folder/large";
    visitor.AddSpecial(symlink);
    visitor.LeaveDirectory();
  }

 private:
  static TreeEntry Entry(std::string_view path, mode_t mode) {
    TreeEntry entry;
    entry.path = path;
    entry.mode = mode;
    entry.mtime = kTime;
    return entry;
  }
  uint32_t owner_;
};

/// Data first, some of it for nobody, and two names of a file that nothing else is said of.
class DataFirst final : public TreeSource {
 public:
  void Walk(TreeVisitor& visitor) override {
    const uint64_t replaced = visitor.StoreContent(Content("replaced"));
    const uint64_t kept = visitor.StoreContent(Content("kept"));
    Check(replaced == 0 && kept == 1, "contents are counted from 0");
    TreeEntry entry;
    entry.mode = S_IFDIR | 0755;
    visitor.EnterDirectory(entry);
    entry.mode = S_IFREG | 0644;
    entry.links = 2;
    entry.link_id = 7;
    for (const char* name : {"a", "b"}) {
      entry.path = name;
      visitor.AddStoredFile(entry, kept);
    }
    visitor.LeaveDirectory();
  }
};

using Pieces = std::vector<std::string>;

Pieces PiecesOf(TreeSource& source, std::optional<TreeOwner> owner = std::nullopt) {
  Pieces pieces;
  ScratchPieces packing(
      [&pieces](const uint8_t* piece, size_t size) { pieces.emplace_back(reinterpret_cast<const char*>(piece), size); },
      owner, {});
  source.Walk(packing);
  packing.Finish();
  return pieces;
}

/// A scratch with a file for pieces and an empty folder.
struct Scratch {
  explicit Scratch(uint64_t memory = 16 * kMebibyte) : tree(std::make_unique<BlockStore>(memory, UniqueFd(), 0), 100) {
    file = tree.Make(ScratchTree::kRoot, "pieces", {S_IFREG | 0600, 0, 0, 0, {}}).st_ino;
    folder = tree.Make(ScratchTree::kRoot, "root", {S_IFDIR | 0700, 0, 0, 0, {}}).st_ino;
  }
  /// Whether the last piece was known as such, and no other. `part`: how many bytes come at a time.
  bool Fill(const Pieces& pieces, const ScratchRights& rights = {}, size_t part = ScratchPieces::kMostBytes) {
    ScratchFilling filling(tree, folder, file, rights);
    size_t ends = 0;
    bool ended = false;
    for (const std::string& piece : pieces)
      for (size_t at = 0; at < piece.size(); at += part) {
        ended = filling.Take(at, piece.data() + at, std::min(part, piece.size() - at));
        ends += ended ? 1 : 0;
      }
    return ended && ends == 1;
  }
  std::optional<struct stat> Find(const std::string& name, ScratchTree::Id in) { return tree.Lookup(in, name); }
  std::optional<struct stat> Find(const std::string& name) { return Find(name, folder); }
  std::string ContentOf(const struct stat& found) {
    std::string bytes(static_cast<size_t>(found.st_size), '\1');
    bytes.resize(tree.Read(found.st_ino, 0, bytes.data(), bytes.size()));
    return bytes;
  }
  ScratchTree tree;
  ScratchTree::Id file = 0;
  ScratchTree::Id folder = 0;
};

void TestAsItWas(size_t part) {
  OneOfEach source;
  const Pieces pieces = PiecesOf(source);
  Check(pieces.size() > 2, "it comes in pieces");
  Scratch scratch;
  Check(scratch.Fill(pieces, {}, part), "the last piece is known");
  const struct stat root = scratch.tree.Attributes(scratch.folder);
  Check(root.st_mode == (S_IFDIR | 01755) && root.st_mtime == kTime, "the folder becomes the tree's root");
  Check(!scratch.Find("device"), "a device node is left out where nobody may make one");
  const auto folder = scratch.Find("folder");
  Check(folder && folder->st_mode == (S_IFDIR | 02750) && folder->st_mtime == kTime,
        "a folder has its mode and its time");
  if (!folder) return;
  const auto large = scratch.Find("large", folder->st_ino);
  Check(
      large && large->st_mode == (S_IFREG | 04755) && large->st_mtime == kTime && scratch.ContentOf(*large) == Large(),
      "a large file");
  const auto linked = scratch.Find("linked");
  const auto second = scratch.Find("second", folder->st_ino);
  Check(linked && second && linked->st_ino == second->st_ino && linked->st_nlink == 2 &&
            scratch.ContentOf(*linked) == "linked",
        "two names of one file");
  const auto sparse = scratch.Find("sparse");
  Check(sparse && scratch.ContentOf(*sparse) == "x" + std::string(kMebibyte, '\0'), "a file that ends in a hole");
  Check(sparse && sparse->st_blocks < 1024, "its hole takes no room");
  const auto symlink = scratch.Find("symlink");
  Check(symlink && symlink->st_mode == (S_IFLNK | 0777) && scratch.tree.Target(symlink->st_ino) == "folder/large",
        "a symbolic link");
  const auto pipe = scratch.Find("pipe");
  Check(pipe && pipe->st_mode == (S_IFIFO | 0640), "a fifo");
  // Nobody uses them: what has no name any more is gone.
  const auto mine = scratch.Find("mine");
  Check(mine && scratch.tree.XattrNames(mine->st_ino) == std::string("user.u\0", 7),
        "only a user's attribute is anybody's");
  const fsfilcnt_t before = scratch.tree.Statistics().f_ffree;
  scratch.tree.Unlink(scratch.folder, "pipe");
  scratch.tree.Forget(pipe->st_ino, 1);
  Check(scratch.tree.Statistics().f_ffree == before + 1, "a file that is removed is gone");
  Check(!scratch.Find(".contents", ScratchTree::kRoot), "nothing else is left");
}

void TestDataFirst() {
  DataFirst source;
  Scratch scratch;
  const fsfilcnt_t before = scratch.tree.Statistics().f_ffree;
  scratch.Fill(PiecesOf(source));
  const auto a = scratch.Find("a"), b = scratch.Find("b");
  Check(a && b && a->st_ino == b->st_ino && a->st_nlink == 2 && scratch.ContentOf(*a) == "kept", "one file, two names");
  Check(scratch.tree.Statistics().f_ffree == before - 1, "data of no file is gone");
}

void TestOwners() {
  OneOfEach source(1000);
  const Pieces pieces = PiecesOf(source);
  Scratch alone;
  alone.Fill(pieces);
  Check(alone.Find("mine")->st_uid == 0 && alone.Find("mine")->st_gid == 0, "where there is one user, all is root's");
  Scratch many;
  many.Fill(pieces, {false, {{0, 1}, {1000, 1}}, {{0, 2000}}});
  Check(many.Find("mine")->st_uid == 1000 && many.Find("mine")->st_gid == 1000, "owners are kept");
  Check(many.tree.XattrNames(many.Find("mine")->st_ino) == std::string("security.capability\0user.u\0", 27),
        "and capabilities");
  Check(!many.Find("device"), "and no device node");
  Scratch real;
  real.Fill(pieces, {true, {}, {}});
  Check(real.Find("device")->st_rdev == makedev(1, 3), "root makes device nodes");
  Check(real.tree.XattrNames(real.Find("mine")->st_ino).size() == 37, "and sets every attribute");
  Scratch given;
  given.Fill(PiecesOf(source, TreeOwner{5, 6}), {true, {}, {}});
  Check(given.Find("mine")->st_uid == 5 && given.Find("mine")->st_gid == 6, "an owner that is given");
  for (const ScratchRights& rights :
       {ScratchRights{false, {{0, 1000}}, {{0, 2000}}}, ScratchRights{false, {{0, 2000}}, {{1001, 9}}}})
    CheckError(
        EINVAL, "chown", [&] { Scratch().Fill(pieces, rights); }, "an unknown user or group");
}

/// With an entry or a content that is not there, in a place where it must not be, or under a name that must not be.
void TestNonsense() {
  using Pack = std::function<void(TreeVisitor&, TreeEntry&)>;
  const auto fails = [](int error, const std::string& what, const Pack& pack, bool in_root = true) {
    class Source final : public TreeSource {
     public:
      Source(const Pack& pack, bool in_root) : pack_(pack), in_root_(in_root) {}
      void Walk(TreeVisitor& visitor) override {
        TreeEntry root, entry;
        root.mode = S_IFDIR | 0755;
        entry.mode = S_IFREG | 0644;
        entry.path = "name";
        if (in_root_) visitor.EnterDirectory(root);
        pack_(visitor, entry);
        if (in_root_) visitor.LeaveDirectory();
      }

     private:
      const Pack& pack_;
      const bool in_root_;
    } source(pack, in_root);
    const Pieces pieces = PiecesOf(source);
    CheckError(
        error,
        [&] {
          Scratch().Fill(pieces, {true, {}, {}});
        },
        what);
  };
  for (const std::string& name : {std::string("."), std::string(".."), std::string(), std::string("a\0b", 3)})
    fails(EBADMSG, "a file that cannot be called so", [&name](TreeVisitor& visitor, TreeEntry& entry) {
      entry.path = name;
      visitor.AddFile(entry, Content(""));
    });
  fails(ENAMETOOLONG, "too long a name", [](TreeVisitor& visitor, TreeEntry& entry) {
    const std::string name(256, 'n');
    entry.path = name;
    visitor.AddFile(entry, Content(""));
  });
  fails(EBADMSG, "content that never came",
        [](TreeVisitor& visitor, TreeEntry& entry) { visitor.AddStoredFile(entry, 0); });
  fails(EBADMSG, "content that is used twice", [](TreeVisitor& visitor, TreeEntry& entry) {
    const uint64_t content = visitor.StoreContent(Content("once"));
    visitor.AddStoredFile(entry, content);
    entry.path = "other";
    visitor.AddStoredFile(entry, content);
  });
  fails(EEXIST, "one name twice", [](TreeVisitor& visitor, TreeEntry& entry) {
    visitor.AddFile(entry, Content("1"));
    visitor.AddFile(entry, Content("2"));
  });
  fails(EBADMSG, "a folder that is a file",
        [](TreeVisitor& visitor, TreeEntry& entry) { visitor.EnterDirectory(entry); });
  fails(EBADMSG, "a file that is a folder", [](TreeVisitor& visitor, TreeEntry& entry) {
    entry.mode = S_IFDIR | 0755;
    visitor.AddFile(entry, Content(""));
  });
  fails(EBADMSG, "something else that is a file",
        [](TreeVisitor& visitor, TreeEntry& entry) { visitor.AddSpecial(entry); });
  fails(EBADMSG, "something of no kind", [](TreeVisitor& visitor, TreeEntry& entry) {
    entry.mode = 0644;
    visitor.AddSpecial(entry);
  });
  for (const std::string& target : {std::string(), std::string(4096, 't'), std::string("a\0b", 3)})
    fails(EBADMSG, "a symbolic link that leads nowhere", [&target](TreeVisitor& visitor, TreeEntry& entry) {
      entry.mode = S_IFLNK | 0777;
      entry.target = target;
      visitor.AddSpecial(entry);
    });
  for (const std::string& name : {std::string(), std::string("user.a\0security.b", 17)})
    fails(EBADMSG, "an attribute that cannot be called so", [&name](TreeVisitor& visitor, TreeEntry& entry) {
      entry.xattrs = {{name, "value"}};
      visitor.AddFile(entry, Content(""));
    });
  fails(EBADMSG, "the end before all folders", [](TreeVisitor& visitor, TreeEntry& entry) {
    entry.mode = S_IFDIR | 0755;
    visitor.EnterDirectory(entry);
  });
  const auto nothing = [](TreeVisitor&, TreeEntry&) {};
  fails(EBADMSG, "no root", nothing, false);
  fails(
      EBADMSG, "a file outside of the root",
      [](TreeVisitor& visitor, TreeEntry& entry) { visitor.AddFile(entry, Content("")); }, false);
  fails(EBADMSG, "one folder more is left than was entered",
        [](TreeVisitor& visitor, TreeEntry&) { visitor.LeaveDirectory(); });
  fails(EBADMSG, "a second root", [](TreeVisitor& visitor, TreeEntry& entry) {
    visitor.LeaveDirectory();
    entry.mode = S_IFDIR | 0755;
    visitor.EnterDirectory(entry);
  });
}

void TestRefusals() {
  OneOfEach source;
  const Pieces pieces = PiecesOf(source);
  Scratch twice;
  twice.Fill(pieces);
  CheckError(
      ENOTEMPTY, [&] { twice.Fill(pieces); }, "a folder that has something in it");
  CheckError(
      ENOSPC, [&] { Scratch(2 * kMebibyte).Fill(pieces); }, "a full scratch");
  CheckError(
      EPERM,
      [&] {
        Scratch scratch;
        scratch.file = 99;
        scratch.Fill(pieces);
      },
      "a file that is not there");
  CheckError(
      EPERM,
      [&] {
        Scratch scratch;
        scratch.folder = scratch.tree.Make(scratch.folder, "below", {S_IFDIR | 0755, 0, 0, 0, {}}).st_ino;
        scratch.Fill(pieces, {true, {}, {}});
      },
      "a folder that somebody may have made in a root");
  CheckError(
      EPERM,
      [&] {
        Scratch scratch;
        const ScratchTree::Id root =
            scratch.tree.Make(ScratchTree::kRoot, "other", {S_IFDIR | 0755, 0, 0, 0, {}}).st_ino;
        scratch.tree.Rename(ScratchTree::kRoot, "pieces", root, "pieces", 0);
        scratch.Fill(pieces, {true, {}, {}});
      },
      "a file that somebody may have made in a root");
  Scratch file;
  file.folder = file.file;
  CheckError(
      ENOTDIR, [&] { file.Fill(pieces); }, "a file to be filled");
  Scratch folder;
  folder.file = folder.folder;
  CheckError(
      EISDIR, [&] { folder.Fill(pieces); }, "a folder to be written to");
  // What has failed goes no further.
  Scratch failed;
  ScratchFilling filling(failed.tree, failed.folder, failed.file, {});
  const auto take = [&](const std::string& bytes, uint64_t offset) {
    filling.Take(offset, bytes.data(), bytes.size());
  };
  CheckError(
      EBADMSG, [&] { take("part", 7); }, "a part that nothing comes before");
  CheckError(
      EBADMSG, [&] { take(pieces.front(), 0); }, "a piece behind a failure");
  // Whatever is changed, it is an error or a tree.
  for (size_t at = 0; at < pieces.back().size(); at += pieces.back().size() / 300 + 1) {
    Pieces damaged = pieces;
    damaged.back()[at] = static_cast<char>(damaged.back()[at] ^ 0x41);
    try {
      Scratch().Fill(damaged, {true, {}, {}});
    } catch (const SystemError& failure) {
      Check(failure.error() != 0, "a damaged piece is an error with a number");
    }
  }
}

}  // namespace
}  // namespace sifcrypt

int main() {
  using namespace sifcrypt;
  TestAsItWas(ScratchPieces::kMostBytes);
  TestAsItWas(128 << 10);
  TestDataFirst();
  TestOwners();
  TestNonsense();
  TestRefusals();
  return failures == 0 ? 0 : 1;
}
