#include "starter/image.h"

#include <stdio.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <utility>
#include <vector>

#include "core/file_range.h"
#include "core/gocryptfs.h"
#include "core/secret_buffer.h"
#include "core/slice_source.h"
#include "core/squashfs_file_source.h"
#include "core/unique_fd.h"
#include "core/xts.h"

namespace sifcrypt::starter {
namespace {

constexpr size_t kMaxKeySize = 64;
constexpr size_t kMaxMetadataSize = size_t{8} << 20;

SecretBuffer ReadKey(int key_fd) {
  const UniqueFd pipe(key_fd);
  SecretBuffer key = SecretBuffer::ReadAll(pipe.get(), kMaxKeySize);
  // The parent closes its end unwritten when it gives up.
  if (key.size() != 32 && key.size() != 64) throw SystemError(EINVAL, "key", "the key has neither 32 nor 64 bytes");
  return key;
}

std::vector<uint8_t> ReadMetadata(int metadata_fd) {
  const UniqueFd pipe(metadata_fd);
  std::vector<uint8_t> metadata;
  uint8_t part[64 << 10];
  for (;;) {
    const ssize_t n = read(pipe.get(), part, sizeof part);
    if (n < 0 && errno == EINTR) continue;
    if (CheckErrno(n, "read") == 0) return metadata;
    metadata.insert(metadata.end(), part, part + n);
    if (metadata.size() > kMaxMetadataSize) throw SystemError(EMSGSIZE, "read");
  }
}

// Whoever reads the block gets no more than EIO.
void LogFailedBlock(const char* what, uint64_t block, const char* reason) {
  dprintf(STDERR_FILENO, "sifcrypt: %s %llu %s\n", what, static_cast<unsigned long long>(block), reason);
}

void LogEncryptedBlock(uint64_t block, const char* reason) { LogFailedBlock("encrypted block", block, reason); }
void LogVerifiedBlock(uint64_t block, const char* reason) { LogFailedBlock("block", block, reason); }

/// The partition, each of its blocks verified if there is a tree.
std::shared_ptr<const ByteSource> OpenPartition(const ImageOptions& options) {
  auto partition = std::make_shared<FileSource>(options.image_fd, options.offset, options.size);
  if (options.tree_size == 0) return partition;
  return std::make_shared<VerifiedSource>(
      std::move(partition), std::make_shared<FileSource>(options.image_fd, options.tree_offset, options.tree_size),
      options.verity, LogVerifiedBlock);
}

}  // namespace

std::shared_ptr<const ByteSource> OpenImage(const ImageOptions& options) {
  auto partition = OpenPartition(options);
  if (!options.encrypted()) return partition;
  SecretBuffer key = ReadKey(options.key_fd);
  if (!options.gocryptfs_file.empty())
    return std::make_shared<GocryptfsSource>(OpenSquashfsFile(std::move(partition), options.gocryptfs_file),
                                             std::move(key), LogEncryptedBlock);
  return std::make_shared<XtsSource>(
      std::make_shared<SliceSource>(std::move(partition), options.segment_offset, options.segment_size),
      XtsParameters{std::move(key), options.sector_size, options.iv_tweak});
}

void MountWithKernel(const ImageOptions& options, const std::string& target, KernelFileSystem file_system,
                     bool writable) {
  KernelMountRequest request;
  request.image_fd = options.image_fd;
  request.offset = options.offset;
  request.size = options.size;
  request.target = target;
  request.file_system = file_system;
  request.writable = writable;
  if (options.encrypted()) {
    request.cipher.emplace();
    request.cipher->volume_key = ReadKey(options.key_fd);
    request.cipher->metadata = ReadMetadata(options.metadata_fd);
    request.cipher->area_size = options.area_size;
    request.cipher->segment_offset = options.segment_offset;
    request.cipher->segment_size = options.segment_size;
  }
  if (options.tree_size != 0) request.tree = KernelMountTree{options.tree_offset, options.tree_size, options.verity};
  KernelMount(request);
}

void ProtectSecrets() {
  CheckErrno(prctl(PR_SET_DUMPABLE, 0), "prctl");
  const rlimit none{0, 0};
  CheckErrno(setrlimit(RLIMIT_CORE, &none), "setrlimit");
}

}  // namespace sifcrypt::starter
