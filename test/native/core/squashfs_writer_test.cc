// Builds images from folders of every kind and lets unsquashfs, an independent reader, bring them back. Run as root it
// covers devices, owners and attributes too. Prints what failed and exits 1, or nothing and exits 0.
#include "core/squashfs_writer.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <utility>

#include "check.h"
#include "core/directory_tree.h"
#include "core/file_range.h"
#include "core/system_error.h"
#include "core/xts.h"

namespace sifcrypt {
namespace {

namespace fs = std::filesystem;

/// A folder of its own, removed at the end.
class Scratch {
 public:
  Scratch() {
    std::string name = (fs::temp_directory_path() / "squashfs-writer-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw SystemError(errno, "mkdtemp");
    path_ = name;
  }
  ~Scratch() { fs::remove_all(path_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  fs::path operator/(const std::string& name) const { return path_ / name; }

 private:
  fs::path path_;
};

bool IsRoot() { return geteuid() == 0; }

std::string RandomText(size_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::string text(size, '\0');
  // A quarter of the alphabet: compressible, but not to nothing.
  for (char& c : text) c = static_cast<char>('a' + random() % 64);
  return text;
}

void Write(const fs::path& path, const std::string& content) {
  std::ofstream file(path, std::ios::binary);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  if (!file.flush()) throw SystemError(EIO, "write", path.string());
}

std::string Read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

void SetTime(const fs::path& path, time_t seconds) {
  const timespec times[2] = {{seconds, 0}, {seconds, 0}};
  CheckErrno(utimensat(AT_FDCWD, path.c_str(), times, AT_SYMLINK_NOFOLLOW), "utimensat");
}

/// Everything a tree says about itself, a line for each entry.
class Manifest final : public TreeVisitor {
 public:
  static std::map<std::string, std::string> Of(const fs::path& folder, const std::vector<std::string>& exclude = {}) {
    Manifest manifest;
    DirectoryTree tree(folder.string(), exclude);
    tree.Walk(manifest);
    return std::move(manifest.lines_);
  }
  void EnterDirectory(const TreeEntry& entry) override { Describe(entry, ""); }
  void LeaveDirectory() override {}
  void AddSpecial(const TreeEntry& entry) override { Describe(entry, entry.target); }
  uint64_t StoreContent(const TreeFile&) override { throw SystemError(ENOTSUP, "manifest"); }
  void AddStoredFile(const TreeEntry&, uint64_t) override { throw SystemError(ENOTSUP, "manifest"); }
  void AddFile(const TreeEntry& entry, const TreeFile& file) override {
    std::string chain;
    std::vector<uint8_t> piece(1 << 20);
    for (uint64_t at = 0; at < file.Size(); at += piece.size()) {
      const size_t n = std::min<uint64_t>(piece.size(), file.Size() - at);
      // A piece of zeros counts for nothing, hole or not: the copy need not have its holes in the same places.
      if (file.NextData(at) >= at + n) continue;
      file.ReadAt(at, piece.data(), n);
      if (std::all_of(piece.begin(), piece.begin() + static_cast<ptrdiff_t>(n), [](uint8_t b) { return b == 0; }))
        continue;
      const SquashfsDigest digest = DigestOf(piece.data(), n);
      chain += std::to_string(at);
      chain.append(digest.begin(), digest.end());
    }
    const SquashfsDigest digest = DigestOf(reinterpret_cast<const uint8_t*>(chain.data()), chain.size());
    Describe(entry, std::to_string(file.Size()) + std::string(digest.begin(), digest.end()));
  }

 private:
  void Describe(const TreeEntry& entry, const std::string& content) {
    std::ostringstream line;
    const std::string path(entry.path);
    line << std::oct << entry.mode << std::dec << ' ' << entry.uid << ':' << entry.gid << ' ' << entry.mtime << ' '
         << entry.rdev << ' ' << entry.links << ' ' << content;
    if (entry.link_id != 0) line << " = " << first_.try_emplace(entry.link_id, path).first->second;
    for (const TreeXattr& xattr : entry.xattrs) line << ' ' << xattr.name << '=' << xattr.value;
    lines_[path] = line.str();
  }
  std::map<std::string, std::string> lines_;
  std::map<uint64_t, std::string> first_;
};

void CheckSame(const std::map<std::string, std::string>& wanted, const std::map<std::string, std::string>& got,
               const std::string& what) {
  for (const auto& [path, line] : wanted) {
    const auto found = got.find(path);
    if (found == got.end()) {
      Check(false, what + ": lacks " + path);
    } else if (found->second != line) {
      Check(false, what + ": " + path + "\n  wanted " + line + "\n  got    " + found->second);
    }
  }
  Check(wanted.size() == got.size(), what + ": number of entries");
}

SquashfsWriteOptions Options(SquashfsCompression compression, int level = -1, uint32_t block_size = 131072) {
  SquashfsWriteOptions options;
  options.codec = {compression, level, block_size};
  options.threads = 2;
  return options;
}

UniqueFd Create(const fs::path& path) {
  return UniqueFd(CheckErrno(open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), "open"));
}

SquashfsWritten Build(const fs::path& folder, const fs::path& image, const SquashfsWriteOptions& options,
                      const std::vector<std::string>& exclude = {}, const SquashfsProgress& progress = {}) {
  const UniqueFd fd = Create(image);
  FileSink sink(fd.get(), 0);
  DirectoryTree tree(folder.string(), exclude);
  return WriteSquashfs(tree, sink, options, progress);
}

void Unsquash(const fs::path& image, const fs::path& target) {
  fs::remove_all(target);
  const pid_t child = CheckErrno(fork(), "fork");
  if (child == 0) {
    const int nothing = open("/dev/null", O_WRONLY);
    dup2(nothing, STDOUT_FILENO);
    execlp("unsquashfs", "unsquashfs", "-q", "-n", "-d", target.c_str(), image.c_str(), nullptr);
    _exit(127);
  }
  int status = 0;
  CheckErrno(waitpid(child, &status, 0), "waitpid");
  Check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "unsquashfs " + image.string());
}

void MakeFiles(const fs::path& root) {
  fs::create_directories(root / "sizes");
  unsigned seed = 1;
  for (const size_t size : {0, 1, 4095, 4096, 4097, 131071, 131072, 131073, 262144, 10 << 20})
    Write(root / "sizes" / std::to_string(size), RandomText(size, seed++));
  std::string noise(300000, '\0');
  std::mt19937 random(7);
  for (char& c : noise) c = static_cast<char>(random());
  Write(root / "sizes/noise", noise);
  Write(root / "sizes/zeros", std::string(400000, '\0'));

  fs::create_directories(root / "same");
  for (const char* name : {"a", "b", "c"}) {
    Write(root / "same" / name, RandomText(500000, 99));
    Write(root / "same" / (std::string(name) + "-small"), RandomText(5000, 98));
  }

  fs::create_directories(root / "sparse");
  const UniqueFd hole = Create(root / "sparse/hole");
  CheckErrno(ftruncate(hole.get(), 64 << 20), "ftruncate");
  CheckErrno(pwrite(hole.get(), "middle", 6, 40000000), "pwrite");
  const UniqueFd empty = Create(root / "sparse/all");
  CheckErrno(ftruncate(empty.get(), 1000000), "ftruncate");
  const UniqueFd end = Create(root / "sparse/end");
  CheckErrno(pwrite(end.get(), "end", 3, 3 << 20), "pwrite");
}

void MakeNames(const fs::path& root) {
  fs::create_directories(root / "names");
  for (const std::string& name :
       {std::string("new\nline"), std::string("bad-\xff\xfe-utf8"), std::string("\x80"), std::string("a b"),
        std::string(255, 'n'), std::string("..."), std::string("-d"), std::string("\xc3\xa9"),
        std::string("back\\slash"), std::string("a"), std::string("a.b"), std::string("A")})
    Write(root / "names" / name, name);
  fs::path deep = root / "deep";
  for (int i = 0; i < 200; ++i) deep /= "d" + std::to_string(i);
  fs::create_directories(deep);
  Write(deep / "bottom", "here");
  fs::create_directories(root / "empty");
}

void MakeLarge(const fs::path& root) {
  fs::create_directories(root / "many");
  for (int i = 0; i < 6000; ++i)
    Write(root / "many" / ("file-number-" + std::to_string(i)), i % 3 != 0 ? "" : std::to_string(i));
  const UniqueFd hole = Create(root / "hole");
  CheckErrno(ftruncate(hole.get(), int64_t{5} << 30), "ftruncate");
  CheckErrno(pwrite(hole.get(), "beyond 4 GiB", 12, 4500000000), "pwrite");
}

void MakeSpecials(const fs::path& root) {
  const fs::path at = root / "special";
  fs::create_directories(at);
  fs::create_symlink("../sizes/1", at / "link");
  fs::create_symlink(std::string(4000, 'x'), at / "long-link");
  Write(at / "one", RandomText(200000, 5));
  fs::create_hard_link(at / "one", at / "two");
  fs::create_hard_link(at / "one", root / "three");
  CheckErrno(mkfifo((at / "fifo").c_str(), 0640), "mkfifo");
  fs::create_hard_link(at / "fifo", at / "fifo-too");
  Write(at / "setuid", "#!/bin/sh\n");
  // unsquashfs gives these bits to what root unpacks.
  CheckErrno(chmod((at / "setuid").c_str(), IsRoot() ? 06755 : 0755), "chmod");
  fs::create_directories(at / "sticky");
  CheckErrno(chmod((at / "sticky").c_str(), 01777), "chmod");
  Write(at / "with-xattrs", "x");
  for (const char* path : {"with-xattrs", "sticky", "two"}) {
    setxattr((at / path).c_str(), "user.comment", "a value", 7, 0);
    setxattr((at / path).c_str(), "user.empty", "", 0, 0);
    const std::string large(2000, path[0]);
    setxattr((at / path).c_str(), "user.large", large.data(), large.size(), 0);
  }
  if (!IsRoot()) return;
  CheckErrno(mknod((at / "char").c_str(), S_IFCHR | 0600, makedev(1, 3)), "mknod");
  CheckErrno(mknod((at / "block").c_str(), S_IFBLK | 0660, makedev(259, 70000)), "mknod");
  CheckErrno(mknod((at / "socket").c_str(), S_IFSOCK | 0755, 0), "mknod");
  setxattr((at / "with-xattrs").c_str(), "trusted.secret", "t", 1, 0);
  const unsigned char capability[20] = {0, 0, 0, 2, 0, 4};
  setxattr((at / "setuid").c_str(), "security.capability", capability, sizeof(capability), 0);
  lsetxattr((at / "link").c_str(), "trusted.link", "l", 1, 0);
  lsetxattr((at / "fifo").c_str(), "trusted.fifo", "f", 1, 0);
  CheckErrno(lchown((at / "link").c_str(), 1234, 4321), "lchown");
  CheckErrno(lchown((at / "with-xattrs").c_str(), 4000000000U, 77), "lchown");
}

void TestRoundTrips(const Scratch& scratch) {
  const fs::path root = scratch / "tree";
  MakeFiles(root);
  MakeNames(root);
  MakeSpecials(root);
  SetTime(root / "special/link", 123456789);
  SetTime(root / "special/one", 4000000000);
  SetTime(root / "names", 1);
  SetTime(root / "special", 1700000000);
  SetTime(root, 1600000000);
  const auto wanted = Manifest::Of(root);

  const fs::path image = scratch / "image";
  const std::vector<SquashfsWriteOptions> variants = {
      Options(SquashfsCompression::kGzip),          Options(SquashfsCompression::kZstd),
      Options(SquashfsCompression::kLz4),           Options(SquashfsCompression::kXz, 1),
      Options(SquashfsCompression::kGzip, 1, 4096), Options(SquashfsCompression::kZstd, 15, 1 << 20),
      Options(SquashfsCompression::kLz4, 9, 65536), Options(SquashfsCompression::kXz, 0, 4096),
  };
  for (const SquashfsWriteOptions& options : variants) {
    const std::string what = std::string(SquashfsCompressionName(static_cast<uint16_t>(options.codec.compression))) +
                             " blocks of " + std::to_string(options.codec.block_size);
    uint64_t last = 0;
    bool rising = true;
    const SquashfsWritten written = Build(root, image, options, {}, [&](uint64_t bytes) {
      rising = rising && bytes >= last;
      last = bytes;
      return true;
    });
    Check(written.size == fs::file_size(image) && written.size % 4096 == 0, what + ": size");
    Check(written.entries == wanted.size(), what + ": entries");
    Check(rising && last == written.input_bytes && last > (64U << 20), what + ": progress");
    Unsquash(image, scratch / "out");
    CheckSame(wanted, Manifest::Of(scratch / "out"), what);
  }
  fs::remove_all(scratch / "out");
}

void TestLarge(const Scratch& scratch) {
  const fs::path root = scratch / "large";
  MakeLarge(root);
  Build(root, scratch / "image", Options(SquashfsCompression::kLz4));
  Check(fs::file_size(scratch / "image") < (8 << 20), "a hole takes no room");
  Unsquash(scratch / "image", scratch / "out");
  CheckSame(Manifest::Of(root), Manifest::Of(scratch / "out"), "large");
  fs::remove_all(scratch / "out");
  fs::remove_all(root);
}

void TestSameBytes(const Scratch& scratch) {
  const fs::path root = scratch / "tree";
  for (const auto compression : {SquashfsCompression::kGzip, SquashfsCompression::kZstd}) {
    SquashfsWriteOptions options = Options(compression, 1);
    Build(root, scratch / "image", options);
    const std::string first = Read(scratch / "image");
    for (const unsigned threads : {1U, 5U}) {
      options.threads = threads;
      Build(root, scratch / "image", options);
      Check(Read(scratch / "image") == first, "the same bytes with " + std::to_string(threads) + " threads");
    }
  }
}

void TestEncrypted(const Scratch& scratch) {
  const auto parameters = [] {
    XtsParameters made;
    made.volume_key = SecretBuffer(64);
    for (size_t i = 0; i < made.volume_key.size(); ++i) made.volume_key.data()[i] = static_cast<uint8_t>(i * 7 + 1);
    return made;
  };
  constexpr uint64_t kOffset = 1 << 20;
  const SquashfsWriteOptions options = Options(SquashfsCompression::kZstd, 1);
  Build(scratch / "tree", scratch / "image", options);
  const std::string plain = Read(scratch / "image");
  const UniqueFd fd = Create(scratch / "encrypted");
  XtsSink sink(std::make_unique<FileSink>(fd.get(), kOffset), parameters());
  DirectoryTree tree((scratch / "tree").string(), {});
  const SquashfsWritten written = WriteSquashfs(tree, sink, options, {});
  sink.Finish();
  // In it are files with several names.
  Check(tree.ContentSize(false) == written.input_bytes, "what is in a folder, added up");
  Check(!tree.ContentSize(true), "adding up ends when it is told to");
  Check(fs::file_size(scratch / "encrypted") == kOffset + written.size, "the encrypted image's size");
  XtsSource source(std::make_shared<FileSource>(fd.get(), kOffset, written.size), parameters());
  std::string decrypted(written.size, '\0');
  source.ReadAt(0, decrypted.data(), decrypted.size());
  Check(decrypted == plain, "the encrypted image is the plain one");
}

void TestDuplicates(const Scratch& scratch) {
  const fs::path root = scratch / "duplicates";
  fs::create_directories(root);
  Write(root / "a", RandomText(3 << 20, 11));
  const uint64_t once = Build(root, scratch / "image", Options(SquashfsCompression::kLz4)).size;
  // The last of them is cut off the end of what was written; the one before is overwritten by new content.
  Write(root / "b", RandomText(3 << 20, 11));
  Write(root / "c", RandomText(100, 12));
  Write(root / "d", RandomText(3 << 20, 11));
  const uint64_t thrice = Build(root, scratch / "image", Options(SquashfsCompression::kLz4)).size;
  Check(thrice <= once + 4096, "duplicates are stored once");
  Unsquash(scratch / "image", scratch / "out");
  CheckSame(Manifest::Of(root), Manifest::Of(scratch / "out"), "duplicates");
}

void TestOptions(const Scratch& scratch) {
  const fs::path root = scratch / "options";
  fs::create_directories(root / "keep/cache");
  fs::create_directories(root / "cache/deep");
  Write(root / "cache/deep/file", "x");
  Write(root / "keep/cache/file", "x");
  Write(root / "old", "x");
  SetTime(root / "old", 1000);
  if (IsRoot()) CheckErrno(lchown((root / "old").c_str(), 55, 66), "lchown");
  SquashfsWriteOptions options = Options(SquashfsCompression::kGzip);
  options.owner = TreeOwner{};
  options.source_date_epoch = 1000000;
  const SquashfsWritten written = Build(root, scratch / "image", options, {"cache", "keep/cache/file", "ol"});
  Check(written.entries == 4, "what is excluded is left out");
  const std::string image = Read(scratch / "image");
  const auto* bytes = reinterpret_cast<const uint8_t*>(image.data());
  Check((bytes[8] | bytes[9] << 8 | bytes[10] << 16 | bytes[11] << 24) == 1000000, "the image has the time given");
  Unsquash(scratch / "image", scratch / "out");
  Check(!fs::exists(scratch / "out/cache") && fs::exists(scratch / "out/keep/cache"), "exclude means whole paths");
  struct stat st {};
  stat((scratch / "out/old").c_str(), &st);
  Check(st.st_mtim.tv_sec == 1000 && (!IsRoot() || (st.st_uid == 0 && st.st_gid == 0)), "owner and an older time");
  stat((scratch / "out/keep").c_str(), &st);
  Check(st.st_mtim.tv_sec == 1000000, "a newer time is cut");

  fs::create_directories(scratch / "nothing");
  Check(Build(scratch / "nothing", scratch / "image", options).entries == 1, "an empty folder");
  Unsquash(scratch / "image", scratch / "out");
  Check(fs::is_empty(scratch / "out"), "an empty folder comes back");
}

void TestErrors(const Scratch& scratch) {
  const fs::path root = scratch / "errors";
  const fs::path image = scratch / "image";
  fs::create_directories(root);
  Write(root / "file", RandomText(4 << 20, 3));
  const auto zstd = Options(SquashfsCompression::kZstd);
  CheckError(
      ECANCELED, [&] { Build(root, image, zstd, {}, [](uint64_t bytes) { return bytes < 1000000; }); }, "cancel");
  CheckError(
      EINVAL, [&] { Build(root, image, Options(SquashfsCompression::kGzip, 13)); }, "level");
  CheckError(
      EINVAL, [&] { Build(root, image, Options(SquashfsCompression::kGzip, 6, 5000)); }, "block size");
  CheckError(
      ENOTSUP, [&] { Build(root, image, Options(SquashfsCompression::kLzo)); }, "lzo");
  CheckError(
      ENOENT, [&] { Build(root / "none", image, zstd); }, "no folder");
  CheckError(
      ENOTDIR, [&] { Build(root / "file", image, zstd); }, "not a folder");
  CheckError(
      EFBIG,
      [&] {
        const UniqueFd fd = Create(image);
        FileSink sink(fd.get(), 0, 100000);
        DirectoryTree tree(root.string(), {});
        WriteSquashfs(tree, sink, zstd, {});
      },
      "no room");
  if (fs::exists("/dev/full")) {
    CheckError(
        ENOSPC,
        [&] {
          const UniqueFd fd(CheckErrno(open("/dev/full", O_RDWR | O_CLOEXEC), "open"));
          FileSink sink(fd.get(), 0);
          DirectoryTree tree(root.string(), {});
          WriteSquashfs(tree, sink, zstd, {});
        },
        "a full disk");
  }
  CheckError(
      ESTALE,
      [&] {
        Build(root, image, zstd, {}, [&](uint64_t bytes) {
          if (bytes > 0) CheckErrno(truncate((root / "file").c_str(), 10), "truncate");
          return true;
        });
      },
      "a file that gets shorter");

  // Deep enough that the way back goes through directories opened anew.
  fs::path deep = root / "deep";
  for (int i = 0; i < 100; ++i) deep /= "d";
  fs::create_directories(deep);
  Write(deep / "z", "x");
  Write(root / "deep/z", "x");
  CheckError(
      ESTALE,
      [&] {
        bool moved = false;
        int entries = 0;
        Build(root, image, zstd, {"file"}, [&](uint64_t) {
          if (++entries > 100 && !moved) {
            moved = true;
            fs::rename(root / "deep", scratch / "moved");
            fs::create_symlink(scratch / "moved", root / "deep");
          }
          return true;
        });
      },
      "a folder that is moved away and replaced by a link to it");
}

/// A source that breaks the rules.
class BadTree final : public TreeSource {
 public:
  explicit BadTree(std::vector<std::string> names) : names_(std::move(names)) {}
  void Walk(TreeVisitor& visitor) override {
    TreeEntry root;
    root.mode = S_IFDIR | 0755;
    visitor.EnterDirectory(root);
    for (const std::string& name : names_) {
      TreeEntry entry;
      entry.path = name;
      entry.mode = S_IFIFO | 0644;
      visitor.AddSpecial(entry);
    }
    visitor.LeaveDirectory();
  }

 private:
  std::vector<std::string> names_;
};

void TestBadNames(const Scratch& scratch) {
  const std::vector<std::vector<std::string>> lists = {{"b", "a"}, {"a", "a"}, {".."}, {"."}, {std::string(257, 'a')}};
  for (const auto& names : lists) {
    CheckError(
        EINVAL,
        [&] {
          const UniqueFd fd = Create(scratch / "image");
          FileSink sink(fd.get(), 0);
          BadTree tree(names);
          WriteSquashfs(tree, sink, Options(SquashfsCompression::kLz4), {});
        },
        "names " + names.front());
  }
}

void TestCopy(const Scratch& scratch) {
  const SquashfsWritten built = Build(scratch / "duplicates", scratch / "image", Options(SquashfsCompression::kZstd));
  const std::string image = Read(scratch / "image");
  const auto copy = [&](const std::string& bytes, std::optional<uint64_t> length = std::nullopt) {
    Write(scratch / "source", bytes);
    const UniqueFd from(CheckErrno(open((scratch / "source").c_str(), O_RDONLY | O_CLOEXEC), "open"));
    const UniqueFd to = Create(scratch / "copy");
    FileSink sink(to.get(), 0);
    return CopySquashfs(FileSource(from.get(), 0, bytes.size()), length, sink, {});
  };
  Check(copy(image + std::string(10000, 'x')).size == built.size, "a copy's size");
  Check(Read(scratch / "copy") == image, "a copy's bytes");
  const std::string more = image + std::string(5000, 'x');
  Check(copy(more + "y", more.size()).size == image.size() + 8192, "the size of a copy with what follows");
  Check(Read(scratch / "copy") == more + std::string(3192, '\0'), "the bytes of a copy with what follows");
  CheckError(
      EINVAL, [&] { copy(more, 4096); }, "a copy shorter than the image");
  CheckError(
      EOVERFLOW, [&] { copy(more, more.size() + 1); }, "a copy longer than the source");
  std::string bad = image;
  bad[0] = 'x';
  CheckError(
      EBADMSG, [&] { copy(bad); }, "a wrong magic number");
  CheckError(
      EBADMSG, [&] { copy(image.substr(0, 50)); }, "shorter than a superblock");
  CheckError(
      EBADMSG, [&] { copy(image.substr(0, image.size() / 2)); }, "an image that ends early");
}

int Run() {
  try {
    const Scratch scratch;
    TestRoundTrips(scratch);
    TestSameBytes(scratch);
    TestLarge(scratch);
    TestEncrypted(scratch);
    TestDuplicates(scratch);
    TestOptions(scratch);
    TestErrors(scratch);
    TestBadNames(scratch);
    TestCopy(scratch);
  } catch (const std::exception& error) {
    Check(false, error.what());
  }
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace sifcrypt

int main() { return sifcrypt::Run(); }
