// Where the bytes of an image are, and through what they are read. Two fronts fill this, the addon (bindings/convert.cc) from an
// object and the starter (starter/options.cc) from its arguments; it is put together here and nowhere else.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/byte_range.h"
#include "core/secret_buffer.h"
#include "core/verity.h"

namespace sifcrypt {

/// How bytes are encrypted. What a type does not have stays as it is; keys travel by themselves.
struct Cipher {
  enum class Type { kNone, kXts, kGocryptfs };
  Type type = Type::kNone;
  /// Of kXts: as in XtsParameters.
  uint32_t sector_size = 0;
  uint64_t iv_tweak = 0;
  /// Of kGocryptfs: the encrypted file in the root of a squashfs around it.
  std::string file;
  /// Of kGocryptfs, to be written: what is beside that file, as gocryptfs.conf.
  std::vector<uint8_t> config;
};

/// By the name that both fronts have for it; nothing: there is none.
std::optional<Cipher::Type> CipherType(std::string_view name);

/// A part of a file and how it becomes the bytes that are meant: verified, cut, deciphered.
struct ImageRange {
  /// Not owned.
  int fd = -1;
  Extent partition;
  /// Where in the file the hash tree of the partition is, with which every block that is read is verified; none without a size.
  Extent verity;
  VerityParameters verity_parameters;
  /// What of the partition is encrypted; all without a size.
  Extent segment;
  Cipher cipher;

  bool verified() const { return verity.size != 0; }
  /// Can a block turn out to be changed, which is then told?
  bool authenticates() const { return verified() || cipher.type == Cipher::Type::kGocryptfs; }
};

/// Told of a block that fails, and of what kind it is. Once for each, and not of more than some.
using OnFailedBlock = std::function<void(const char* kind, uint64_t block, const char* reason)>;

/// The partition as it lies in the file, verified. The descriptor is duplicated.
std::shared_ptr<const ByteSource> OpenStored(const ImageRange& image, const OnFailedBlock& on_failure = {});
/// What is meant. Reads: not for an event loop.
std::shared_ptr<const ByteSource> Open(const ImageRange& image, SecretBuffer key, const OnFailedBlock& on_failure = {});

/// What is written to it arrives in `file` as the cipher says.
/// @param time Of what is around the encrypted bytes, seconds since 1970.
std::unique_ptr<ByteSink> EncryptingSink(std::unique_ptr<ByteSink> file, Cipher cipher, SecretBuffer key,
                                         uint32_t time);

}  // namespace sifcrypt
