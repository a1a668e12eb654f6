// A squashfs in a scratch becomes a folder of that scratch, as unpacking it through the kernel would make it: contents, holes, links,
// attributes, owners; what is refused, and what a full scratch or a damaged image comes to. Prints what failed and exits 1, or
// nothing and exits 0.
#include "core/scratch_fill.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "core/file_range.h"
#include "core/squashfs_writer.h"
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

std::string ImageOf(TreeSource& source) {
  const UniqueFd file(CheckErrno(memfd_create("image", MFD_CLOEXEC), "memfd_create"));
  FileSink sink(file.get(), 0);
  SquashfsWriteOptions options;
  options.codec.compression = SquashfsCompression::kLz4;
  options.codec.block_size = 128 << 10;
  std::string bytes(static_cast<size_t>(WriteSquashfs(source, sink, options, {}).size), '\0');
  ReadFully(file.get(), 0, bytes.data(), bytes.size());
  return bytes;
}

/// A scratch with an image and an empty folder.
struct Scratch {
  explicit Scratch(const std::string& image, uint64_t memory = 16 * kMebibyte)
      : tree(std::make_unique<BlockStore>(memory, UniqueFd(), 0), 100) {
    file = tree.Make(ScratchTree::kRoot, "image", {S_IFREG | 0600, 0, 0, 0, {}}).st_ino;
    Check(tree.Write(file, 0, image.data(), image.size()) == image.size(), "the image is in the scratch");
    folder = tree.Make(ScratchTree::kRoot, "root", {S_IFDIR | 0700, 0, 0, 0, {}}).st_ino;
  }
  void Fill(
      const ScratchRights& rights = {}, const std::function<bool()>& stopped = [] { return false; }) {
    FillScratch(tree, folder, file, rights, stopped);
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

void TestAsItWas() {
  OneOfEach source;
  Scratch scratch(ImageOf(source));
  scratch.Fill();
  const struct stat root = scratch.tree.Attributes(scratch.folder);
  Check(root.st_mode == (S_IFDIR | 01755) && root.st_mtime == kTime, "the folder becomes the image's root");
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
}

void TestOwners() {
  OneOfEach source(1000);
  const std::string image = ImageOf(source);
  Scratch alone(image);
  alone.Fill();
  Check(alone.Find("mine")->st_uid == 0 && alone.Find("mine")->st_gid == 0, "where there is one user, all is root's");
  Scratch many(image);
  many.Fill({false, {{0, 1}, {1000, 1}}, {{0, 2000}}});
  Check(many.Find("mine")->st_uid == 1000 && many.Find("mine")->st_gid == 1000, "owners are kept");
  Check(many.tree.XattrNames(many.Find("mine")->st_ino) == std::string("security.capability\0user.u\0", 27),
        "and capabilities");
  Check(!many.Find("device"), "and no device node");
  Scratch real(image);
  real.Fill({true, {}, {}});
  Check(real.Find("device")->st_rdev == makedev(1, 3), "root makes device nodes");
  Check(real.tree.XattrNames(real.Find("mine")->st_ino).size() == 37, "and sets every attribute");
  CheckError(
      EINVAL, "chown",
      [&] {
        Scratch(image).Fill({false, {{0, 1000}}, {{0, 2000}}});
      },
      "an unknown user");
  CheckError(
      EINVAL, "chown",
      [&] {
        Scratch(image).Fill({false, {{0, 2000}}, {{1001, 9}}});
      },
      "an unknown group");
}

void TestRefusals() {
  OneOfEach source;
  const std::string image = ImageOf(source);
  Scratch twice(image);
  twice.Fill();
  CheckError(
      ENOTEMPTY, [&] { twice.Fill(); }, "a folder that has something in it");
  CheckError(
      ECANCELED, [&] { Scratch(image).Fill({}, [] { return true; }); }, "who has stopped");
  CheckError(
      ENOSPC, [&] { Scratch(image, image.size() / 4096 * 4096 + kMebibyte).Fill(); }, "a full scratch");
  CheckError(
      EBADMSG, [&] { Scratch("not a squashfs" + image).Fill(); }, "what is no squashfs");
  CheckError(
      EPERM,
      [&] {
        Scratch scratch(image);
        scratch.file = 99;
        scratch.Fill();
      },
      "an image that is not there");
  CheckError(
      EPERM,
      [&] {
        Scratch scratch(image);
        scratch.folder = scratch.tree.Make(scratch.folder, "below", {S_IFDIR | 0755, 0, 0, 0, {}}).st_ino;
        scratch.Fill({true, {}, {}});
      },
      "a folder that somebody may have made in a root");
  CheckError(
      EPERM,
      [&] {
        Scratch scratch(image);
        const ScratchTree::Id root =
            scratch.tree.Make(ScratchTree::kRoot, "other", {S_IFDIR | 0755, 0, 0, 0, {}}).st_ino;
        scratch.tree.Rename(ScratchTree::kRoot, "image", root, "image", 0);
        scratch.Fill({true, {}, {}});
      },
      "an image that somebody may have made in a root");
  Scratch file(image);
  file.folder = file.file;
  CheckError(
      ENOTDIR, [&] { file.Fill(); }, "a file to be filled");
  // Whatever is changed, it is an error or a tree.
  for (size_t at = 0; at < image.size(); at += image.size() / 300 + 1) {
    std::string damaged = image;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x41);
    try {
      Scratch(damaged).Fill({true, {}, {}});
    } catch (const SystemError& failure) {
      Check(failure.error() != 0, "a damaged image is an error with a number");
    }
  }
}

}  // namespace
}  // namespace sifcrypt

int main() {
  using namespace sifcrypt;
  TestAsItWas();
  TestOwners();
  TestRefusals();
  return failures == 0 ? 0 : 1;
}
