// S32: what is shared between threads is used by several at once; ThreadSanitizer watches. Several encryptions with one
// cipher, several builds at once (each with threads of its own), several readers of one image through one source.
#include <stdlib.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "core/directory_tree.h"
#include "core/file_range.h"
#include "core/squashfs_reader.h"
#include "core/squashfs_writer.h"
#include "core/xts.h"

namespace sifcrypt {
namespace {

namespace fs = std::filesystem;

constexpr int kThreads = 4;
/// Calls `work` on several threads at once.
void Together(const std::function<void(int)>& work) {
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i)
    threads.emplace_back([&work, i] {
      try {
        work(i);
      } catch (const std::exception& error) {
        Check(false, error.what());
      }
    });
  for (std::thread& thread : threads) thread.join();
}

XtsParameters Parameters() {
  XtsParameters made;
  made.volume_key = SecretBuffer(64);
  for (size_t i = 0; i < made.volume_key.size(); ++i) made.volume_key.data()[i] = static_cast<uint8_t>(i * 5 + 3);
  return made;
}

std::string Random(size_t size, unsigned seed) {
  std::mt19937 generator(seed);
  std::string bytes(size, '\0');
  // Half of it compresses.
  for (size_t i = 0; i < size; i += 2) bytes[i] = static_cast<char>(generator());
  return bytes;
}

void TestCipher() {
  const XtsCipher cipher(Parameters());
  Together([&](int i) {
    const std::string text = Random(64 << 10, static_cast<unsigned>(i));
    std::vector<uint8_t> bytes(text.size());
    for (uint64_t offset = 0; offset < 20 * text.size(); offset += text.size()) {
      cipher.Encrypt(offset, reinterpret_cast<const uint8_t*>(text.data()), bytes.data(), bytes.size());
      cipher.Decrypt(offset, bytes.data(), bytes.size());
      Check(std::equal(text.begin(), text.end(), reinterpret_cast<const char*>(bytes.data())), "a shared cipher");
    }
  });
}

constexpr int kFiles = 24;

void TestImages(const fs::path& folder) {
  fs::create_directory(folder / "tree");
  std::vector<std::string> contents;
  for (int i = 0; i < kFiles; ++i) {
    contents.push_back(Random(static_cast<size_t>(i) * 20000 + 100, static_cast<unsigned>(i)));
    std::ofstream(folder / "tree" / std::to_string(i), std::ios::binary) << contents.back();
  }
  std::vector<uint64_t> sizes(kThreads);
  const auto image = [&](int i) { return (folder / ("image" + std::to_string(i))).string(); };
  Together([&](int i) {
    const UniqueFd fd(CheckErrno(open(image(i).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600), "open"));
    XtsSink sink(std::make_unique<FileSink>(fd.get(), 0), Parameters());
    DirectoryTree tree((folder / "tree").string(), {});
    SquashfsWriteOptions options;
    options.codec.compression = SquashfsCompression::kZstd;
    options.codec.level = 1;
    options.codec.block_size = 131072;
    options.threads = 2;
    options.source_date_epoch = 0;
    sizes[static_cast<size_t>(i)] = WriteSquashfs(tree, sink, options, {}).size;
    sink.Finish();
  });

  const UniqueFd fd(CheckErrno(open(image(0).c_str(), O_RDONLY | O_CLOEXEC), "open"));
  // Small caches: what one thread reads, another one throws out.
  SquashfsReader::Limits limits;
  limits.block_cache = 512 << 10;
  limits.inode_cache = 4 << 10;
  const SquashfsReader reader(
      std::make_shared<XtsSource>(std::make_shared<FileSource>(fd.get(), 0, sizes[0]), Parameters()), limits);
  Together([&](int thread) {
    Check(sizes[static_cast<size_t>(thread)] == sizes[0], "one tree gives one size");
    for (int n = 0; n < 2 * kFiles; ++n) {
      const int i = (n * (2 * thread + 1)) % kFiles;
      const InodePtr inode = reader.GetInode(reader.Resolve("/" + std::to_string(i), true));
      std::string bytes(inode->size, '\0');
      reader.Read(*inode, 0, bytes.data(), bytes.size());
      Check(bytes == contents[static_cast<size_t>(i)], "file " + std::to_string(i));
    }
  });
}

int Run() {
  std::string folder = (fs::temp_directory_path() / "concurrency-XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr) return 1;
  try {
    TestCipher();
    TestImages(folder);
  } catch (const std::exception& error) {
    Check(false, error.what());
  }
  fs::remove_all(folder);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace sifcrypt

int main() { return sifcrypt::Run(); }
