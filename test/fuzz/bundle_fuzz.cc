// What the starter is sent: the stream of a bundle's records, and the lists that are files in it.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string>

#include "core/unique_fd.h"
#include "starter/bundle.h"
#include "target.h"

namespace sifcrypt::fuzz {
namespace {

constexpr size_t kImages = 3;
constexpr Amount kBound{.allocations = 200'000, .allocated = 64 << 20, .output = 1 << 20};

UniqueFd Memory(const char* name) { return UniqueFd(CheckErrno(memfd_create(name, MFD_CLOEXEC), "memfd_create")); }

void ReadRecords(const uint8_t* data, size_t size) {
  UniqueFd stream = Memory("bundle");
  Require(write(stream.get(), data, size) == static_cast<ssize_t>(size), "memory takes the input");
  CheckErrno(lseek(stream.get(), 0, SEEK_SET), "lseek");
  starter::BundleReader reader(std::move(stream));
  const UniqueFd file = Memory("file");
  for (size_t left = starter::kMaxRecords; left > 0; --left) {
    const auto record = reader.NextRecord();
    if (!record) return;
    Require(!record->name.empty() && record->name != "." && record->name != ".." &&
                record->name.find('/') == std::string::npos && record->name.find('\0') == std::string::npos,
            "a record's name is a plain one");
    Require(record->mode <= 0777, "a record has permissions only");
    if (left % 2 == 0)
      Require(reader.Take(record->size).size() == record->size, "what is taken is all of a record");
    else
      reader.CopyTo(file.get(), record->size);
    CountOutput(record->size);
  }
}

}  // namespace
}  // namespace sifcrypt::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sifcrypt::fuzz;
  if (size > kMostInput) return 0;
  const Work work(kBound);
  sifcrypt::fuzz::Try([&] { ReadRecords(data, size); });
  const std::string text(data, data + size);
  sifcrypt::fuzz::Try([&] {
    for (const auto& bind : sifcrypt::starter::ParseBinds(text, kImages)) {
      Require(bind.path.starts_with('/') && bind.path.find('\0') == std::string::npos, "a bind has an absolute path");
      Require(!bind.image || *bind.image < kImages, "a bind is of an image that there is");
    }
  });
  sifcrypt::fuzz::Try([&] { sifcrypt::starter::SplitWords(text); });
  return 0;
}
