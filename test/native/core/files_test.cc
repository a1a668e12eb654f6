// Files and what is written to them: an encrypting sink beside a plain model of it, parts of files at their edges, names that
// appear whole, locks, and the small things around processes. Prints what failed and exits 1, or the number of checks.
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "core/copy_range.h"
#include "core/file_range.h"
#include "core/process_image.h"
#include "core/publish.h"
#include "core/secret_buffer.h"
#include "core/slice_source.h"
#include "core/system_error.h"
#include "core/unique_fd.h"
#include "core/xts.h"

namespace sifcrypt {
namespace {

using Bytes = std::vector<uint8_t>;

class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "sifcrypt-files-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw SystemError(errno, "mkdtemp");
    path_ = name;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

UniqueFd OpenNew(const std::string& path) {
  return UniqueFd(CheckErrno(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600), "open"));
}

std::string TextOf(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Copies of one key: parameters own theirs.
XtsParameters Parameters(uint32_t sector_size) {
  Bytes key(64);
  for (size_t i = 0; i < key.size(); ++i) key[i] = static_cast<uint8_t>(i * 7 + 1);
  return {SecretBuffer(key.data(), key.size()), sector_size, 5};
}

/// Any writes in any order give what a buffer in memory would hold, and nothing plain is in the file.
void TestEncryptingSink(const Folder& folder, uint32_t sector_size, uint32_t seed) {
  const std::string what = "sectors of " + std::to_string(sector_size) + ", seed " + std::to_string(seed);
  constexpr uint64_t kOffset = 4096;
  std::mt19937 random(seed);
  const UniqueFd fd = OpenNew(folder / ("sink-" + std::to_string(seed)));
  XtsSink sink(std::make_unique<FileSink>(fd.get(), kOffset), Parameters(sector_size));
  Bytes model;
  for (int step = 0; step < 300; ++step) {
    const uint64_t offset = random() % 3 == 0 ? model.size() : random() % (model.size() + 1);
    if (random() % 16 == 0) {
      sink.Truncate(offset);
      model.resize(offset);
      continue;
    }
    Bytes piece(1 + random() % (random() % 8 == 0 ? 600'000 : 3 * sector_size), static_cast<uint8_t>('A' + step % 26));
    sink.WriteAt(offset, piece.data(), piece.size());
    if (model.size() < offset + piece.size()) model.resize(offset + piece.size());
    std::copy(piece.begin(), piece.end(), model.begin() + static_cast<ptrdiff_t>(offset));
    const uint64_t from = random() % model.size();
    Bytes back(std::min<uint64_t>(model.size() - from, 10'000));
    sink.ReadAt(from, back.data(), back.size());
    Check(std::equal(back.begin(), back.end(), model.begin() + static_cast<ptrdiff_t>(from)), what + ": read back");
  }
  Check(sink.Size() == model.size(), what + ": size");
  sink.Finish();

  struct stat info {};
  CheckErrno(fstat(fd.get(), &info), "fstat");
  const uint64_t stored = static_cast<uint64_t>(info.st_size) - kOffset;
  Check(stored % sector_size == 0 && stored >= model.size(), what + ": whole sectors");
  const auto file = std::make_shared<FileSource>(fd.get(), kOffset, stored);
  const XtsSource source(file, Parameters(sector_size));
  Bytes all(source.Size());
  source.ReadAt(0, all.data(), all.size());
  Check(std::equal(model.begin(), model.end(), all.begin()), what + ": all of it");
  Check(std::all_of(all.begin() + static_cast<ptrdiff_t>(model.size()), all.end(),
                    [](uint8_t byte) { return byte == 0; }),
        what + ": the end is zeros");
  Bytes cipher(stored);
  file->ReadAt(0, cipher.data(), cipher.size());
  const Bytes run(32, 'A');
  Check(std::search(cipher.begin(), cipher.end(), run.begin(), run.end()) == cipher.end(), what + ": nothing plain");
  CheckError(
      EOVERFLOW, [&] { source.ReadAt(source.Size(), all.data(), 1); }, what + ": behind the end");
}

void TestRanges(const Folder& folder) {
  const UniqueFd fd = OpenNew(folder / "ranges");
  const std::string text = "0123456789";
  WriteFully(fd.get(), 0, text.data(), text.size());
  char out[16] = {};
  ReadFully(fd.get(), 8, out, 2);
  Check(std::string(out, 2) == "89", "the last bytes");
  CheckError(
      EIO, [&] { ReadFully(fd.get(), 8, out, 3); }, "a file that ends before");
  CheckError(
      EOVERFLOW, [&] { FileSource(fd.get(), 5, 6); }, "a part that is not inside");
  CheckError(
      EOVERFLOW, [&] { FileSource(fd.get(), UINT64_MAX, 2); }, "a part whose end overflows");
  const auto part = std::make_shared<FileSource>(fd.get(), 2, 6);
  const SliceSource slice(part, {1, 3});
  slice.ReadAt(0, out, 3);
  Check(std::string(out, 3) == "345", "a part of a part");
  CheckError(
      EOVERFLOW, [&] { slice.ReadAt(1, out, 3); }, "behind its end");
  CheckError(
      EOVERFLOW, [&] { slice.ReadAt(UINT64_MAX, out, 2); }, "an offset that overflows");
  CheckError(
      EOVERFLOW,
      [&] {
        SliceSource(part, {4, 3});
      },
      "a slice that is not inside");
  CheckError(
      EOVERFLOW,
      [&] {
        SliceSource(part, {UINT64_MAX, 1});
      },
      "a slice that overflows");

  FileSink small(fd.get(), 0, 4);
  CheckError(
      EFBIG, [&] { small.WriteAt(0, text.data(), 5); }, "more than the room that was given");

  const UniqueFd copy = OpenNew(folder / "copy");
  FileSink sink(copy.get(), 0);
  uint64_t told = 0;
  const auto progress = [&told](uint64_t so_far) {
    Check(so_far >= told, "progress grows");
    told = so_far;
    return true;
  };
  Check(CopyRange(*part, sink, progress) == 6 && told == 6, "copied, and told to its end");
  CheckError(
      ECANCELED, [&] { CopyRange(*part, sink, [](uint64_t) { return false; }); }, "a copy that is stopped");

  WipeRange(fd.get(), 2, 100);
  Check(TextOf(folder / "ranges") == std::string("01") + std::string(8, '\0'), "wiped to its end and no further");
}

void TestNames(const Folder& folder) {
  const auto unnamed = [&](const std::string& text) {
    UniqueFd fd(CheckErrno(open((folder / "").c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600), "open"));
    WriteFully(fd.get(), 0, text.data(), text.size());
    return fd;
  };
  const std::string target = folder / "target";
  publish::LinkInto(unnamed("first").get(), target, false);
  Check(TextOf(target) == "first", "it has its name");
  CheckError(
      EEXIST, [&] { publish::LinkInto(unnamed("second").get(), target, false); }, "a name that is taken");
  publish::LinkInto(unnamed("third").get(), target, true);
  Check(TextOf(target) == "third", "exchanged");
  CheckError(
      ENOENT, [&] { publish::LinkInto(unnamed("x").get(), folder / "none/target", true); }, "no such folder");
  for (const auto& entry : std::filesystem::directory_iterator(folder / ""))
    Check(entry.path().filename().string().front() != '.', "no other name is left: " + entry.path().string());
}

void TestLocks(const Folder& folder) {
  const std::string path = folder / "lock";
  const UniqueFd one = OpenNew(path);
  const UniqueFd two = OpenNew(path);
  const UniqueFd reader(CheckErrno(open(path.c_str(), O_RDONLY | O_CLOEXEC), "open"));
  Check(publish::Lock(one.get()) && publish::Lock(one.get()), "it is ours, again");
  Check(!publish::Lock(two.get()), "and nobody else's");
  using publish::Holder;
  Check(publish::LockRange(reader.get(), 0, 0, false) == Holder::kNone, "a reader's");
  Check(publish::LockRange(one.get(), 0, 0, true) == Holder::kReaders,
        "readers keep a writer, who is told that it is they");
  CheckError(
      EBADF, [&] { publish::LockRange(reader.get(), 5, 1, true); }, "a reader cannot pose as a writer");
  Check(publish::LockRange(two.get(), 100, 1, true) == Holder::kReaders, "up to any end");
}

void TestMemoryAndPipes() {
  SecretBuffer secret("secret", 6);
  SecretBuffer moved(std::move(secret));
  Check(secret.empty() && moved.size() == 6 && memcmp(moved.data(), "secret", 6) == 0, "moved");
  moved.Wipe();
  moved.Wipe();
  Check(moved.empty() && moved.data() == nullptr, "wiped twice");
  for (const size_t limit : {5, 6, 7}) {
    const UniqueFd pipe = FilledPipe("secret", 6);
    if (limit < 6)
      CheckError(
          EMSGSIZE, [&] { SecretBuffer::ReadAll(pipe.get(), limit); }, "more than the limit");
    else
      Check(SecretBuffer::ReadAll(pipe.get(), limit).size() == 6, "all of it, to its limit");
  }
  const UniqueFd empty = FilledPipe("", 0);
  Check(SecretBuffer::ReadAll(empty.get(), 10).empty(), "nothing");
  const UniqueFd file = MemoryFile("test", "bytes", 5);
  char out[5] = {};
  Check(read(file.get(), out, 5) == 5 && memcmp(out, "bytes", 5) == 0, "a file in memory is at its start");
  CheckError(
      ENOENT, [] { ReplaceProcess("/nonexistent/program", {"program"}, {}, {}); }, "no such program");
}

int Main() {
  const Folder folder;
  uint32_t seed = 1;
  for (const uint32_t sector_size : {512U, 4096U})
    for (int run = 0; run < 4; ++run) TestEncryptingSink(folder, sector_size, seed++);
  TestRanges(folder);
  TestNames(folder);
  TestLocks(folder);
  TestMemoryAndPipes();
  std::cout << checks << " checks\n";
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace sifcrypt

int main() { return sifcrypt::Main(); }
