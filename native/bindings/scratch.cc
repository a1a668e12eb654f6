#include <sys/ioctl.h>
#include <sys/stat.h>

#include "bindings/convert.h"
#include "bindings/exports.h"
#include "bindings/run_async.h"
#include "core/scratch_fill.h"
#include "core/system_error.h"
#include "core/unique_fd.h"

namespace sifcrypt {
namespace {

/// False: the folder is in no scratch that does it.
bool Fill(int folder, int image) {
  struct stat squashfs {};
  CheckErrno(fstat(image, &squashfs), "fstat");
  const uint64_t number = squashfs.st_ino;
  if (ioctl(folder, kScratchFill, &number) == 0) return true;
  if (errno == ENOTTY || errno == ENOSYS) return false;
  // It is nothing else that it calls invalid.
  throw SystemError(errno, errno == EINVAL ? "chown" : "fill");
}

}  // namespace

Napi::Value FillFolder(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  return RunAsync(info.Env(), [folder = UniqueFd::Duplicate(ReadInt(options, "folder")),
                               image = UniqueFd::Duplicate(ReadInt(options, "squashfs"))] {
    return Fill(folder.get(), image.get());
  });
}

}  // namespace sifcrypt
