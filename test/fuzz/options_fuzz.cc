// The starter's command lines: the first byte says of which command, the others are its arguments, with a NUL behind each.
#include <string>

#include "starter/options.h"
#include "target.h"

namespace sifcrypt::fuzz {
namespace {

constexpr Amount kBound{.allocations = 200'000, .allocated = 64 << 20};

std::vector<std::string> Words(const uint8_t* data, size_t size) {
  std::vector<std::string> words;
  for (size_t at = 0; at < size;) {
    const uint8_t* end = std::find(data + at, data + size, 0);
    words.emplace_back(data + at, end);
    at = static_cast<size_t>(end - data) + 1;
  }
  return words;
}

void Parse(unsigned command, const std::vector<std::string>& arguments) {
  using namespace starter;
  switch (command % 5) {
    case 0: {
      const RunOptions options = ParseRunOptions(arguments);
      Require(!options.id.empty() && options.id.find('/') == std::string::npos, "an id is a name");
      Require(options.image.encrypted() == (options.image.key_fd >= 0), "what is encrypted has a key");
      Require(OtherImages(options).size() == options.layers.size() + options.bind_images.size(), "no image is lost");
      break;
    }
    case 1: {
      const MountOptions options = ParseMountOptions(arguments);
      Require(options.image.engine != Engine::kMemory, "mounts have no memory engine");
      break;
    }
    case 2:
      ParseKeepOptions(arguments);
      break;
    case 3:
      Require(ParseJoinOptions(arguments).pid > 1, "a process is joined");
      break;
    default:
      Require(ParseWorkspaceOptions(arguments).program.front().starts_with('/'), "a program has an absolute path");
  }
}

}  // namespace
}  // namespace sifcrypt::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sifcrypt::fuzz;
  if (size < 1 || size > kMostInput) return 0;
  const Work work(kBound);
  try {
    Parse(data[0], Words(data + 1, size - 1));
  } catch (const sifcrypt::starter::UsageError&) {
    // Refused.
  }
  return 0;
}
