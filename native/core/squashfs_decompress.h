// Decodes single blocks of a squashfs: gzip by libdeflate, zstd, lz4 and xz by their own libraries.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace sifcrypt {

/// As the superblock numbers them.
enum class SquashfsCompression : uint16_t { kGzip = 1, kLzma = 2, kLzo = 3, kXz = 4, kLz4 = 5, kZstd = 6 };

/// "gzip", ...; "unknown" for any other number.
const char* SquashfsCompressionName(uint16_t id);

/// Thread-safe: contexts are kept in a small pool, one for each thread that decodes at the same time.
class SquashfsDecompressor {
 public:
  /// Throws SystemError(ENOTSUP) that names the compressor when it is one that is not read here (lzo, lzma).
  explicit SquashfsDecompressor(uint16_t id);
  ~SquashfsDecompressor();
  SquashfsDecompressor(const SquashfsDecompressor&) = delete;
  SquashfsDecompressor& operator=(const SquashfsDecompressor&) = delete;

  /// Returns how many bytes `in` decoded to, at most `room`. Throws FormatError when it is damaged or decodes
  /// to more.
  size_t Decode(const uint8_t* in, size_t size, uint8_t* out, size_t room) const;

 private:
  struct Context;
  struct Pool;
  SquashfsCompression compression_;
  std::unique_ptr<Pool> pool_;
};

}  // namespace sifcrypt
