// A hostile squashfs is extracted into a folder in memory, of which all around is looked at afterwards.
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <set>
#include <string>

#include "core/extract.h"
#include "core/unique_fd.h"
#include "target.h"

namespace sifcrypt::fuzz {
namespace {

/// A tmpfs of this process alone.
constexpr char kPlace[] = "/tmp";
constexpr char kAround[] = "/tmp/around";
constexpr char kTarget[] = "/tmp/around/target";
constexpr char kWitness[] = "/tmp/around/witness";
constexpr mode_t kWitnessMode = S_IFREG | 0604;
constexpr uint64_t kMostBytes = 4 << 20;
constexpr Amount kBound{
    .allocations = 400'000, .allocated = 1 << 30, .reads = 50'000, .read = 256 << 20, .output = 2 * kMostBytes};

void Prepare() {
  const bool is_root = geteuid() == 0;
  CheckErrno(unshare(CLONE_NEWNS | (is_root ? 0 : CLONE_NEWUSER)), "unshare");
  CheckErrno(mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), "mount");
  CheckErrno(mount("fuzz", kPlace, "tmpfs", MS_NOSUID | MS_NODEV, "size=64m,mode=0700"), "mount");
  CheckErrno(mkdir(kAround, 0755), "mkdir");
  const UniqueFd witness(CheckErrno(open(kWitness, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600), "open"));
  CheckErrno(write(witness.get(), "witness", 7), "write");
  CheckErrno(fchmod(witness.get(), kWitnessMode & 07777), "fchmod");
}

void CheckAround() {
  std::set<std::string> names;
  DIR* around = opendir(kAround);
  Require(around != nullptr, "what is around the target can be read");
  while (const dirent* entry = readdir(around)) names.insert(entry->d_name);
  closedir(around);
  Require(names == std::set<std::string>{".", "..", "target", "witness"}, "nothing appears beside the target");
  struct stat info {};
  CheckErrno(lstat(kWitness, &info), "lstat");
  Require(info.st_mode == kWitnessMode && info.st_size == 7 && info.st_nlink == 1 && info.st_uid == geteuid(),
          "what is beside the target stays as it is");
  CheckErrno(lstat(kTarget, &info), "lstat");
  Require(S_ISDIR(info.st_mode), "the target stays a folder");
}

}  // namespace
}  // namespace sifcrypt::fuzz

/// Before there are threads, which libFuzzer starts.
extern "C" int LLVMFuzzerInitialize(int*, char***) {
  sifcrypt::fuzz::Prepare();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sifcrypt;
  using namespace sifcrypt::fuzz;
  if (size < 1 || size > kMostInput) return 0;
  CheckErrno(mkdir(kTarget, 0755), "mkdir");
  {
    const Work work(kBound);
    const unsigned how = data[size - 1];
    uint64_t bytes = 0;
    fuzz::Try([&] {
      const SquashfsReader reader(std::make_shared<Bytes>(data, size),
                                  {.block_cache = 4 << 20, .metadata_cache = 256 << 10, .inode_cache = 64 << 10});
      ExtractRequest request;
      request.path = "/";
      request.target = kTarget;
      request.preserve_owner = (how & 1) != 0;
      request.strangers_are_nobody = (how & 2) != 0;
      request.fill = (how & 4) != 0;
      request.keep_modes = (how & 8) != 0;
      request.threads = 1 + (how >> 4) % 2;
      request.max_steps = 1 << 20;
      request.on_progress = [&](uint64_t written) { return (bytes = written) < kMostBytes; };
      Extract(reader, request);
    });
    CountOutput(bytes);
  }
  CheckAround();
  std::filesystem::remove_all(kTarget);
  return 0;
}
