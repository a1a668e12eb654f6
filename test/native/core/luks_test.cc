// A keyslot's cost where libcryptsetup takes less memory than it is told to: the machine seems to have little that is free. Prints what
// failed and exits 1, or nothing and exits 0.
#include "core/luks.h"

#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <string>

#include "check.h"
#include "core/memory_source.h"

// glibc's own.
extern "C" long __sysconf(int name);

namespace {

constexpr long kFreeKib = 144 << 10;
constexpr uint32_t kMemory = 128 << 10;
constexpr uint32_t kPasses = 4;
bool asked = false;

}  // namespace

/// Instead of glibc's, for libraries as well.
extern "C" __attribute__((visibility("default"))) long sysconf(int name) {
  if (name != _SC_AVPHYS_PAGES) return __sysconf(name);
  asked = true;
  return kFreeKib / (__sysconf(_SC_PAGESIZE) >> 10);
}

namespace sifcrypt {
namespace {

constexpr uint8_t kPassphrase[] = {'p', 'a', 's', 's'};
constexpr size_t kCopy = 16 << 10;
constexpr size_t kJson = 4096;

uint64_t NumberOf(const std::string& json, const std::string& name) {
  const size_t at = json.find('"' + name + "\":");
  Check(at != std::string::npos, name + " is in the header");
  return at == std::string::npos ? 0 : strtoull(json.c_str() + at + name.size() + 3, nullptr, 10);
}

void TestCost() {
  luks::FormatRequest request;
  request.header_size = 16 << 20;
  request.keyslots.push_back({SecretBuffer(kPassphrase, sizeof kPassphrase), {"argon2id", kPasses, kMemory, 2}});
  const luks::Formatted formatted = luks::Format(request);
  const std::string json(reinterpret_cast<const char*>(formatted.header.data()) + kJson);
  const uint64_t memory = NumberOf(json, "memory"), passes = NumberOf(json, "time");
  // Later versions take what they are told to.
  if (memory < kMemory) Check(asked && memory >= kFreeKib / 4, "no less memory than the library's rule says");
  Check(passes * memory >= uint64_t{kPasses} * kMemory, "a keyslot costs what was asked for");
  Check((passes - 1) * memory < uint64_t{kPasses} * kMemory, "and not another pass");

  luks::UnlockRequest unlock;
  unlock.source = std::make_shared<MemorySource>(formatted.header);
  unlock.area_size = formatted.header.size();
  unlock.metadata.assign(formatted.header.begin(), formatted.header.begin() + 2 * kCopy);
  unlock.secret = SecretBuffer(kPassphrase, sizeof kPassphrase);
  const luks::Unlocked unlocked = luks::Unlock(unlock);
  Check(unlocked.volume_key.size() == formatted.volume_key.size() &&
            std::equal(unlocked.volume_key.data(), unlocked.volume_key.data() + unlocked.volume_key.size(),
                       formatted.volume_key.data()),
        "it opens");
}

/// What a limit of this process keeps the library from is told as that, whatever the library makes of it.
void TestLimits() {
  luks::FormatRequest request;
  request.header_size = 4 << 20;
  request.keyslots.push_back({SecretBuffer(kPassphrase, sizeof kPassphrase), {"pbkdf2", 1000, 0, 0}});
  const auto error_of = [&request] {
    try {
      luks::Format(request);
      return 0;
    } catch (const SystemError& failure) {
      return failure.error();
    }
  };
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  const int next = dup(STDERR_FILENO);
  close(next);
  int refused = 0;
  for (rlim_t more = 0; more < 20; ++more) {
    const rlimit few{static_cast<rlim_t>(next) + more, files.rlim_max};
    setrlimit(RLIMIT_NOFILE, &few);
    const int error = error_of();
    refused += error == EMFILE ? 1 : 0;
    Check(error == EMFILE || (error == 0 && refused > 0),
          std::to_string(more) + " descriptors: error " + std::to_string(error));
  }
  Check(error_of() == 0, "20 descriptors are enough");
  setrlimit(RLIMIT_NOFILE, &files);

  rlimit size{};
  getrlimit(RLIMIT_FSIZE, &size);
  const rlimit small{100 << 10, size.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  signal(SIGXFSZ, SIG_IGN);
  Check(error_of() == EFBIG, "files of 100 KiB");
  setrlimit(RLIMIT_FSIZE, &size);
}

}  // namespace
}  // namespace sifcrypt

int main() {
  // First, before the library has opened what it keeps.
  sifcrypt::TestLimits();
  sifcrypt::TestCost();
  std::cout << sifcrypt::checks << " checks\n";
  return sifcrypt::failures == 0 ? 0 : 1;
}
