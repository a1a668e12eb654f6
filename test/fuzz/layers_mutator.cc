// Changes archives where it matters, and mends the checksums of their headers, as nothing gets past a wrong one.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "target.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

using sifcrypt::fuzz::Chance;

// pax, "ustar Interchange Format".
constexpr size_t kBlock = 512;
constexpr size_t kNameSize = 100;
constexpr size_t kModeAt = 100;
constexpr size_t kSizeAt = 124;
constexpr size_t kNumberSize = 12;
constexpr size_t kChecksumAt = 148;
constexpr size_t kChecksumSize = 8;
constexpr size_t kTypeAt = 156;
constexpr size_t kTargetAt = 157;
constexpr size_t kMagicAt = 257;

constexpr char kTypes[] = "01234567SxgLKXAVM";
constexpr std::array kNames = {"../x",   ".wh.a", ".wh..wh..opq", "a/.wh.b", "a/b/c", "a",     "/",  ".",
                               "a/../b", "a/l/x", ".wh.",         "a//b",    "a/l",   ".wh.l", "..", "a/.wh..wh..opq"};
constexpr std::array kTargets = {"a", "../..", "/", "a/b", ".", "l", "x/../y", "a/l", "", "/proc/self"};

bool IsHeader(const uint8_t* header) {
  return memcmp(header + kMagicAt, "ustar", 5) == 0 ||
         (header[0] != 0 && header[kTypeAt] >= '0' && header[kTypeAt] <= '7' && header[kChecksumAt + 6] == 0);
}

void Mend(uint8_t* header) {
  memset(header + kChecksumAt, ' ', kChecksumSize);
  unsigned sum = 0;
  for (size_t i = 0; i < kBlock; ++i) sum += header[i];
  char text[kChecksumSize];
  snprintf(text, sizeof text, "%06o", sum & 0777777);
  memcpy(header + kChecksumAt, text, 7);
}

void Put(uint8_t* field, size_t size, const char* text) {
  memset(field, 0, size);
  memcpy(field, text, std::min(strlen(text), size));
}

void ChangeHeader(uint8_t* header, Chance& chance) {
  char number[kNumberSize + 1];
  switch (chance.Below(7)) {
    case 0:
      header[kTypeAt] = static_cast<uint8_t>(kTypes[chance.Below(sizeof kTypes - 1)]);
      break;
    case 1:
      Put(header, kNameSize, kNames[chance.Below(kNames.size())]);
      break;
    case 2:
      Put(header + kTargetAt, kNameSize, kTargets[chance.Below(kTargets.size())]);
      break;
    case 3:
      snprintf(number, sizeof number, "%011llo",
               static_cast<unsigned long long>(chance.Below(chance.Below(3) == 0 ? UINT64_MAX >> 1 : 5000)));
      memcpy(header + kSizeAt, number, kNumberSize);
      break;
    case 4:
      // A binary number, as GNU's are.
      LLVMFuzzerMutate(header + kSizeAt, kNumberSize, kNumberSize);
      header[kSizeAt] |= 0x80;
      break;
    case 5:
      LLVMFuzzerMutate(header + kModeAt, kSizeAt - kModeAt, kSizeAt - kModeAt);
      break;
    default:
      LLVMFuzzerMutate(header, kBlock, kBlock);
  }
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  Chance chance(seed);
  const size_t blocks = size / kBlock;
  const size_t kind = blocks < 2 ? 9 : chance.Below(10);
  if (kind < 2) {
    // Whole blocks change places, or one is there twice.
    uint8_t *one = data + chance.Below(blocks) * kBlock, *other = data + chance.Below(blocks) * kBlock;
    if (kind == 0)
      std::swap_ranges(one, one + kBlock, other == one ? one : other);
    else
      memmove(one, other, kBlock);
  } else if (kind < 7) {
    for (int tries = 0; tries < 8; ++tries) {
      uint8_t* header = data + chance.Below(blocks) * kBlock;
      if (!IsHeader(header)) continue;
      ChangeHeader(header, chance);
      break;
    }
  } else {
    size = LLVMFuzzerMutate(data, size, max_size);
  }
  for (size_t at = 0; at + kBlock <= size; at += kBlock)
    if (IsHeader(data + at)) Mend(data + at);
  return size;
}
