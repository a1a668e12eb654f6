// What is read of an image, through everything that can lie between: in which order hash tree, segment and cipher apply, who is told of
// what is wrong, and that each cipher reads what it wrote. Prints what failed and exits 1, or nothing and exits 0.
#include "core/image_range.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <functional>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "core/composed_source.h"
#include "core/file_range.h"
#include "core/system_error.h"
#include "core/unique_fd.h"

namespace sifcrypt {
namespace {

using Bytes = std::vector<uint8_t>;

constexpr uint64_t kBefore = 3 * kVerityBlock;
constexpr uint64_t kHeader = 2 * kVerityBlock;

SecretBuffer Key(size_t size) {
  if (size == 0) return {};
  SecretBuffer key(size);
  for (size_t i = 0; i < size; ++i) key.data()[i] = static_cast<uint8_t>(i * 7 + 1);
  return key;
}

Bytes Payload(uint64_t size) {
  Bytes bytes(size);
  for (uint64_t i = 0; i < size; ++i) bytes[i] = static_cast<uint8_t>(i * i >> 3);
  return bytes;
}

Bytes ReadAll(const ImageRange& image, SecretBuffer key, const OnFailedBlock& on_failure = {}) {
  const auto source = Open(image, std::move(key), on_failure);
  Bytes bytes(source->Size());
  source->ReadAt(0, bytes.data(), bytes.size());
  return bytes;
}

void Flip(int fd, uint64_t at) {
  uint8_t byte = 0;
  ReadFully(fd, at, &byte, 1);
  byte ^= 1;
  WriteFully(fd, at, &byte, 1);
}

/// A partition of a header and a payload, encrypted as the cipher says.
ImageRange Write(int fd, const Cipher& cipher, size_t key_size, const Bytes& payload) {
  const Bytes header(kHeader, 0xaa);
  WriteFully(fd, kBefore, header.data(), header.size());
  auto file = std::make_unique<FileSink>(fd, kBefore + kHeader);
  const ByteSink& written = *file;
  const auto sink = EncryptingSink(std::move(file), cipher, Key(key_size), 0);
  sink->WriteAt(0, payload.data(), payload.size());
  sink->Finish();
  const uint64_t size = written.Size();
  return {.fd = fd, .partition = {kBefore, kHeader + size}, .segment = {kHeader, size}, .cipher = cipher};
}

/// A hash tree of the partition, behind it.
void AddVerity(ImageRange& image) {
  const uint64_t at = image.partition.offset + image.partition.size;
  image.verity = {at, VerityLayout(image.partition.size).size()};
  image.verity_parameters.root = HashVerity(*OpenDescriptor(image.fd, image.partition), image.verity_parameters.salt,
                                            [&image, at](uint64_t block, const uint8_t* bytes) {
                                              WriteFully(image.fd, at + block * kVerityBlock, bytes, kVerityBlock);
                                            });
}

void TestCipher(const std::string& name, const Cipher& cipher, size_t key_size, bool authenticates) {
  const UniqueFd file(CheckErrno(memfd_create("image", MFD_CLOEXEC), "memfd_create"));
  const Bytes payload = Payload(20 * kVerityBlock);
  ImageRange image = Write(file.get(), cipher, key_size, payload);
  // The encrypted bytes of gocryptfs end anywhere.
  image.partition.size = (image.partition.size + kVerityBlock - 1) / kVerityBlock * kVerityBlock;
  CheckErrno(ftruncate(file.get(), static_cast<off_t>(image.partition.offset + image.partition.size)), "ftruncate");
  const auto key = [key_size] { return Key(key_size); };
  Check(ReadAll(image, key()) == payload, name + ": what was written is read");
  Check(image.authenticates() == authenticates, name + ": whether it authenticates");
  AddVerity(image);
  Check(ReadAll(image, key()) == payload, name + ": through a hash tree");
  Check(image.authenticates(), name + ": a hash tree authenticates");

  std::vector<std::string> told;
  const OnFailedBlock tell = [&told](const char* kind, uint64_t block, const char*) {
    told.push_back(std::string(kind) + " " + std::to_string(block));
  };
  const uint64_t changed = image.segment.offset + image.segment.size / 2;
  Flip(file.get(), image.partition.offset + changed);
  CheckError(
      EIO, "verity_read", [&] { ReadAll(image, key(), tell); }, name + ": a changed block");
  Check(told == std::vector<std::string>{"block " + std::to_string(changed / kVerityBlock)},
        name + ": the hash tree comes before segment and cipher");
  told.clear();
  image.verity = {};
  if (!authenticates) return Check(ReadAll(image, key(), tell) != payload, name + ": nothing vouches for it");
  CheckError(
      EIO, "gocryptfs_read", [&] { ReadAll(image, key(), tell); }, name + ": a changed encrypted block");
  Check(told.size() == 1 && told[0].starts_with("encrypted block "), name + ": it is told of");
}

void TestBounds() {
  UniqueFd file(CheckErrno(memfd_create("image", MFD_CLOEXEC), "memfd_create"));
  const Bytes payload = Payload(4 * kVerityBlock);
  WriteFully(file.get(), 0, payload.data(), payload.size());
  ImageRange image{.fd = file.get(), .partition = {kVerityBlock, 2 * kVerityBlock}};
  Check(ReadAll(image, {}) == Bytes(payload.begin() + kVerityBlock, payload.end() - kVerityBlock), "a part of a file");
  image.segment = {1, kVerityBlock};
  Check(ReadAll(image, {}) == Bytes(payload.begin() + kVerityBlock + 1, payload.begin() + 2 * kVerityBlock + 1),
        "a segment without a cipher");
  image.segment = {kVerityBlock, kVerityBlock + 1};
  CheckError(
      EOVERFLOW, "pread", [&] { Open(image, {}); }, "a segment that ends behind its partition");
  image = {.fd = file.get(), .partition = {kVerityBlock, 4 * kVerityBlock}};
  CheckError(
      EOVERFLOW, "fstat", [&] { Open(image, {}); }, "a partition that ends behind its file");
  image.partition.size = kVerityBlock;
  const auto source = Open(image, {});
  file.Reset();
  uint8_t byte = 0;
  source->ReadAt(0, &byte, 1);
  Check(byte == payload[kVerityBlock], "the descriptor is its own");
}

void TestComposed() {
  UniqueFd file(CheckErrno(memfd_create("pieces", MFD_CLOEXEC), "memfd_create"));
  const Bytes payload = Payload(1000);
  WriteFully(file.get(), 0, payload.data(), payload.size());
  const auto part = [&](uint64_t offset, uint64_t size) { return OpenDescriptor(file.get(), {offset, size}); };
  // Two that touch, an empty one, and one behind a gap; a gap at the end.
  const std::vector<ComposedSource::Piece> pieces = {
      {10, part(500, 30)}, {40, part(0, 20)}, {60, part(3, 0)}, {100, part(900, 50)}};
  const ComposedSource source(pieces, 170);
  Bytes expected(170);
  for (const auto& [at, offset, size] : {std::array{10, 500, 30}, {40, 0, 20}, {100, 900, 50}})
    std::copy_n(payload.begin() + offset, size, expected.begin() + at);
  bool same = true;
  for (size_t start = 0; start <= expected.size(); ++start)
    for (size_t size = 0; size <= expected.size() - start; ++size) {
      Bytes read(size, 0xee);
      source.ReadAt(start, read.data(), size);
      same = same && std::equal(read.begin(), read.end(), expected.begin() + static_cast<std::ptrdiff_t>(start));
    }
  Check(same, "each part of what is composed");
  uint8_t byte = 0;
  for (const uint64_t at : {uint64_t{170}, UINT64_MAX})
    CheckError(
        EOVERFLOW, "pread", [&] { source.ReadAt(at, &byte, 1); }, "behind its end");
  for (const uint64_t at : {uint64_t{29}, uint64_t{9}, uint64_t{161}, UINT64_MAX})
    CheckError(
        EOVERFLOW, "pread",
        [&] {
          ComposedSource({{10, part(0, 20)}, {at, part(0, 10)}}, 170);
        },
        "pieces that overlap, or end behind the whole");
}

}  // namespace
}  // namespace sifcrypt

int main() {
  using namespace sifcrypt;
  TestCipher("none", {}, 0, false);
  TestCipher("xts", {.type = *CipherType("xts"), .sector_size = 4096, .iv_tweak = 5}, 64, false);
  TestCipher("gocryptfs", {.type = *CipherType("gocryptfs"), .file = "squashfs-1", .config = {'{', '}'}}, 32, true);
  Check(!CipherType("") && !CipherType("XTS") && !CipherType("none"), "what is no cipher");
  TestBounds();
  TestComposed();
  return failures == 0 ? 0 : 1;
}
