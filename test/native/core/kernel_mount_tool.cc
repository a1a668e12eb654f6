// kernel_mount_tool IMAGE OFFSET SIZE TARGET [METADATA_FILE AREA_SIZE SEGMENT_OFFSET SEGMENT_SIZE], the volume key on
// stdin: calls KernelMount and nothing else, for tests that need root and dm-crypt. Prints "error ERRNO OPERATION" on
// failure.
#include <fcntl.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

#include "core/kernel_mount.h"
#include "core/system_error.h"
#include "core/unique_fd.h"

int main(int count, char** arguments) {
  using namespace sifcrypt;
  if (count != 5 && count != 9) return 2;
  try {
    const UniqueFd image(CheckErrno(open(arguments[1], O_RDONLY | O_CLOEXEC), "open"));
    KernelMountRequest request;
    request.image.fd = image.get();
    request.image.partition = {std::stoull(arguments[2]), std::stoull(arguments[3])};
    request.target = arguments[4];
    if (count == 9) {
      std::ifstream metadata(arguments[5], std::ios::binary);
      request.metadata.assign(std::istreambuf_iterator<char>(metadata), {});
      request.area_size = std::stoull(arguments[6]);
      request.image.segment = {std::stoull(arguments[7]), std::stoull(arguments[8])};
      request.image.cipher.type = Cipher::Type::kXts;
      request.key = SecretBuffer::ReadAll(0, 64);
    }
    KernelMount(request);
    return 0;
  } catch (const SystemError& error) {
    printf("error %d %s\n", error.error(), error.operation().c_str());
    fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
