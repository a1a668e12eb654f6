// The scratch of a build: files as a string would be, at every edge of a block and of its memory; names, links and folders; what is on
// the disk; the ends of memory and disk; threads. Prints what failed and exits 1, or nothing and exits 0.
#include "core/scratch_tree.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/xattr.h>

#include <algorithm>
#include <functional>
#include <iostream>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "core/system_error.h"

namespace sifcrypt {
namespace {

constexpr uint64_t kMebibyte = 1 << 20;

/// A tree and a second descriptor of the file behind it.
struct Scratch {
  explicit Scratch(uint64_t memory, uint64_t disk = 64 * kMebibyte, uint64_t most_nodes = 1000) {
    char name[] = "/tmp/sifcrypt-scratch-XXXXXX";
    UniqueFd spill(CheckErrno(mkostemp(name, O_CLOEXEC), "mkostemp"));
    unlink(name);
    file = UniqueFd::Duplicate(spill.get());
    tree = std::make_unique<ScratchTree>(std::make_unique<BlockStore>(memory, std::move(spill), disk), most_nodes);
  }
  std::string Spilled() const {
    struct stat info {};
    fstat(file.get(), &info);
    std::string bytes(static_cast<size_t>(info.st_size), '\0');
    Check(pread(file.get(), bytes.data(), bytes.size(), 0) == info.st_size, "the spilled bytes are read");
    return bytes;
  }
  uint64_t OnDisk() const {
    struct stat info {};
    fstat(file.get(), &info);
    return static_cast<uint64_t>(info.st_blocks) * 512;
  }
  ScratchTree::Id Make(const std::string& name, mode_t mode = S_IFREG | 0644, ScratchTree::Id in = ScratchTree::kRoot) {
    return tree->Make(in, name, {mode, 0, 7, 8, {}}).st_ino;
  }
  std::string Content(ScratchTree::Id id) {
    std::string bytes(static_cast<size_t>(tree->Attributes(id).st_size), '\1');
    bytes.resize(tree->Read(id, 0, bytes.data(), bytes.size()));
    return bytes;
  }
  uint64_t Free() const { return tree->Statistics().f_bfree; }
  UniqueFd file;
  std::unique_ptr<ScratchTree> tree;
};

/// Two files at the same time, so that blocks lie across each other and runs are short; small enough that all edges meet.
void TestLikeStrings(uint64_t memory, const std::string& what) {
  Scratch scratch(memory);
  std::mt19937 random(1);
  const auto below = [&random](uint64_t end) { return std::uniform_int_distribution<uint64_t>(0, end - 1)(random); };
  struct File {
    ScratchTree::Id id;
    std::string model;
  };
  const uint64_t free_before = scratch.Free();
  std::vector<File> files{{scratch.Make("a"), ""}, {scratch.Make("b"), ""}};
  constexpr uint64_t kMost = 300'000;
  for (int step = 0; step < 3000; ++step) {
    File& file = files[below(2)];
    // Often right at a block's edge.
    const uint64_t at = below(2) == 0 ? below(kMost) : below(kMost / 4096) * 4096;
    const uint64_t size = below(2) == 0 ? below(20'000) + 1 : below(4) * 4096 + 1;
    switch (below(6)) {
      case 0:
      case 1: {
        const std::string bytes(size, static_cast<char>('a' + step % 26));
        Check(scratch.tree->Write(file.id, at, bytes.data(), size) == size, what + ": all of it is written");
        if (file.model.size() < at + size) file.model.resize(at + size);
        file.model.replace(at, size, bytes);
        break;
      }
      case 2:
        scratch.tree->SetAttributes(file.id, {.size = at});
        file.model.resize(at);
        break;
      case 3: {
        scratch.tree->Allocate(file.id, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, size);
        if (at < file.model.size()) {
          const size_t n = std::min<uint64_t>(size, file.model.size() - at);
          file.model.replace(at, n, n, '\0');
        }
        break;
      }
      case 4: {
        const int mode = std::vector<int>{0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE}[below(3)];
        scratch.tree->Allocate(file.id, mode, at, size);
        if (mode != FALLOC_FL_KEEP_SIZE && file.model.size() < at + size) file.model.resize(at + size);
        if (mode == FALLOC_FL_ZERO_RANGE) file.model.replace(at, size, size, '\0');
        break;
      }
      default: {
        std::string bytes(size, '\1');
        const size_t n = scratch.tree->Read(file.id, at, bytes.data(), size);
        const std::string wanted = at < file.model.size() ? file.model.substr(at, size) : "";
        Check(bytes.substr(0, n) == wanted, what + ": what is read, step " + std::to_string(step));
      }
    }
    if (step % 50 == 0)
      for (File& each : files) Check(scratch.Content(each.id) == each.model, what + ": step " + std::to_string(step));
  }
  for (File& file : files) {
    Check(scratch.Content(file.id) == file.model, what + ": the end");
    // Data and holes partition the file, and holes are zeros.
    for (uint64_t at = 0; at < file.model.size();) {
      const uint64_t hole = scratch.tree->Seek(file.id, at, SEEK_HOLE);
      if (hole >= file.model.size()) break;
      uint64_t data = file.model.size();
      try {
        data = scratch.tree->Seek(file.id, hole, SEEK_DATA);
      } catch (const SystemError& none) {
        Check(none.error() == ENXIO, what + ": no data behind");
      }
      Check(file.model.find_first_not_of('\0', hole) >= data, what + ": a hole holds nothing");
      at = data;
    }
  }
  for (const char* name : {"a", "b"}) scratch.tree->Unlink(ScratchTree::kRoot, name);
  Check(scratch.Content(files[0].id) == files[0].model, what + ": it is there as long as it is used");
  for (const File& file : files) scratch.tree->Forget(file.id, 1);
  Check(scratch.Free() == free_before, what + ": all blocks are free again");
  CheckError(
      ESTALE, [&] { scratch.tree->Attributes(files[0].id); }, what + ": gone");
}

void TestSecrecy() {
  Scratch scratch(4 * kMebibyte);
  const std::string marker = "nobody-reads-this-marker-on-the-disk";
  std::string text;
  while (text.size() < 3 * kMebibyte) text += marker;
  for (const char* name : {"a", "b", "c"}) scratch.tree->Write(scratch.Make(name), 0, text.data(), text.size());
  const std::string spilled = scratch.Spilled();
  Check(spilled.size() >= 4 * kMebibyte, "what does not fit into memory lies in the file");
  Check(spilled.find(marker.substr(0, 12)) == std::string::npos, "and not in plain");
  Check(spilled.substr(0, 4096) != spilled.substr(36 * 4096, 4096), "equal blocks look different");
  for (const char* name : {"a", "b", "c"}) {
    const auto found = scratch.tree->Lookup(ScratchTree::kRoot, name);
    Check(found && scratch.Content(found->st_ino) == text, "all of it can be read");
    scratch.tree->Forget(found->st_ino, 2);
    scratch.tree->Unlink(ScratchTree::kRoot, name);
  }
  Check(scratch.OnDisk() < kMebibyte, "room that is free goes back to the disk");
}

void TestFull() {
  Scratch scratch(4 * kMebibyte, 2 * kMebibyte, 4);
  const ScratchTree::Id id = scratch.Make("a");
  const std::string text(5 * kMebibyte, 'x');
  Check(scratch.tree->Write(id, 0, text.data(), text.size()) == text.size(), "memory and disk");
  Check(scratch.tree->Write(id, text.size(), text.data(), text.size()) == kMebibyte, "as much as there is room for");
  CheckError(
      ENOSPC, [&] { scratch.tree->Write(id, 6 * kMebibyte, text.data(), 1); }, "full");
  Check(scratch.tree->Write(id, 100, text.data(), 1) == 1, "what is there can be overwritten");
  Check(scratch.Spilled().size() <= 2 * kMebibyte, "no more than it may take on the disk");
  scratch.tree->SetAttributes(id, {.size = 4096});
  Check(scratch.tree->Write(id, 4096, text.data(), text.size()) == text.size(), "room again");
  CheckError(
      EFBIG, [&] { scratch.tree->Write(id, UINT64_MAX - 1, text.data(), 2); }, "too far");
  scratch.tree->SetAttributes(id, {.size = 10'000});
  const uint64_t free_before = scratch.Free();
  for (const int mode : {0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE})
    CheckError(
        ENOSPC, [&] { scratch.tree->Allocate(id, mode, 0, uint64_t{1} << 40); }, "more than there is");
  Check(scratch.Free() == free_before && scratch.Content(id) == text.substr(0, 10'000), "nothing of it was taken");
  scratch.tree->Allocate(id, FALLOC_FL_KEEP_SIZE, 0, free_before * 4096);
  Check(scratch.Free() == 3, "all but what it had");
  scratch.tree->SetAttributes(id, {.size = 10'000});
  Check(scratch.Free() == free_before, "what lies behind its end is given back");
  scratch.Make("b");
  scratch.Make("c");
  CheckError(
      ENOSPC, [&] { scratch.Make("d"); }, "no more files");
  // Without a file there is memory alone.
  ScratchTree memory(std::make_unique<BlockStore>(4 * kMebibyte, UniqueFd(), UINT64_MAX), 10);
  const ScratchTree::Id other = memory.Make(ScratchTree::kRoot, "a", {S_IFREG | 0600, 0, 0, 0, {}}).st_ino;
  Check(memory.Write(other, 0, text.data(), text.size()) == 4 * kMebibyte, "memory alone");
}

void TestSparse() {
  Scratch scratch(4 * kMebibyte);
  const ScratchTree::Id id = scratch.Make("lastlog");
  const uint64_t far = uint64_t{1} << 42;
  scratch.tree->Write(id, far, "x", 1);
  const struct stat info = scratch.tree->Attributes(id);
  Check(info.st_size == static_cast<off_t>(far + 1) && info.st_blocks == 8, "a far byte takes one block");
  Check(scratch.tree->Seek(id, 5, SEEK_DATA) == far, "the hole before it");
  char byte = 1;
  Check(scratch.tree->Read(id, far - 1, &byte, 1) == 1 && byte == 0, "which is read as zero");
}

void TestNames() {
  Scratch scratch(4 * kMebibyte);
  ScratchTree& tree = *scratch.tree;
  constexpr ScratchTree::Id kRoot = ScratchTree::kRoot;
  const ScratchTree::Id folder = scratch.Make("folder", S_IFDIR | 02755);
  const ScratchTree::Id file = scratch.Make("file", S_IFREG | 0640, folder);
  tree.SetAttributes(folder, {.gid = 50});
  const ScratchTree::Id inherits = scratch.Make("inherits", S_IFDIR | 0755, folder);
  const struct stat inherited = tree.Attributes(inherits);
  Check(inherited.st_gid == 50 && (inherited.st_mode & S_ISGID) != 0, "a folder's group goes on");
  Check(tree.Attributes(folder).st_nlink == 3 && tree.Attributes(kRoot).st_nlink == 3, "links of folders");
  Check(tree.Link(file, kRoot, "second").st_nlink == 2, "links of a file");
  CheckError(
      EPERM, [&] { tree.Link(folder, kRoot, "no"); }, "a second name for a folder");
  CheckError(
      EEXIST, [&] { scratch.Make("second"); }, "a name that exists");
  CheckError(
      ENAMETOOLONG, [&] { scratch.Make(std::string(256, 'x')); }, "a long name");
  CheckError(
      ENOTEMPTY, [&] { tree.RemoveDirectory(kRoot, "folder"); }, "a folder that is not empty");
  CheckError(
      EEXIST, [&] { tree.Rename(folder, "file", kRoot, "second", RENAME_NOREPLACE); }, "not to replace");
  tree.Rename(folder, "inherits", kRoot, "moved", 0);
  Check(tree.Attributes(folder).st_nlink == 2 && tree.ParentOf(inherits) == kRoot, "a folder moves");
  CheckError(
      EISDIR, [&] { tree.Rename(kRoot, "second", kRoot, "moved", 0); }, "a file over a folder");
  tree.Rename(kRoot, "moved", kRoot, "folder", RENAME_EXCHANGE);
  Check(tree.Lookup(kRoot, "folder")->st_ino == inherits && tree.Lookup(kRoot, "moved")->st_ino == folder, "exchanged");
  const ScratchTree::Id other = scratch.Make("other");
  tree.Forget(other, 1);
  tree.Rename(kRoot, "second", kRoot, "other", 0);
  CheckError(
      ESTALE, [&] { tree.Attributes(other); }, "what was replaced is gone");
  Check(!tree.Lookup(kRoot, "second"), "the old name is gone");
  const ScratchTree::Id above = scratch.Make("above", S_IFDIR | 0755);
  const ScratchTree::Id below = scratch.Make("below", S_IFDIR | 0755, above);
  tree.RemoveDirectory(above, "below");
  tree.RemoveDirectory(kRoot, "above");
  tree.Forget(above, 1);
  Check(tree.ParentOf(below) == below, "a folder that somebody has open is nowhere once it and its parent are gone");
  tree.Forget(below, 1);
  tree.SetXattr(file, "user.a", "1", 0);
  CheckError(
      EEXIST, [&] { tree.SetXattr(file, "user.a", "2", XATTR_CREATE); }, "an attribute that exists");
  CheckError(
      ENODATA, [&] { tree.SetXattr(file, "user.b", "2", XATTR_REPLACE); }, "one that does not");
  CheckError(
      ENOSPC, [&] { tree.SetXattr(file, "user.b", std::string(64 << 10, 'x'), 0); }, "too many");
  Check(tree.XattrNames(file) == std::string("user.a\0", 7) && tree.Xattr(file, "user.a") == "1", "attributes");
}

/// What goes while a folder is listed must not make others come twice or not at all.
void TestListing() {
  Scratch scratch(4 * kMebibyte);
  for (int i = 0; i < 100; ++i) scratch.Make("f" + std::to_string(i));
  std::vector<std::string> seen;
  uint64_t place = 2;
  for (int round = 0; round < 1000; ++round) {
    std::string name;
    scratch.tree->List(ScratchTree::kRoot, place, false, [&](const std::string& next, const struct stat&, uint64_t at) {
      if (!name.empty()) return false;
      name = next;
      place = at;
      return true;
    });
    if (name.empty()) break;
    seen.push_back(name);
    scratch.tree->Unlink(ScratchTree::kRoot, name);
  }
  Check(seen.size() == 100 && std::set<std::string>(seen.begin(), seen.end()).size() == 100, "each once");
  // Nor must it go on for ever when all that comes is renamed.
  for (int i = 0; i < 10; ++i) scratch.Make("f" + std::to_string(i));
  place = 2;
  int listed = 0;
  for (std::string name = "-"; !name.empty() && listed < 100; ++listed) {
    name.clear();
    scratch.tree->List(ScratchTree::kRoot, place, false, [&](const std::string& next, const struct stat&, uint64_t at) {
      if (!name.empty()) return false;
      name = next;
      place = at;
      return true;
    });
    if (!name.empty()) scratch.tree->Rename(ScratchTree::kRoot, name, ScratchTree::kRoot, "g" + name, 0);
  }
  Check(listed == 11, "renamed ones come once: " + std::to_string(listed));
}

void TestThreads() {
  Scratch scratch(4 * kMebibyte);
  std::vector<std::thread> threads;
  for (int number = 0; number < 4; ++number)
    threads.emplace_back([&scratch, number] {
      std::mt19937 random(static_cast<unsigned>(number));
      const std::string mine(10'000, static_cast<char>('a' + number));
      for (int round = 0; round < 60; ++round) {
        const std::string name = std::to_string(random() % 8) + "-" + std::to_string(number);
        try {
          const ScratchTree::Id id = scratch.Make(name);
          for (int part = 0; part < 40; ++part) scratch.tree->Write(id, random() % 500'000, mine.data(), mine.size());
          const std::string all = scratch.Content(id);
          Check(all.find_first_not_of(std::string{mine[0], '\0'}) == std::string::npos, "a thread's file is its own");
          scratch.tree->Forget(id, 1);
        } catch (const SystemError& failure) {
          Check(failure.error() == EEXIST, failure.what());
          scratch.tree->Unlink(ScratchTree::kRoot, name);
        }
      }
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace sifcrypt

int main() {
  using namespace sifcrypt;
  TestLikeStrings(64 * kMebibyte, "in memory");
  TestLikeStrings(0, "on the disk");
  TestSecrecy();
  TestFull();
  TestSparse();
  TestNames();
  TestListing();
  TestThreads();
  return failures == 0 ? 0 : 1;
}
