// A keyslot's cost where libcryptsetup takes less memory than it is told to: the machine seems to have little that is free. What limits of
// the process keep from being done, and sizes that are refused before anything is read or made. Prints what failed and exits 1, or exits 0.
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

/// What a limit of this process keeps the library from is told as that, whatever the library makes of it. (Want of descriptors is tried by
/// whole commands: a sanitizer looks at an exception's type through a pipe.)
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
  rlimit size{};
  getrlimit(RLIMIT_FSIZE, &size);
  const rlimit small{100 << 10, size.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  signal(SIGXFSZ, SIG_IGN);
  Check(error_of() == EFBIG, "files of 100 KiB");
  setrlimit(RLIMIT_FSIZE, &size);
}

/// Are these refused for their sizes, and not by whatever comes later?
template <typename Action>
void RefusesSize(const std::string& what, const std::string& words, Action action) {
  try {
    action();
    Check(false, what + " is refused");
  } catch (const SystemError& error) {
    Check(error.error() == EINVAL && std::string(error.what()).find(words) != std::string::npos,
          what + ": " + error.what());
  }
}

void TestSizes() {
  for (const uint64_t size : {uint64_t{0}, uint64_t{2 * kCopy}, luks::kMaxAreaSize + 4096, uint64_t{(1 << 20) + 512}}) {
    luks::FormatRequest request;
    request.header_size = size;
    RefusesSize("a header of " + std::to_string(size), "header size", [&] { luks::Format(request); });
  }
  struct Area {
    const char* what;
    uint64_t size;
    uint64_t offset;
    size_t metadata;
  };
  for (const Area& area :
       {Area{"an area that is too large", luks::kMaxAreaSize + 1, 0, 2 * kCopy},
        Area{"metadata larger than its area", 2 * kCopy - 1, 0, 2 * kCopy},
        Area{"an area behind all files", 2 * kCopy, uint64_t{INT64_MAX} - luks::kMaxAreaSize + 1, 0}}) {
    luks::UnlockRequest unlock;
    unlock.area_size = area.size;
    unlock.offset = area.offset;
    unlock.metadata.resize(area.metadata);
    RefusesSize(area.what, "header area of", [&] { luks::Unlock(unlock); });
    if (area.offset != 0) continue;
    luks::AddRequest add;
    add.area_size = area.size;
    add.metadata.resize(area.metadata);
    RefusesSize(area.what, "header area of", [&] { luks::AddKeyslots(add); });
  }
}

}  // namespace
}  // namespace sifcrypt

int main() {
  sifcrypt::TestLimits();
  sifcrypt::TestCost();
  sifcrypt::TestSizes();
  std::cout << sifcrypt::checks << " checks\n";
  return sifcrypt::failures == 0 ? 0 : 1;
}
