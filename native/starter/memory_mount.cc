#include "starter/memory_mount.h"

#include <linux/capability.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "core/extract.h"
#include "core/squashfs_reader.h"
#include "core/system_error.h"
#include "starter/channel.h"
#include "starter/confine.h"
#include "starter/fuse_mount.h"
#include "starter/image.h"
#include "starter/processes.h"
#include "starter/say.h"
#include "starter/status.h"

namespace sifcrypt::starter {
namespace {

constexpr int kFailure = 255;
/// What the kernel has beside the content of a file is about as much as this.
constexpr uint64_t kBytesPerFile = 1024;
constexpr uint64_t kOwnerCapabilities = uint64_t{1} << CAP_CHOWN | uint64_t{1} << CAP_DAC_OVERRIDE |
                                        uint64_t{1} << CAP_FOWNER | uint64_t{1} << CAP_FSETID |
                                        uint64_t{1} << CAP_MKNOD | uint64_t{1} << CAP_SETFCAP;

/// What is left has to be more than nothing, which the kernel takes for no limit at all.
constexpr uint64_t kLeastMemory = 1 << 20;
/// The two places that who unpacks sees: what it fills, and its own descriptors, by which nodes and links get attributes.
constexpr char kFilled[] = "/image";
constexpr char kDescriptors[] = "/proc/self/fd";

void MountMemory(uint64_t size, const std::string& target) {
  if (size < kLeastMemory) throw SystemError(ENOSPC, "memory");
  // A quarter for what is beside the content.
  const std::string data =
      "mode=0755,size=" + std::to_string(size / 4 * 3) + ",nr_inodes=" + std::to_string(size / 4 / kBytesPerFile);
  const auto mount_with = [&](const std::string& options) {
    return mount("tmpfs", target.c_str(), "tmpfs", MS_NOSUID | MS_NODEV, options.c_str()) == 0;
  };
  if (!mount_with(data + ",noswap") && !mount_with(data)) throw SystemError(errno, "mount");
}

void Unpack(const ImageOptions& image, const std::string& target) {
  SquashfsReader::Limits limits;
  limits.block_cache = static_cast<size_t>(image.cache_mib) << 20;
  ProtectSecrets();
  const std::shared_ptr<const ByteSource> source = OpenImage(image);
  EnterOwnRoot({{target, kFilled, true}, {kDescriptors, kDescriptors}}, "memory");
  // Everything is the caller's then, as it is where FUSE shows it.
  GiveUpPrivileges(Calls::kProgram, image.owner ? 0 : kOwnerCapabilities);
  const SquashfsReader reader(source, limits);
  ExtractRequest request;
  request.path = "/";
  request.target = kFilled;
  request.preserve_owner = !image.owner;
  request.strangers_are_nobody = true;
  request.keep_modes = true;
  request.fill = true;
  const uint64_t strangers = Extract(reader, request).unknown_owners;
  if (strangers != 0) Say(std::to_string(strangers) + " files of owners who are not mapped here are nobody's");
}

/// "operation: detail", as SystemError has put it together.
SystemError FromMessage(const Message& message) {
  const size_t colon = std::min(message.text.find(": "), message.text.size());
  return {message.error, message.text.substr(0, colon), message.text.substr(std::min(colon + 2, message.text.size()))};
}

}  // namespace

void MountInMemory(const ImageOptions& image, const std::string& target) {
  MountMemory(image.memory, target);
  auto [ours, theirs] = Channel::Pair();
  const pid_t child = ForkChild([&, &report = theirs]() -> int {
    try {
      // What it reads is hostile: other images, their keys and the payload's descriptors are none of its business.
      CloseAllBut({image.range.fd, image.key_fd, report.fd()});
      Unpack(image, target);
      return 0;
    } catch (const SystemError& failure) {
      if (failure.error() == ENOSPC)
        report.SendFailure(
            {ENOSPC, "memory",
             "unpacked it does not fit into the " + std::to_string(image.memory >> 20) + " MiB that are free here"},
            "memory");
      else
        report.SendFailure(failure, StepOf(failure));
    } catch (const std::exception& failure) {
      report.Send({.error = ENOMEM, .step = "server", .text = failure.what()});
    }
    return kFailure;
  });
  theirs.Close();
  if (image.key_fd >= 0) close(image.key_fd);
  const auto failure = ours.Receive();
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (failure) throw FromMessage(*failure);
  if (WIFSIGNALED(status))
    throw SystemError(ENOMEM, "memory", "who unpacked it was killed by signal " + std::to_string(WTERMSIG(status)));
  if (status != 0) throw SystemError(EIO, "server", "the image was not unpacked");
  CheckErrno(mount(nullptr, target.c_str(), nullptr, MS_REMOUNT | MS_BIND | kReadOnly, nullptr), "mount");
}

}  // namespace sifcrypt::starter
