#include "starter/image.h"

#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <vector>

#include "core/secret_buffer.h"
#include "core/unique_fd.h"
#include "starter/say.h"

namespace sifcrypt::starter {
namespace {

constexpr size_t kMaxKeySize = 64;
constexpr size_t kMaxMetadataSize = size_t{8} << 20;

SecretBuffer ReadKey(const ImageOptions& options) {
  if (!options.encrypted()) return {};
  const UniqueFd pipe(options.key_fd);
  SecretBuffer key = SecretBuffer::ReadAll(pipe.get(), kMaxKeySize);
  // The parent closes its end unwritten when it gives up.
  if (key.size() != 32 && key.size() != 64) throw SystemError(EINVAL, "key", "the key has neither 32 nor 64 bytes");
  return key;
}

// Whoever reads the block gets no more than EIO.
void LogFailedBlock(const char* kind, uint64_t block, const char* reason) {
  Say(std::string(kind) + " " + std::to_string(block) + " " + reason);
}

}  // namespace

std::vector<uint8_t> ReadPipe(int fd, size_t limit) {
  const UniqueFd pipe(fd);
  std::vector<uint8_t> bytes;
  uint8_t part[64 << 10];
  for (;;) {
    const ssize_t n = read(pipe.get(), part, sizeof part);
    if (n < 0 && errno == EINTR) continue;
    if (CheckErrno(n, "read") == 0) return bytes;
    bytes.insert(bytes.end(), part, part + n);
    if (bytes.size() > limit) throw SystemError(EMSGSIZE, "read");
  }
}

std::shared_ptr<const ByteSource> OpenImage(const ImageOptions& options) {
  return Open(options.range, ReadKey(options), LogFailedBlock);
}

void MountWithKernel(const ImageOptions& options, const std::string& target, KernelFileSystem file_system,
                     bool writable) {
  KernelMountRequest request;
  request.image = options.range;
  request.target = target;
  request.file_system = file_system;
  request.writable = writable;
  request.key = ReadKey(options);
  if (options.encrypted()) request.metadata = ReadPipe(options.metadata_fd, kMaxMetadataSize);
  request.area_size = options.area_size;
  KernelMount(request);
}

void ProtectSecrets() {
  CheckErrno(prctl(PR_SET_DUMPABLE, 0), "prctl");
  const rlimit none{0, 0};
  CheckErrno(setrlimit(RLIMIT_CORE, &none), "setrlimit");
}

}  // namespace sifcrypt::starter
