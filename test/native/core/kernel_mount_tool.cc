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
    request.image_fd = image.get();
    request.offset = std::stoull(arguments[2]);
    request.size = std::stoull(arguments[3]);
    request.target = arguments[4];
    if (count == 9) {
      KernelMountCipher cipher;
      std::ifstream metadata(arguments[5], std::ios::binary);
      cipher.metadata.assign(std::istreambuf_iterator<char>(metadata), {});
      cipher.area_size = std::stoull(arguments[6]);
      cipher.segment_offset = std::stoull(arguments[7]);
      cipher.segment_size = std::stoull(arguments[8]);
      cipher.volume_key = SecretBuffer::ReadAll(0, 64);
      request.cipher = std::move(cipher);
    }
    KernelMount(request);
    return 0;
  } catch (const SystemError& error) {
    printf("error %d %s\n", error.error(), error.operation().c_str());
    fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
