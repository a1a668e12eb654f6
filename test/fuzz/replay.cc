// Tries every file of the folders that are named as a fuzz target's input, as libFuzzer would, and tells what the most work was that any
// of them took. A finding ends the process, after the name of its file. (Without streams and <filesystem>, which are in the C++ library
// and not in headers: MemorySanitizer does not see what those write.)
#include <dirent.h>
#include <sys/stat.h>

#include <cerrno>
#include <cinttypes>
#include <string>
#include <vector>

#include "target.h"

/// Few targets have one.
extern "C" __attribute__((weak)) int LLVMFuzzerInitialize(int* argc, char*** argv);

namespace {

/// In memory of just its size.
std::vector<uint8_t> Contents(const std::string& path) {
  FILE* file = fopen(path.c_str(), "rb");
  sifcrypt::fuzz::Require(file != nullptr, "an input can be read");
  struct stat info {};
  sifcrypt::fuzz::Require(fstat(fileno(file), &info) == 0 && S_ISREG(info.st_mode), "an input is a file");
  std::vector<uint8_t> bytes(static_cast<size_t>(info.st_size));
  sifcrypt::fuzz::Require(fread(bytes.data(), 1, bytes.size(), file) == bytes.size(), "an input is read");
  fclose(file);
  return bytes;
}

}  // namespace

int main(int argc, char** argv) {
  if (LLVMFuzzerInitialize != nullptr) LLVMFuzzerInitialize(&argc, &argv);
  size_t count = 0;
  for (int i = 1; i < argc; ++i) {
    dirent** entries = nullptr;
    const int found = scandir(
        argv[i], &entries, [](const dirent* entry) { return entry->d_name[0] == '.' ? 0 : 1; }, alphasort);
    if (found < 0) {
      fprintf(stderr, "%s: %s\n", argv[i], strerror(errno));
      return 1;
    }
    for (int k = 0; k < found; ++k) {
      const std::string path = std::string(argv[i]) + "/" + entries[k]->d_name;
      free(entries[k]);
      // Shown when what follows ends the process.
      fprintf(stderr, "%s\r", path.c_str());
      const std::vector<uint8_t> input = Contents(path);
      LLVMFuzzerTestOneInput(input.data(), input.size());
      ++count;
    }
    free(entries);
  }
  const sifcrypt::fuzz::Amount& most = sifcrypt::fuzz::most;
  printf("%zu checks; most allocations %" PRIu64 ", their bytes %" PRIu64 ", reads %" PRIu64 ", bytes read %" PRIu64
         ", output %" PRIu64 ", seconds %.3f\n",
         count, most.allocations, most.allocated, most.reads, most.read, most.output, sifcrypt::fuzz::most_seconds);
  return count == 0 ? 1 : 0;
}
