// Reads and extracts what mksquashfs makes and compares it with the tree it was made from; then damages small
// images in a few thousand ways and asks for no more than an error. Exit code 77: mksquashfs is missing.
// Build: g++ -std=c++20 -D_GNU_SOURCE -Inative this
// native/core/{extract,file_range,squashfs_decompress,squashfs_reader,unfolding}.cc
//   -ldeflate -lzstd -llz4 -llzma
#include "core/squashfs_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <new>
#include <random>
#include <set>
#include <source_location>
#include <thread>

#include "core/extract.h"
#include "core/file_range.h"
#include "core/unfolding.h"

namespace {
std::atomic<size_t> largest_allocation = 0;
}

// Not inline: the compiler would complain that free() is given what new returned.
[[gnu::noinline]] void* operator new(size_t size) {
  size_t seen = largest_allocation;
  while (size > seen && !largest_allocation.compare_exchange_weak(seen, size)) {
  }
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace sifcrypt {
namespace {

namespace fs = std::filesystem;
using Bytes = std::vector<uint8_t>;
/// Path to everything that is known of it, as text.
using Snapshot = std::map<std::string, std::string>;

int failures = 0;

void Check(bool good, const std::string& what, std::source_location at = std::source_location::current()) {
  if (good) return;
  ++failures;
  std::fprintf(stderr, "line %u: %s\n", at.line(), what.c_str());
}

template <typename Call>
void CheckError(int wanted, const std::string& what, Call call,
                std::source_location at = std::source_location::current()) {
  int got = 0;
  try {
    call();
  } catch (const SystemError& error) {
    got = error.error();
  }
  Check(got == wanted, what + ": errno " + std::to_string(got) + " and not " + std::to_string(wanted), at);
}

class MemorySource final : public ByteSource {
 public:
  explicit MemorySource(Bytes bytes) : bytes_(std::move(bytes)) {}
  uint64_t Size() const override { return bytes_.size(); }
  void ReadAt(uint64_t offset, void* out, size_t size) const override {
    ++reads;
    if (!RangeFits(offset, size, bytes_.size())) throw SystemError(EOVERFLOW, "read");
    if (size > 0) memcpy(out, bytes_.data() + offset, size);
  }
  /// How often it was read from.
  mutable std::atomic<size_t> reads = 0;

 private:
  Bytes bytes_;
};

Bytes ReadFile(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(in), {});
}

std::shared_ptr<const SquashfsReader> Open(const fs::path& image) {
  const UniqueFd fd(CheckErrno(open(image.c_str(), O_RDONLY | O_CLOEXEC), "open"));
  return std::make_shared<const SquashfsReader>(std::make_shared<FileSource>(fd.get(), 0, fs::file_size(image)));
}

uint64_t Digest(const uint8_t* data, size_t size, uint64_t seed = 0xcbf29ce484222325u) {
  for (size_t i = 0; i < size; ++i) seed = (seed ^ data[i]) * 0x100000001b3u;
  return seed;
}

std::string Describe(const Inode& inode) {
  std::string text = std::to_string(FileTypeBits(inode.type) | inode.mode) + " " + std::to_string(inode.uid) + ":" +
                     std::to_string(inode.gid) + " @" + std::to_string(inode.mtime);
  if (inode.type == InodeType::kFile) text += " size " + std::to_string(inode.size);
  if (inode.type != InodeType::kDirectory) text += " links " + std::to_string(inode.nlink);
  if (inode.type == InodeType::kSymlink) text += " -> " + inode.target;
  if (inode.rdev != 0) text += " dev " + std::to_string(inode.rdev);
  return text;
}

void AddXattrs(std::string& text, const std::map<std::string, std::string>& xattrs) {
  for (const auto& [name, value] : xattrs) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(value.data());
    text += " " + name + "=" + std::to_string(value.size()) + "/" + std::to_string(Digest(bytes, value.size()));
  }
}

Snapshot OfFolder(const fs::path& root) {
  Snapshot snapshot;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    const std::string path = entry.path();
    struct stat st {};
    CheckErrno(lstat(path.c_str(), &st), "lstat");
    Inode inode;
    for (const InodeType type : {InodeType::kDirectory, InodeType::kFile, InodeType::kSymlink, InodeType::kBlockDevice,
                                 InodeType::kCharacterDevice, InodeType::kFifo, InodeType::kSocket})
      if (FileTypeBits(type) == (st.st_mode & S_IFMT)) inode.type = type;
    inode.mode = st.st_mode & 07777;
    inode.uid = st.st_uid;
    inode.gid = st.st_gid;
    inode.mtime = static_cast<uint32_t>(st.st_mtime);
    inode.size = static_cast<uint64_t>(st.st_size);
    inode.nlink = static_cast<uint32_t>(st.st_nlink);
    inode.rdev = st.st_rdev;
    if (inode.type == InodeType::kSymlink) inode.target = fs::read_symlink(path);
    std::string text = Describe(inode);
    if (inode.type == InodeType::kFile) {
      const Bytes content = ReadFile(path);
      text += " content " + std::to_string(Digest(content.data(), content.size()));
    }
    std::map<std::string, std::string> xattrs;
    char names[4096];
    const ssize_t length = llistxattr(path.c_str(), names, sizeof(names));
    for (const char* name = names; name < names + length; name += strlen(name) + 1) {
      char value[65536];
      const ssize_t size = CheckErrno(lgetxattr(path.c_str(), name, value, sizeof(value)), "lgetxattr");
      xattrs[name] = std::string(value, static_cast<size_t>(size));
    }
    AddXattrs(text, xattrs);
    snapshot[path.substr(root.native().size())] = text;
  }
  return snapshot;
}

Snapshot OfImage(const SquashfsReader& reader) {
  Snapshot snapshot;
  std::vector<std::pair<std::string, InodeRef>> pending{{"", reader.Root()}};
  while (!pending.empty()) {
    const auto [folder, ref] = pending.back();
    pending.pop_back();
    const InodePtr directory = reader.GetInode(ref);
    reader.ReadDir(*directory, 0, [&](const DirectoryEntry& entry) {
      const std::string path = folder + "/" + std::string(entry.name);
      const InodePtr inode = reader.GetInode(entry.ref);
      Check(inode->type == entry.type, path + " has two types");
      Check(inode->inode_number == entry.inode_number, path + " has two numbers");
      Check(Describe(*reader.ReadInode(entry.ref)) == Describe(*inode), path + " is another when it is not kept");
      std::string text = Describe(*inode);
      if (entry.type == InodeType::kFile) {
        Bytes content(inode->size);
        Check(reader.Read(*inode, 0, content.data(), content.size()) == content.size(), path + " is short");
        text += " content " + std::to_string(Digest(content.data(), content.size()));
      }
      std::map<std::string, std::string> xattrs;
      for (const Xattr& xattr : reader.Xattrs(*inode)) xattrs[xattr.name] = xattr.value;
      AddXattrs(text, xattrs);
      snapshot[path] = text;
      if (entry.type == InodeType::kDirectory) pending.emplace_back(path, entry.ref);
      return true;
    });
  }
  return snapshot;
}

void CheckSame(const Snapshot& wanted, const Snapshot& got, const std::string& what) {
  Check(wanted.size() == got.size(), what + ": " + std::to_string(got.size()) + " entries");
  for (const auto& [path, text] : wanted) {
    const auto found = got.find(path);
    if (found == got.end()) {
      Check(false, what + ": " + path + " is missing");
    } else {
      Check(found->second == text, what + ": " + path + "\n  " + text + "\n  " + found->second);
    }
    if (failures > 20) std::exit(1);
  }
}

void Write(const fs::path& path, const Bytes& bytes) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

Bytes Noise(size_t size, unsigned seed, unsigned letters = 256) {
  std::minstd_rand random(seed);
  Bytes bytes(size);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random() >> 7) % letters;
  return bytes;
}

Bytes Text(const std::string& text) { return Bytes(text.begin(), text.end()); }

void SetTime(const fs::path& path, time_t seconds) {
  const timespec times[2] = {{seconds, 0}, {seconds, 0}};
  CheckErrno(utimensat(AT_FDCWD, path.c_str(), times, AT_SYMLINK_NOFOLLOW), "utimensat");
}

bool SetXattr(const fs::path& path, const char* name, const std::string& value) {
  return lsetxattr(path.c_str(), name, value.data(), value.size(), 0) == 0;
}

void MakeSmallTree(const fs::path& root) {
  fs::create_directories(root / "sub/below");
  Write(root / "empty", {});
  Write(root / "hello", Text("hello\n"));
  Write(root / "blocks", Noise(20000, 1, 16));
  Write(root / "noise", Noise(9000, 2));
  Write(root / "sub/loop-here", Text("x"));
  Write(root / "sub/below/tail", Noise(4097, 3, 8));
  fs::create_symlink("sub/below", root / "link");
  fs::create_symlink("/sub/../link/tail", root / "absolute");
  fs::create_symlink("self", root / "self");
  fs::create_symlink("../../../../hello", root / "sub/above");
  fs::create_symlink("missing", root / "dangling");
  fs::create_hard_link(root / "hello", root / "sub/second");
  fs::create_directory(root / "none");
  CheckErrno(mkfifo((root / "fifo").c_str(), 0640), "mkfifo");
  CheckErrno(mknod((root / "socket").c_str(), S_IFSOCK | 0600, 0), "mknod");
  UniqueFd sparse(CheckErrno(open((root / "sparse").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644), "open"));
  CheckErrno(pwrite(sparse.get(), "middle", 6, 300000), "pwrite");
  CheckErrno(ftruncate(sparse.get(), 700001), "ftruncate");
  SetXattr(root / "hello", "user.one", "1");
  SetXattr(root / "blocks", "user.long", std::string(700, 'v'));
  SetXattr(root / "noise", "user.long", std::string(700, 'v'));
  SetXattr(root / "sub", "user.folder", std::string("\0\1", 2));
  SetTime(root / "hello", 1);
  SetTime(root / "link", 1000000000);
  CheckErrno(chmod((root / "hello").c_str(), 0444), "chmod");
  if (geteuid() == 0) {
    CheckErrno(mknod((root / "null").c_str(), S_IFCHR | 0666, makedev(1, 3)), "mknod");
    CheckErrno(mknod((root / "disk").c_str(), S_IFBLK | 0600, makedev(259, 70000)), "mknod");
    CheckErrno(lchown((root / "blocks").c_str(), 1234, 70000), "lchown");
    CheckErrno(chmod((root / "blocks").c_str(), 06755), "chmod");
    SetXattr(root / "blocks", "trusted.secret", "t");
    SetXattr(root / "link", "trusted.link", "l");
  }
  CheckErrno(chmod((root / "sub").c_str(), 01777), "chmod");
  SetTime(root / "sub", 77);
}

void MakeLargeTree(const fs::path& root) {
  MakeSmallTree(root);
  Write(root / "large", Noise(5 << 20, 4, 20));
  Write(root / "large-noise", Noise((3 << 20) + 1, 5));
  UniqueFd sparse(CheckErrno(open((root / "holes").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644), "open"));
  // Long enough that the block list of 4 KiB blocks is remembered in several places.
  for (const off_t at : {off_t{0}, off_t{10} << 20, (off_t{33} << 20) - 3})
    CheckErrno(pwrite(sparse.get(), "island", 6, at), "pwrite");
  fs::create_directory(root / "many");
  for (int i = 0; i < 5000; ++i) Write(root / "many" / ("entry-" + std::to_string(i * 7919 % 100003)), {});
  for (int i = 0; i < 300; ++i) Write(root / "sub/below" / std::to_string(i), Noise(static_cast<size_t>(i) * 37, 6, 4));
  fs::path deep = root / "deep";
  for (int i = 0; i < 200; ++i) deep /= "d";
  fs::create_directories(deep);
  Write(deep / "bottom", Text("bottom"));
}

void MakeImage(const fs::path& tree, const fs::path& image, const std::string& options) {
  const std::string command = "mksquashfs '" + tree.string() + "' '" + image.string() +
                              "' -noappend -quiet -no-progress " + options + " >/dev/null";
  if (std::system(command.c_str()) != 0) {
    std::fprintf(stderr, "mksquashfs %s failed\n", options.c_str());
    std::exit(1);
  }
}

void TestDirectories(const SquashfsReader& reader) {
  const InodePtr many = reader.GetInode(reader.Resolve("/many", true));
  Check(many->index.size() > 3, "a large directory has an index");
  std::vector<std::string> names;
  std::vector<uint64_t> cookies{0};
  reader.ReadDir(*many, 0, [&](const DirectoryEntry& entry) {
    names.emplace_back(entry.name);
    cookies.push_back(entry.next_cookie);
    Check(reader.Lookup(*many, entry.name) == entry.ref, "lookup of " + names.back());
    return true;
  });
  Check(names.size() == 5000, "all names are there");
  for (size_t i = 0; i < cookies.size(); i += 13) {
    std::string next;
    reader.ReadDir(*many, cookies[i], [&](const DirectoryEntry& entry) {
      next = entry.name;
      return false;
    });
    Check(next == (i < names.size() ? names[i] : ""), "resuming at " + std::to_string(i));
  }
  for (const char* name : {"", ".", "..", "a", "entry-", "entry-00", "entry-99999999", "z", "entry-1/"})
    Check(!reader.Lookup(*many, name), std::string("no ") + name);
  CheckError(EINVAL, "a cookie past the end",
             [&] { reader.ReadDir(*many, uint64_t{1} << 62, [](auto...) { return true; }); });
}

void TestReads(const SquashfsReader& reader, const fs::path& tree) {
  for (const char* path : {"/large", "/large-noise", "/holes", "/sparse", "/sub/below/299", "/hello"}) {
    const Bytes wanted = ReadFile(tree.string() + path);
    const InodePtr file = reader.GetInode(reader.Resolve(path, true));
    std::minstd_rand random(7);
    for (int i = 0; i < 200; ++i) {
      const uint64_t offset =
          i < 20 ? wanted.size() - std::min<size_t>(wanted.size(), random() % 5000) : random() % (wanted.size() + 10);
      const size_t size = random() % (i % 3 == 0 ? 300000 : 5000);
      const size_t expected = std::min<uint64_t>(size, wanted.size() - std::min<uint64_t>(offset, wanted.size()));
      Bytes got(size);
      const size_t n = reader.Read(*file, offset, got.data(), size);
      Check(n == expected && (n == 0 || memcmp(got.data(), wanted.data() + offset, n) == 0),
            std::string(path) + " at " + std::to_string(offset) + ", " + std::to_string(size) + " bytes");
    }
    for (uint64_t offset = 0; offset < wanted.size();) {
      bool hole = false;
      const uint64_t end = reader.ExtentEnd(*file, offset, wanted.size(), &hole);
      Check(end > offset && end <= wanted.size(), std::string(path) + ": extents advance");
      for (uint64_t i = offset; hole && i < end; ++i)
        if (wanted[i] != 0) return Check(false, std::string(path) + ": a hole has bytes");
      offset = end;
    }
  }
  const InodePtr holes = reader.GetInode(reader.Resolve("/holes", true));
  bool hole = false;
  const uint64_t end = reader.ExtentEnd(*holes, 1 << 20, UINT64_MAX, &hole);
  Check(hole && end > (9u << 20) && end <= (10u << 20), "the hole is found");
  Check(reader.ExtentEnd(*holes, 1 << 20, 5000, &hole) == (1 << 20) + 5000, "no more than the limit");
  CheckError(EISDIR, "a directory", [&] { reader.Read(*reader.GetInode(reader.Root()), 0, nullptr, 0); });
  CheckError(EINVAL, "a fifo", [&] { reader.Read(*reader.GetInode(reader.Resolve("fifo", false)), 0, nullptr, 0); });
}

void TestResolve(const SquashfsReader& reader) {
  const InodeRef hello = reader.Resolve("/hello", false);
  for (const char* path : {"hello", "//hello", "./hello", "../../hello", "sub/../hello", "sub/above",
                           "link/../../hello", "sub/second", "link/../../sub/./above"})
    Check(reader.Resolve(path, true) == hello, path);
  const InodeRef tail = reader.Resolve("/sub/below/tail", false);
  Check(reader.Resolve("/link/tail", false) == tail && reader.Resolve("absolute", true) == tail, "links are followed");
  for (const char* path : {"", "/", ".", "/..", "sub/.."}) Check(reader.Resolve(path, true) == reader.Root(), path);
  Check(reader.GetInode(reader.Resolve("self", false))->target == "self", "the last link is not followed");
  CheckError(ELOOP, "a loop of links", [&] { reader.Resolve("self", true); });
  CheckError(ENOENT, "a dangling link", [&] { reader.Resolve("dangling", true); });
  CheckError(ENOENT, "a missing name", [&] { reader.Resolve("/sub/nothing/at/all", true); });
  CheckError(ENOTDIR, "below a file", [&] { reader.Resolve("/hello/..", true); });
}

void TestExtract(const SquashfsReader& reader, const fs::path& tree, const fs::path& work) {
  const bool root = geteuid() == 0;
  const fs::path all = work / "all";
  fs::create_directory(all);
  CheckErrno(chmod(all.c_str(), 0711), "chmod");
  ExtractRequest request;
  request.path = "/";
  request.target = all;
  request.preserve_owner = root;
  uint64_t reported = 0;
  request.on_progress = [&](uint64_t bytes) {
    Check(bytes >= reported || request.threads != 1, "progress grows");
    reported = bytes;
    return true;
  };
  const Extracted extracted = Extract(reader, request);
  const Snapshot wanted = OfFolder(tree);
  Check(extracted.entries == wanted.size() && reported > 0, "entries are counted");
  CheckSame(wanted, OfFolder(all), "extracted");
  struct stat st {
  }, other{};
  CheckErrno(stat(all.c_str(), &st), "stat");
  Check((st.st_mode & 07777) == 0711, "the target keeps its mode");
  CheckErrno(stat((all / "holes").c_str(), &st), "stat");
  Check(st.st_blocks * 512 < (4 << 20), "holes stay holes");
  CheckErrno(stat((all / "hello").c_str(), &st), "stat");
  CheckErrno(stat((all / "sub/second").c_str(), &other), "stat");
  Check(st.st_ino == other.st_ino, "hard links stay links");
  CheckError(EEXIST, "a second time", [&] { Extract(reader, request); });

  const fs::path plain = work / "plain";
  fs::create_directory(plain);
  ExtractRequest unprivileged;
  unprivileged.path = "/";
  unprivileged.target = plain;
  unprivileged.threads = 1;
  const Extracted less = Extract(reader, unprivileged);
  Check(less.skipped_devices == (root ? 2u : 0u) && !fs::exists(plain / "null"), "devices are left out");
  CheckErrno(stat((plain / "blocks").c_str(), &st), "stat");
  Check((st.st_mode & 07777) == (root ? 0755u : 0644u) && st.st_uid == geteuid(), "no setuid bit without the owner");
  CheckErrno(stat((plain / "sub").c_str(), &st), "stat");
  Check((st.st_mode & 07777) == 01777 && st.st_mtime == 77, "directories get mode and time last");

  const fs::path one = work / "one";
  fs::create_directories(one / "part");
  ExtractRequest single;
  single.target = one;
  single.path = "/link/tail/";
  Check(Extract(reader, single).entries == 1 && ReadFile(one / "tail") == ReadFile(tree / "sub/below/tail"),
        "one file");
  single.path = "link";
  single.target = one / "part";
  Check(Extract(reader, single).entries == 301 && fs::exists(one / "part/299"), "one directory");

  // What stands in the way is never followed.
  const fs::path trap = work / "trap", outside = work / "outside";
  fs::create_directory(trap);
  fs::create_directory(outside);
  single.path = "/";
  single.target = trap;
  fs::create_directory_symlink(outside, trap / "sub");
  CheckError(EEXIST, "a link where a directory belongs", [&] { Extract(reader, single); });
  fs::remove_all(trap);
  fs::create_directory(trap);
  fs::create_symlink(outside / "made", trap / "blocks");
  CheckError(EEXIST, "a link where a file belongs", [&] { Extract(reader, single); });
  Check(fs::is_empty(outside), "nothing is written elsewhere");

  const fs::path stopped = work / "stopped";
  fs::create_directory(stopped);
  single.target = stopped;
  single.on_progress = [](uint64_t) { return false; };
  CheckError(ECANCELED, "stopping", [&] { Extract(reader, single); });
  single.target = work / "nowhere";
  CheckError(ENOENT, "no target", [&] { Extract(reader, single); });
}

void TestThreads(const SquashfsReader& reader, const Snapshot& wanted) {
  std::vector<std::thread> threads;
  std::vector<Snapshot> got(4);
  for (Snapshot& snapshot : got) threads.emplace_back([&] { snapshot = OfImage(reader); });
  for (std::thread& thread : threads) thread.join();
  for (const Snapshot& snapshot : got) Check(snapshot == wanted, "a thread sees the same");
}

// Everything a reader can be asked, on an image that may say anything.
void Exercise(const Bytes& image) {
  SquashfsReader::Limits limits;
  limits.block_cache = size_t{4} << 20;
  limits.metadata_cache = size_t{1} << 20;
  limits.inode_cache = size_t{1} << 20;
  const SquashfsReader reader(std::make_shared<MemorySource>(image), limits);
  std::set<InodeRef> seen;
  std::vector<InodeRef> pending{reader.Root()};
  size_t entries = 0;
  Bytes buffer(100000);
  while (!pending.empty() && entries < 5000) {
    const InodeRef ref = pending.back();
    pending.pop_back();
    try {
      const InodePtr directory = reader.GetInode(ref);
      uint64_t cookie = 0;
      reader.ReadDir(*directory, 0, [&](const DirectoryEntry& entry) {
        if (++entries > 5000) return false;
        cookie = entry.next_cookie;
        try {
          reader.Lookup(*directory, entry.name);
          const InodePtr inode = reader.GetInode(entry.ref);
          reader.Xattrs(*inode);
          if (inode->type == InodeType::kDirectory && seen.insert(entry.ref).second) pending.push_back(entry.ref);
          if (inode->type == InodeType::kFile && inode->size > 0) {
            for (const uint64_t offset : {uint64_t{0}, inode->size / 2, inode->size - 1}) {
              bool hole = false;
              reader.Prefetch(*inode, offset);
              if (const auto fragment = reader.FragmentOf(*inode)) reader.PrefetchFragment(*fragment + 1);
              reader.ExtentEnd(*inode, offset, 1 << 20, &hole);
              reader.Read(*inode, offset, buffer.data(), buffer.size());
            }
          }
        } catch (const SystemError&) {
        }
        return true;
      });
      for (const uint64_t damaged : {cookie ^ 1, cookie + 256, cookie << 3, cookie / 2})
        reader.ReadDir(*directory, damaged, [&](auto...) { return ++entries % 100 != 0; });
    } catch (const SystemError&) {
    }
  }
  try {
    reader.Resolve("/sub/below/../../link/tail", true);
  } catch (const SystemError&) {
  }
}

/// A fragment block that was fetched ahead is not read again for the files in it.
void TestFragments(const Bytes& image) {
  const auto source = std::make_shared<const MemorySource>(image);
  const SquashfsReader reader(source);
  const InodePtr tail = reader.GetInode(reader.Resolve("/hello", true));
  const auto fragment = reader.FragmentOf(*tail);
  Check(fragment == 0, "a small file lies in the first fragment block");
  if (!fragment) return;
  const size_t before = source->reads;
  reader.PrefetchFragment(*fragment);
  const size_t fetched = source->reads;
  Check(fetched > before, "a fragment block is fetched");
  char byte = 0;
  Check(reader.Read(*tail, 0, &byte, 1) == 1 && source->reads == fetched, "what was fetched is not read again");
  reader.PrefetchFragment(reader.info().fragment_count);
  Check(source->reads == fetched, "there is nothing behind the last fragment block");
  Check(!reader.FragmentOf(*reader.GetInode(reader.Root())), "a folder has no fragment");
}

/// S23: whatever is in an image, reading it neither crashes nor hangs nor takes more than a little memory.
void TestDamage(const Bytes& image, int rounds, const fs::path& work, const std::string& what) {
  std::minstd_rand random(static_cast<unsigned>(image.size()));
  // Tables and metadata follow the data; a third of the changes hit the superblock.
  uint64_t inode_table = 0;
  memcpy(&inode_table, image.data() + 64, sizeof(inode_table));
  int opened = 0;
  largest_allocation = 0;
  for (int i = 0; i < rounds; ++i) {
    Bytes damaged = image;
    for (unsigned changes = 1 + random() % 3; changes > 0; --changes) {
      const uint64_t start = random() % 3 == 0 ? 0 : inode_table;
      const size_t end = start == 0 ? 96 : image.size();
      const size_t at = start + random() % (end - start);
      const uint32_t kinds[] = {0,          1,          0xff,       0xffff,
                                0xffffffff, 0x7fffffff, 0x80000000, static_cast<uint32_t>(random() * 2)};
      const uint32_t value = kinds[random() % std::size(kinds)];
      const size_t width = std::min<size_t>(size_t{1} << random() % 3, image.size() - at);
      if (random() % 2 == 0)
        damaged[at] ^= static_cast<uint8_t>(1 << random() % 8);
      else
        memcpy(damaged.data() + at, &value, width);
    }
    try {
      Exercise(damaged);
      ++opened;
      if (i % 20 == 0) {
        const fs::path target = work / "damaged";
        fs::create_directory(target);
        const SquashfsReader reader(std::make_shared<MemorySource>(damaged));
        ExtractRequest request;
        request.path = "/";
        request.target = target;
        request.threads = 2;
        uint64_t calls = 0;
        request.on_progress = [&](uint64_t bytes) { return bytes < (100u << 20) && ++calls < 1000; };
        try {
          Extract(reader, request);
        } catch (const SystemError&) {
        }
        fs::permissions(target, fs::perms::owner_all);
        const std::string clean =
            "chmod -R u+rwx '" + target.string() + "' 2>/dev/null; rm -rf '" + target.string() + "'";
        Check(std::system(clean.c_str()) == 0, "cleaning up");
      }
    } catch (const SystemError&) {
    }
  }
  std::printf("S23: %s: %d of %d damaged images opened, largest allocation %zu KiB\n", what.c_str(), opened, rounds,
              largest_allocation.load() >> 10);
  Check(largest_allocation < (size_t{32} << 20), "no huge allocation");
  for (size_t size = 0; size < image.size(); size += 1 + image.size() / 300) {
    try {
      Exercise(Bytes(image.begin(), image.begin() + static_cast<ptrdiff_t>(size)));
      Check(size >= image.size() - 4096, "a cut image opens");
    } catch (const SystemError&) {
    }
  }
}

/// Where the entry called `name` starts in an image with plain metadata.
size_t EntryOf(const Bytes& image, const std::string& name) {
  const auto found = std::search(image.begin() + 96, image.end(), name.begin(), name.end());
  Check(found != image.end(), name + " is in the image");
  return static_cast<size_t>(found - image.begin()) - 8;
}

void TestEvil(const Bytes& image, const fs::path& work) {
  const fs::path target = work / "evil";
  const auto extract = [&](const Bytes& bytes) {
    fs::remove_all(target);
    fs::create_directory(target);
    ExtractRequest request;
    request.path = "/";
    request.target = target;
    const auto done = Extract(SquashfsReader(std::make_shared<MemorySource>(bytes)), request);
    return done.entries + done.skipped_devices;
  };
  const auto walk = [](const Bytes& bytes) {
    const SquashfsReader reader(std::make_shared<MemorySource>(bytes));
    TreeWalk walk(reader, "/");
    uint64_t entries = 0;
    while (const auto folder = walk.Next(reader, 1000, 100000)) entries += folder->entries.size();
    return entries;
  };
  // What is not extracted is not listed either.
  const auto refused = [&](int error, const std::string& what, const Bytes& bytes) {
    CheckError(error, what, [&] { extract(bytes); });
    CheckError(error, what + ", listed", [&] { walk(bytes); });
  };
  Check(extract(image) == walk(image), "what is extracted, or would be by root, is listed");
  const size_t entry = EntryOf(image, "loop-here");

  Bytes loop = image;
  memcpy(loop.data() + entry, image.data() + 32, 2);  // the root's offset in the only inode block
  refused(EBADMSG, "a directory inside itself", loop);
  const SquashfsReader reader(std::make_shared<MemorySource>(loop));
  Check(reader.Resolve("/sub/loop-here/sub/loop-here/hello", true) == reader.Resolve("/hello", true),
        "a loop can be walked");

  // One name more than an inode says it has.
  for (const char* path : {"/noise", "/hello"}) {
    Bytes again = image;
    const InodeRef ref = SquashfsReader(std::make_shared<MemorySource>(image)).Resolve(path, false);
    Check(ref <= UINT16_MAX, "the inode is in the first block");
    again[entry] = static_cast<uint8_t>(ref);
    again[entry + 1] = static_cast<uint8_t>(ref >> 8);
    refused(EBADMSG, std::string(path) + " once more", again);
  }

  for (const char* name : {"loop/here", "/oop-here"}) {
    Bytes slash = image;
    memcpy(slash.data() + entry + 8, name, 9);
    refused(EBADMSG, "a name with a slash", slash);
  }
  Bytes twice = image;
  memcpy(twice.data() + EntryOf(image, "sparse") + 8, "socket", 6);
  refused(EBADMSG, "two entries of one name", twice);
  const SquashfsReader mounted(std::make_shared<MemorySource>(twice));
  CheckError(EBADMSG, "two entries of one name, served", [&] {
    mounted.ReadDir(*mounted.GetInode(mounted.Root()), 0, [](const DirectoryEntry&) { return true; });
  });
  Bytes nul = image;
  nul[entry + 10] = 0;
  refused(EBADMSG, "a name with a NUL", nul);
  Bytes dots = image;
  dots[entry + 6] = 1;
  memcpy(dots.data() + entry + 8, "..", 2);
  refused(EBADMSG, "a name that leads up", dots);
  Bytes type = image;
  type[entry + 4] = 9;
  refused(EBADMSG, "an unknown type", type);
  Bytes magic = image;
  magic[0] ^= 1;
  refused(EBADMSG, "no squashfs", magic);
  Bytes lzo = image;
  lzo[20] = 3;
  refused(ENOTSUP, "lzo", lzo);
  refused(EBADMSG, "nothing at all", {});
}

/// Little-endian numbers and text, one after the other.
class Packed {
 public:
  Packed& U16(uint64_t value) { return Number(value, 2); }
  Packed& U32(uint64_t value) { return Number(value, 4); }
  Packed& U64(uint64_t value) { return Number(value, 8); }
  Packed& Raw(const Bytes& more) {
    bytes.insert(bytes.end(), more.begin(), more.end());
    return *this;
  }
  /// As metadata blocks, stored plainly.
  Packed& Metadata(const Bytes& content) {
    for (size_t at = 0; at < content.size(); at += 8192) {
      const size_t size = std::min<size_t>(8192, content.size() - at);
      U16(0x8000 | size);
      bytes.insert(bytes.end(), content.begin() + static_cast<ptrdiff_t>(at),
                   content.begin() + static_cast<ptrdiff_t>(at + size));
    }
    return *this;
  }
  Bytes bytes;

 private:
  Packed& Number(uint64_t value, int size) {
    for (int i = 0; i < size; ++i) bytes.push_back(static_cast<uint8_t>(value >> 8 * i));
    return *this;
  }
};

/// A root directory with one empty file "name", and an index of as many entries as there can be.
void TestIndex() {
  constexpr size_t kEntries = 65535;
  Packed inodes;
  inodes.U16(2).U16(0644).U16(0).U16(0).U32(0).U32(2).U32(0).U32(UINT32_MAX).U32(0).U32(0);
  const size_t root = inodes.bytes.size();
  const Bytes listing = Packed().U32(0).U32(0).U32(2).U16(0).U16(0).U16(2).U16(3).Raw(Text("name")).bytes;
  inodes.U16(8).U16(0755).U16(0).U16(0).U32(0).U32(1);
  inodes.U32(2).U32(listing.size() + 3).U32(0).U32(1).U16(kEntries).U16(0).U32(UINT32_MAX);
  for (size_t i = 0; i < kEntries; ++i) inodes.U32(0).U32(0).U32(255).Raw(Bytes(256, 'a'));
  const Bytes inode_table = Packed().Metadata(inodes.bytes).bytes;
  const Bytes directory_table = Packed().Metadata(listing).bytes;
  const size_t directories = 96 + inode_table.size();
  const size_t ids = directories + directory_table.size();
  const size_t id_table = ids + 6;
  Packed image;
  image.U32(0x73717368).U32(2).U32(0).U32(4096).U32(0).U16(1).U16(12).U16(0).U16(1).U16(4).U16(0);
  image.U64(root).U64(id_table + 8).U64(id_table).U64(UINT64_MAX).U64(96).U64(directories);
  image.U64(UINT64_MAX).U64(UINT64_MAX).Raw(inode_table).Raw(directory_table);
  image.Metadata(Packed().U32(0).bytes).U64(ids);

  const SquashfsReader reader(std::make_shared<MemorySource>(image.bytes));
  const InodePtr directory = reader.GetInode(reader.Root());
  Check(!directory->index.empty() && directory->index.size() <= 1024, "few entries of an index are kept");
  Check(reader.Lookup(*directory, "name").has_value() && !reader.Lookup(*directory, "other"),
        "a name is found by a long index");
  Check(!reader.info().has_xattrs, "no xattr table");
}

/// What is in an image: inodes and listings by their place in their tables, which are stored plainly.
class Tables {
 public:
  /// Of an inode that is added next.
  InodeRef NextInode() const { return Reference(inodes.bytes.size()); }
  void Head(int type) { inodes.U16(static_cast<uint64_t>(type)).U16(0755).U16(0).U16(0).U32(0).U32(++count_); }
  InodeRef EmptyFile(uint32_t links = 1) {
    const InodeRef ref = NextInode();
    Head(9);
    inodes.U64(96).U64(0).U64(0).U32(links).U32(UINT32_MAX).U32(0).U32(UINT32_MAX);
    return ref;
  }
  InodeRef FileWithXattrs() {
    const InodeRef ref = NextInode();
    Head(9);
    inodes.U64(96).U64(0).U64(0).U32(1).U32(UINT32_MAX).U32(0).U32(0);
    return ref;
  }
  /// Of blocks of 4096 bytes that are not stored.
  InodeRef Holes(uint64_t blocks) {
    const InodeRef ref = NextInode();
    Head(9);
    inodes.U64(96).U64(blocks * 4096).U64(0).U32(1).U32(UINT32_MAX).U32(0).U32(UINT32_MAX);
    inodes.bytes.resize(inodes.bytes.size() + blocks * 4);
    return ref;
  }
  /// Of a file's tail in the only fragment block.
  InodeRef Tail() {
    const InodeRef ref = NextInode();
    Head(2);
    inodes.U32(0).U32(0).U32(0).U32(1);
    return ref;
  }
  InodeRef Symlink(const std::string& target) {
    const InodeRef ref = NextInode();
    Head(3);
    inodes.U32(1).U32(target.size()).Raw(Text(target));
    return ref;
  }
  struct Entry {
    std::string name;
    InodeRef ref;
    int type;
  };
  /// Where a listing starts, and how long it is.
  struct Listing {
    size_t start;
    size_t size;
  };
  Listing List(const std::vector<Entry>& entries) {
    const size_t start = listings.bytes.size();
    for (size_t first = 0; first < entries.size();) {
      size_t end = first;
      while (end < entries.size() && end - first < 256 && entries[end].ref >> 16 == entries[first].ref >> 16) ++end;
      listings.U32(end - first - 1).U32(entries[first].ref >> 16).U32(1);
      for (; first < end; ++first) {
        const Entry& entry = entries[first];
        listings.U16(entry.ref & 0xffff).U16(0).U16(static_cast<uint64_t>(entry.type)).U16(entry.name.size() - 1);
        listings.Raw(Text(entry.name));
      }
    }
    return {start, listings.bytes.size() - start};
  }
  InodeRef Directory(const Listing& listing) {
    const InodeRef ref = NextInode();
    Head(8);
    const uint64_t place = Reference(listing.start);
    inodes.U32(2).U32(listing.size + 3).U32(place >> 16).U32(1).U16(0).U16(place & 0xffff).U32(UINT32_MAX);
    return ref;
  }
  InodeRef Directory(const std::vector<Entry>& entries) { return Directory(List(entries)); }

  /// `xattrs`: the only set of them, with so many.
  Bytes Image(InodeRef root, const Bytes& xattrs = {}, uint32_t xattr_count = 0) const {
    Packed image;
    const Bytes inode_table = Packed().Metadata(inodes.bytes).bytes;
    const Bytes listing_table = Packed().Metadata(listings.bytes).bytes;
    const Bytes xattr_table = Packed().Metadata(xattrs).bytes;
    const size_t block = 96;  // of the tails
    const size_t inode_start = block + 4096;
    const size_t listing_start = inode_start + inode_table.size();
    const size_t fragments = listing_start + listing_table.size();
    const size_t fragment_table = fragments + 2 + 16;
    const size_t ids = fragment_table + 8;
    const size_t id_table = ids + 6;
    const size_t values = id_table + 8;
    const size_t sets = values + xattr_table.size();
    const size_t set_table = sets + 2 + 16;
    image.U32(0x73717368).U32(count_).U32(0).U32(4096).U32(1).U16(1).U16(12).U16(0).U16(1).U16(4).U16(0);
    image.U64(root).U64(set_table + 24).U64(id_table).U64(xattr_count == 0 ? UINT64_MAX : set_table).U64(inode_start);
    image.U64(listing_start).U64(fragment_table).U64(UINT64_MAX);
    image.Raw(Bytes(4096, 'x')).Raw(inode_table).Raw(listing_table);
    image.Metadata(Packed().U64(block).U32(4096 | 1U << 24).U32(0).bytes).U64(fragments);
    image.Metadata(Packed().U32(0).bytes).U64(ids).Raw(xattr_table);
    image.Metadata(Packed().U64(0).U32(xattr_count).U32(0).bytes).U64(values).U32(1).U32(0).U64(sets);
    return image.bytes;
  }

  Packed inodes;
  Packed listings;

 private:
  static InodeRef Reference(size_t place) { return place / 8192 * 8194 << 16 | place % 8192; }
  uint32_t count_ = 0;
};

/// What made other readers of squashfs, Linux's and squashfs-tools', use memory that is not theirs: each is refused.
void TestPublished() {
  // Of an inode: behind 16 bytes that all have, of which the last four are its number.
  constexpr size_t kNumber = 12, kHead = 16;
  const auto refused = [](const std::string& what, const std::function<InodeRef(Tables&)>& make, size_t at, int size,
                          uint64_t value) {
    for (const bool is_damaged : {false, true}) {
      Tables tables;
      const InodeRef ref = make(tables);
      for (int i = 0; is_damaged && i < size; ++i)
        tables.inodes.bytes[ref + at + static_cast<size_t>(i)] = static_cast<uint8_t>(value >> 8 * i);
      const SquashfsReader reader(
          std::make_shared<MemorySource>(tables.Image(tables.Directory({{"it", ref, 2}, {"z", ref, 2}}))));
      const auto use = [&] {
        const InodePtr inode = reader.GetInode(ref);
        char byte = 0;
        if (inode->type == InodeType::kFile) reader.Read(*inode, 0, &byte, 1);
      };
      if (is_damaged)
        CheckError(EBADMSG, what, use);
      else
        use();
    }
  };
  const auto file = [](Tables& tables) { return tables.EmptyFile(); };
  const auto tail = [](Tables& tables) { return tables.Tail(); };
  const auto link = [](Tables& tables) { return tables.Symlink("target"); };
  refused("CVE-2024-26982: a number that is zero", file, kNumber, 4, 0);
  refused("a number that nothing has", file, kNumber, 4, 1000);
  refused("CVE-2025-40200: a size below zero", file, kHead + 8, 8, uint64_t{1} << 63);
  refused("a size of nothing but ones", file, kHead + 8, 8, UINT64_MAX);
  refused("a target with a size below zero", link, kHead + 4, 4, uint64_t{1} << 31);
  refused("a target of no bytes", link, kHead + 4, 4, 0);
  refused("a tail in a fragment block behind the last", tail, kHead + 4, 4, 1);
  refused("a tail that starts where its fragment block ends", tail, kHead + 8, 4, 4096);
  refused("a tail that starts far behind its fragment block", tail, kHead + 8, 4, UINT32_MAX);
}

/// Each refusal by its own words, since without it another one may come later and by chance.
void TestRefusals() {
  struct Change {
    size_t at;
    int size;
    uint64_t value;
  };
  using Changes = std::vector<Change>;
  const auto change = [](Bytes& bytes, size_t from, const Changes& changes) {
    for (const auto& [at, size, value] : changes)
      for (int i = 0; i < size; ++i)
        bytes.at(from + at + static_cast<size_t>(i)) = static_cast<uint8_t>(value >> 8 * i);
  };
  const auto says = [](const std::string& text, const std::function<void()>& call,
                       std::source_location at = std::source_location::current()) {
    std::string got = "nothing";
    try {
      call();
    } catch (const FormatError& error) {
      got = error.what();
    }
    Check(got.find(text) != std::string::npos, "not \"" + text + "\" but " + got, at);
  };

  Tables whole;
  const InodeRef file = whole.FileWithXattrs();
  const InodeRef root = whole.Directory({{"it", file, 2}});
  const Bytes xattrs = Packed().U16(0).U16(4).Raw(Text("name")).U32(8).Raw(Bytes(8, 0)).bytes;
  const auto opens = [](const Bytes& image) {
    const SquashfsReader reader(std::make_shared<MemorySource>(image));
    reader.Xattrs(*reader.GetInode(0));
  };
  const Bytes image = whole.Image(root, xattrs, 1);
  opens(image);
  constexpr size_t kInodeTable = 96 + 4096;
  uint64_t id_table = 0;
  memcpy(&id_table, image.data() + 48, sizeof(id_table));
  const std::vector<std::pair<std::string, Changes>> superblocks = {
      {"only 4.0 is known", {{28, 2, 3}}},
      {"only 4.0 is known", {{30, 2, 1}}},
      {"an impossible block size", {{12, 4, 2048}, {22, 2, 11}}},
      {"an impossible block size", {{12, 4, 2 << 20}, {22, 2, 21}}},
      {"an impossible block size", {{22, 2, 13}}},
      {"longer than the place it is in", {{40, 8, 95}}},
      {"longer than the place it is in", {{40, 8, image.size() + 1}}},
      {"an empty table", {{4, 4, 0}}},
      {"an empty table", {{26, 2, 0}}},
      {"a metadata table lies outside", {{64, 8, 95}}},
      {"a metadata table lies outside", {{72, 8, 4192}}},
      {"a metadata table lies outside", {{72, 8, image.size()}}},
      {"more inodes than the table can hold", {{4, 4, INT32_MAX}}},
      {"the id table lies outside", {{48, 8, 95}}},
      {"the id table lies outside", {{48, 8, image.size()}}},
      {"the fragment table lies outside", {{16, 4, UINT32_MAX}}},
      {"the xattr table lies outside", {{56, 8, image.size() - 15}}},
      {"the id table points outside", {{id_table, 8, 95}}},
      {"the id table points outside", {{id_table, 8, id_table}}},
      {"the id table is too short", {{26, 2, 2}}},
      {"the root is not a directory", {{32, 8, file}}},
      {"an impossible inode reference", {{32, 8, uint64_t{1} << 48 | root}}},
      {"a reference leaves its metadata table", {{32, 8, uint64_t{UINT32_MAX} << 16}}},
      {"a reference leaves its metadata block", {{32, 8, 8192}}},
  };
  uint64_t set_table = 0;
  memcpy(&set_table, image.data() + 56, sizeof(set_table));
  const std::vector<std::pair<std::string, Changes>> tables_of_blocks = {
      {"the xattr table lies outside", {{set_table, 8, 95}}},
      {"the xattr table lies outside", {{set_table, 8, set_table}}},
      {"a table is too short", {{set_table + 8, 4, 2}, {kInodeTable + 2 + file + 52, 4, 1}}},
      {"a metadata block has an impossible size", {{kInodeTable, 2, 0x8000}}},
      {"a metadata block has an impossible size", {{set_table - 18, 2, 0x8000 | 8000}}},
      {"a metadata block has an impossible size", {{kInodeTable, 2, 0x8000 | 8193}, {40, 8, image.size() + 16384}}},
      {"a metadata block crosses the end", {{kInodeTable, 2, 0x8000 | (whole.inodes.bytes.size() + 1)}}},
      {"a metadata table ends too early", {{32, 8, whole.inodes.bytes.size()}}},
  };
  for (const auto& [text, changes] : tables_of_blocks) {
    Bytes changed = image;
    changed.resize(image.size() + 16384);
    change(changed, 0, changes);
    says(text, [&] { opens(changed); });
  }
  for (const auto& [text, changes] : superblocks) {
    Bytes changed = image;
    change(changed, 0, changes);
    says(text, [&] { opens(changed); });
  }

  const std::vector<std::pair<std::string, Changes>> inodes = {
      {"an inode of unknown type", {{0, 2, 0}}},
      {"an inode of unknown type", {{0, 2, 15}}},
      {"owner is not in the id table", {{4, 2, 1}}},
      {"owner is not in the id table", {{6, 2, 1}}},
      {"an impossible inode number", {{12, 4, 0}}},
      {"an impossible inode number", {{12, 4, 3}}},
      {"a file is impossibly long", {{24, 8, uint64_t{1} << 63}}},
      {"a file's fragment is not in the fragment table", {{44, 4, 1}}},
      {"a file's tail lies outside", {{24, 8, 1}, {44, 4, 0}, {48, 4, 4096}}},
      {"a file's block list is longer than the inode table", {{24, 8, uint64_t{1} << 40}}},
      {"xattrs are not in the xattr table", {{52, 4, 1}}},
  };
  for (const auto& [text, changes] : inodes) {
    Tables tables = whole;
    change(tables.inodes.bytes, file, changes);
    says(text, [&] { opens(tables.Image(root, xattrs, 1)); });
  }

  // Behind a header of 12 bytes the entry "it".
  const std::vector<std::pair<std::string, Changes>> listings = {
      {"a directory header has too many entries", {{0, 4, 256}}},
      {"an impossible inode number", {{8, 4, 0}}},
      {"an impossible inode number", {{8, 4, 3}}},
      {"an unknown type", {{16, 2, 0}}},
      {"an unknown type", {{16, 2, 8}}},
      {"a name that is too long", {{18, 2, 256}}},
      {"ends inside an entry", {{18, 2, 2}}},
  };
  for (const auto& [text, changes] : listings) {
    Tables tables = whole;
    change(tables.listings.bytes, 0, changes);
    const SquashfsReader reader(std::make_shared<MemorySource>(tables.Image(root, xattrs, 1)));
    says(text, [&] { reader.ReadDir(*reader.GetInode(root), 0, [](const DirectoryEntry&) { return true; }); });
  }

  const std::vector<std::pair<std::string, Changes>> sets = {
      {"name has an impossible length", {{2, 2, 0}}},
      {"name has an impossible length", {{2, 2, 251}}},
      {"name has a NUL", {{4, 1, 0}}},
      {"value is too long", {{8, 4, 65537}}},
      {"an impossible xattr reference", {{0, 2, 0x100}, {12, 8, uint64_t{1} << 48}}},
      {"referred to in an impossible way", {{0, 2, 0x100}, {8, 4, 7}}},
  };
  for (const auto& [text, changes] : sets) {
    Bytes changed = xattrs;
    change(changed, 0, changes);
    says(text, [&] { opens(whole.Image(root, changed, 1)); });
  }

  // Of a file of one block the size word, behind 16 bytes that all have and 40 of a long file.
  const std::vector<std::pair<std::string, Changes>> blocks = {
      {"a data block has an impossible size", {{56, 4, 1U << 25 | 1}}},
      {"a data block has an impossible size", {{56, 4, 1U << 24}}},
      {"a data block has an impossible size", {{56, 4, 1U << 24 | 4097}}},
      {"a data block lies outside the image", {{16, 8, 1 << 20}, {56, 4, 1U << 24 | 4096}}},
      {"a data block lies outside the image", {{16, 8, UINT64_MAX}, {56, 4, 1U << 24 | 4096}}},
      {"decodes to the wrong length", {{56, 4, 1U << 24 | 100}}},
      {"longer than what it stands for", {{16, 8, 96}, {24, 8, 4095}, {56, 4, 1U << 24 | 4096}}},
  };
  for (const auto& [text, changes] : blocks) {
    Tables tables;
    const InodeRef holes = tables.Holes(1);
    change(tables.inodes.bytes, holes, changes);
    const InodeRef top = tables.Directory({{"it", holes, 2}});
    const SquashfsReader reader(std::make_shared<MemorySource>(tables.Image(top)));
    char byte = 0;
    says(text, [&] { reader.Read(*reader.GetInode(holes), 0, &byte, 1); });
  }

  // The only fragment block: 16 bytes before the table that points to where it is said to be.
  const std::vector<std::pair<std::string, Changes>> fragments = {
      {"a fragment block has an impossible size", {{8, 4, 1U << 25 | 1}}},
      {"a fragment block has an impossible size", {{8, 4, 1U << 24}}},
      {"a fragment block has an impossible size", {{8, 4, 1U << 24 | 4097}}},
      {"a data block lies outside the image", {{0, 8, 1 << 20}}},
      {"a file's tail lies outside", {{8, 4, 1U << 24 | 100}}},
  };
  for (const auto& [text, changes] : fragments) {
    Tables tables;
    const InodeRef tail = tables.Tail();
    tables.inodes.bytes[tail + 24] = 100;
    Bytes changed = tables.Image(tables.Directory({{"it", tail, 2}}));
    uint64_t table = 0;
    memcpy(&table, changed.data() + 80, sizeof(table));
    change(changed, table - 16, changes);
    const SquashfsReader reader(std::make_shared<MemorySource>(changed));
    char byte = 0;
    says(text, [&] { reader.Read(*reader.GetInode(tail), 0, &byte, 1); });
  }

  // A folder with an index of two entries, behind 40 bytes of the folder's own: each of 12 bytes and a name.
  const std::vector<std::pair<std::string, Changes>> indexes = {
      {"a directory is longer than the directory table", {{20, 4, INT32_MAX}}},
      {"a directory index has a name that is too long", {{48, 4, 256}}},
      {"a directory index is out of order", {{53, 4, 1 << 20}}},
      {"a directory index is out of order", {{40, 4, 2}, {53, 4, 1}}},
  };
  for (const auto& [text, changes] : indexes) {
    Tables tables;
    const InodeRef it = tables.EmptyFile();
    const InodeRef top = tables.Directory({{"it", it, 2}});
    tables.inodes.bytes[top + 32] = 2;
    for (int i = 0; i < 2; ++i) tables.inodes.U32(0).U32(0).U32(0).Raw(Text("a"));
    tables.inodes.Raw(Bytes(300, 'a'));
    opens(tables.Image(top));
    change(tables.inodes.bytes, top, changes);
    says(text, [&] { opens(tables.Image(top)); });
  }

  for (const std::string& target : {std::string(4097, 'a'), std::string("a\0b", 3)}) {
    Tables tables;
    const InodeRef link = tables.Symlink(target);
    const SquashfsReader reader(std::make_shared<MemorySource>(tables.Image(tables.Directory({{"it", link, 3}}))));
    says(target.size() > 4096 ? "target has an impossible length" : "target has a NUL", [&] { reader.GetInode(link); });
  }
}

/// Four times as much takes about four times as long, and not sixteen, also where it is refused.
void CheckLinear(const std::string& what, bool is_refused, int count, const std::function<Bytes(int)>& make,
                 const std::function<void(const SquashfsReader&)>& use) {
  double seconds[2] = {1e9, 1e9};
  for (int many = 0; many < 2; ++many) {
    const Bytes image = make(many == 0 ? count : 4 * count);
    for (int i = 0; i < 3; ++i) {
      const clock_t start = clock();
      bool refused = false;
      const SquashfsReader reader(std::make_shared<MemorySource>(image));
      try {
        use(reader);
      } catch (const FormatError&) {
        refused = true;
      }
      seconds[many] = std::min(seconds[many], static_cast<double>(clock() - start) / CLOCKS_PER_SEC);
      Check(refused == is_refused, what + (refused ? ": refused" : ": not refused"));
    }
  }
  if (getenv("SIFCRYPT_SHOW_TIMES") != nullptr) std::printf("%s: %f s, %f s\n", what.c_str(), seconds[0], seconds[1]);
  Check(seconds[1] < 8 * seconds[0] + 0.1,
        what + ": " + std::to_string(seconds[0]) + " s, and four times as much " + std::to_string(seconds[1]) + " s");
}

std::vector<Tables::Entry> Numbered(int count, InodeRef ref, int type) {
  std::vector<Tables::Entry> entries;
  for (int i = 0; i < count; ++i) entries.push_back({"n" + std::to_string(10000000 + i), ref, type});
  return entries;
}

/// Attributes that only root may set, as many as a file may have: the values are one.
Bytes LargeXattrs(uint32_t* count) {
  Packed xattrs;
  *count = 5000;
  for (uint32_t i = 0; i < *count; ++i) xattrs.U16(1).U16(3).Raw(Text(std::to_string(100 + i % 900))).U32(0);
  return xattrs.bytes;
}

void TestWork(const fs::path& work) {
  const auto walk = [](const SquashfsReader& reader) {
    TreeWalk walk(reader, "/");
    while (walk.Next(reader, 1 << 20, 64 << 20)) {
    }
  };
  const fs::path target = work / "work";
  uint64_t max_steps = ExtractRequest().max_steps;
  const auto extract = [&](const SquashfsReader& reader) {
    fs::remove_all(target);
    fs::create_directory(target);
    ExtractRequest request;
    request.path = "/";
    request.target = target;
    request.threads = 1;
    request.max_steps = max_steps;
    Extract(reader, request);
  };
  uint32_t xattr_count = 0;
  const Bytes xattrs = LargeXattrs(&xattr_count);

  const auto doubled = [](int count) {
    Tables tables;
    InodeRef below = tables.Directory(std::vector<Tables::Entry>{});
    for (int i = 0; i < count; ++i) below = tables.Directory({{"a", below, 1}, {"b", below, 1}});
    return tables.Image(below);
  };
  CheckLinear("folders that are in another twice, as deep as can be", true, 500, doubled, walk);
  const auto shared = [](int count) {
    Tables tables;
    // The folders come first, and what they list is where it will be.
    std::vector<Tables::Entry> entries;
    for (int i = 0; i < count; ++i)
      entries.push_back({"n" + std::to_string(1000000 + i), i * 40 / 8192 * 8194ULL << 16 | i * 40 % 8192, 1});
    const Tables::Listing listing = tables.List(entries);
    InodeRef last = 0;
    for (int i = 0; i <= count; ++i) last = tables.Directory(listing);
    return tables.Image(last);
  };
  CheckLinear("folders that all list all of them", true, 1000, shared, walk);
  CheckLinear(
      "entries of a folder", false, 20000,
      [](int count) {
        Tables tables;
        const InodeRef file = tables.EmptyFile(static_cast<uint32_t>(count));
        return tables.Image(tables.Directory(Numbered(count, file, 2)));
      },
      walk);
  CheckLinear(
      "inodes", false, 20000,
      [](int count) {
        Tables tables;
        std::vector<Tables::Entry> entries = Numbered(count, 0, 2);
        for (Tables::Entry& entry : entries) entry.ref = tables.EmptyFile();
        return tables.Image(tables.Directory(entries));
      },
      walk);
  CheckLinear(
      "tails in one fragment block", false, 500,
      [](int count) {
        Tables tables;
        std::vector<Tables::Entry> entries = Numbered(count, 0, 2);
        for (Tables::Entry& entry : entries) entry.ref = tables.Tail();
        return tables.Image(tables.Directory(entries));
      },
      extract);
  CheckLinear(
      "blocks of a file that are not there", false, 1 << 20,
      [](int count) {
        Tables tables;
        const InodeRef file = tables.Holes(static_cast<uint64_t>(count));
        return tables.Image(tables.Directory({{"holes", file, 2}}));
      },
      extract);
  CheckLinear(
      "files with one large set of attributes", false, 20,
      [&](int count) {
        Tables tables;
        std::vector<Tables::Entry> entries = Numbered(count, 0, 2);
        for (Tables::Entry& entry : entries) entry.ref = tables.FileWithXattrs();
        return tables.Image(tables.Directory(entries), xattrs, xattr_count);
      },
      extract);

  // And it ends.
  max_steps = 100000;
  const auto ends = [&](const std::string& what, const Bytes& image) {
    const SquashfsReader reader(std::make_shared<MemorySource>(image));
    try {
      extract(reader);
      Check(false, what + ": extracted");
    } catch (const FormatError& error) {
      Check(strstr(error.what(), "more than 100000 steps of work") != nullptr, what + ": " + error.what());
    }
  };
  Tables with_xattrs;
  std::vector<Tables::Entry> entries = Numbered(10, 0, 2);
  for (Tables::Entry& entry : entries) entry.ref = with_xattrs.FileWithXattrs();
  ends("attributes", with_xattrs.Image(with_xattrs.Directory(entries), xattrs, xattr_count));
  Tables with_holes;
  ends("holes", with_holes.Image(with_holes.Directory({{"holes", with_holes.Holes(200000), 2}})));
  Tables deep;
  std::vector<Tables::Entry> folders = Numbered(200, 0, 1);
  for (Tables::Entry& entry : folders) entry.ref = deep.Directory(std::vector<Tables::Entry>{});
  InodeRef top = deep.Directory(folders);
  for (int i = 0; i < 100; ++i) top = deep.Directory({{"d", top, 1}});
  ends("folders far down", deep.Image(top));
  max_steps = ExtractRequest().max_steps;

  // A way through a listing of two mebibytes, again and again.
  Tables far;
  std::vector<Tables::Entry> before;
  const InodeRef file = far.EmptyFile(8000);
  for (int i = 0; i < 8000; ++i) before.push_back({"n" + std::to_string(100000 + i) + std::string(240, 'n'), file, 2});
  std::string way;
  for (int i = 0; i < 800; ++i) way += "z/../";
  before.push_back({"y", far.Symlink(way + "z"), 3});
  before.push_back({"z", far.Directory(std::vector<Tables::Entry>{}), 1});
  const SquashfsReader reader(std::make_shared<MemorySource>(far.Image(far.Directory(before))));
  Check(reader.Resolve("/z/../z", true) == reader.Resolve("/z", true), "a way there");
  CheckError(EBADMSG, "a way through too much", [&] { reader.Resolve("/y", true); });
}

int Run(int rounds) {
  if (std::system("mksquashfs -version >/dev/null 2>&1") != 0) {
    std::puts("mksquashfs is missing");
    return 77;
  }
  char name[] = "/tmp/squashfs-reader-XXXXXX";
  if (mkdtemp(name) == nullptr) throw SystemError(errno, "mkdtemp");
  const fs::path work = name;
  umask(022);
  fs::create_directory(work / "tree");
  fs::create_directory(work / "small");
  MakeLargeTree(work / "tree");
  MakeSmallTree(work / "small");
  TestIndex();
  TestPublished();
  TestRefusals();
  TestWork(work);
  const Snapshot wanted = OfFolder(work / "tree");
  const fs::path image = work / "image";
  for (const char* options :
       {"-comp gzip", "-comp zstd -b 4096", "-comp lz4 -b 1M", "-comp xz", "-comp zstd -b 1M -always-use-fragments",
        "-comp gzip -b 4096 -no-fragments", "-noI -noD -noF -noX", "-no-exports -nopad -tailends"}) {
    MakeImage(work / "tree", image, options);
    const auto reader = Open(image);
    CheckSame(wanted, OfImage(*reader), options);
    TestDirectories(*reader);
    TestReads(*reader, work / "tree");
    TestResolve(*reader);
    Check(reader->info().has_xattrs == !reader->Xattrs(*reader->GetInode(reader->Resolve("/hello", true))).empty(),
          "whether there are xattrs");
    std::printf("%s: done\n", options);
  }
  MakeImage(work / "tree", image, "-comp zstd -b 64K");
  TestThreads(*Open(image), wanted);
  TestFragments(ReadFile(image));
  TestExtract(*Open(image), work / "tree", work);

  for (const char* options : {"-noI -noF -noX -b 4096", "-comp gzip -b 4096", "-comp zstd", "-comp lz4", "-comp xz"}) {
    MakeImage(work / "small", image, std::string(options) + " -nopad");
    if (strstr(options, "-noI") != nullptr) TestEvil(ReadFile(image), work);
    TestDamage(ReadFile(image), strstr(options, "-noI") != nullptr ? rounds * 4 : rounds, work, options);
  }
  fs::remove_all(work);
  std::printf(failures == 0 ? "all good\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace sifcrypt

/// The argument is how many damaged images are tried of each kind.
int main(int argc, char** argv) { return sifcrypt::Run(argc > 1 ? std::atoi(argv[1]) : 500); }
