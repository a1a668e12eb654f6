// Tries every file of the folders that are named as a fuzz target's input, as libFuzzer would, and tells what the most work was that any
// of them took. A finding ends the process, after the name of its file.
#include <algorithm>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

#include "target.h"

/// Few targets have one.
extern "C" __attribute__((weak)) int LLVMFuzzerInitialize(int* argc, char*** argv);

int main(int argc, char** argv) {
  namespace fs = std::filesystem;
  if (LLVMFuzzerInitialize != nullptr) LLVMFuzzerInitialize(&argc, &argv);
  std::vector<fs::path> files;
  for (int i = 1; i < argc; ++i)
    for (const fs::directory_entry& file : fs::directory_iterator(argv[i])) files.push_back(file.path());
  std::sort(files.begin(), files.end());
  for (const fs::path& path : files) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    // Shown when what follows ends the process.
    std::cerr << path.string() << '\r';
    // Memory of just its size.
    const std::vector<uint8_t> input(bytes.begin(), bytes.end());
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  const sifcrypt::fuzz::Amount& most = sifcrypt::fuzz::most;
  std::cout << files.size() << " checks; most allocations " << most.allocations << ", their bytes " << most.allocated
            << ", reads " << most.reads << ", bytes read " << most.read << ", output " << most.output << '\n';
  return files.empty() ? 1 : 0;
}
