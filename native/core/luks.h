// LUKS2 headers without privilege: formatted in memory, opened from memory. What a header may ask for is decided
// before, in lib/device/luks-header.ts; here only libcryptsetup's own rules and plain bounds apply.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/byte_range.h"
#include "core/secret_buffer.h"

namespace sifcrypt::luks {

struct Kdf {
  /// "pbkdf2", "argon2i" or "argon2id".
  std::string type;
  uint32_t iterations = 0;
  /// KiB; 0 for PBKDF2.
  uint32_t memory = 0;
  /// Threads; 0 for PBKDF2.
  uint32_t parallel = 0;
};

struct NewKeyslot {
  SecretBuffer secret;
  Kdf kdf;
};

struct FormatRequest {
  /// Bytes: 32 or 64.
  size_t volume_key_size = 64;
  /// Bytes: 512 to 4096.
  uint32_t sector_size = 4096;
  /// Bytes up to the data segment.
  uint64_t header_size = 0;
  std::vector<NewKeyslot> keyslots;
};

struct Formatted {
  /// Both copies of the metadata (16 KiB each) and the keyslots area, zeros where it is unused.
  std::vector<uint8_t> header;
  SecretBuffer volume_key;
};

/// Makes a header with one segment, aes-xts-plain64, from its end to the end of the device. Costs are taken as they
/// are, nothing is benchmarked; where libcryptsetup takes less memory, it makes as many more passes. Throws SystemError.
Formatted Format(const FormatRequest& request);

struct UnlockRequest {
  /// Where the header starts in `fd`, bytes.
  int fd = -1;
  uint64_t offset = 0;
  /// Instead of the file, from the header on, where what is read of it has to be verified.
  std::shared_ptr<const ByteSource> source;
  /// Bytes of header and keyslots area together, at most kMaxAreaSize.
  uint64_t area_size = 0;
  /// Takes the place of the area's first bytes: the metadata that was checked.
  std::vector<uint8_t> metadata;
  SecretBuffer secret;
  /// -1: any.
  int keyslot = -1;
};

struct Unlocked {
  SecretBuffer volume_key;
  int keyslot = -1;
};

struct AddRequest {
  /// Bytes of the metadata and all of the keyslots area, at most kMaxAreaSize.
  uint64_t area_size = 0;
  /// The metadata that was checked. What lies in the keyslots area does not matter: nothing there is read or moved.
  std::vector<uint8_t> metadata;
  SecretBuffer volume_key;
  std::vector<NewKeyslot> keyslots;
};

struct AddedKeyslot {
  int keyslot = -1;
  /// Where its area lies in the header, and its bytes.
  uint64_t offset = 0;
  std::vector<uint8_t> area;
};

struct Added {
  /// As long as the request's: both copies, as the library wrote them.
  std::vector<uint8_t> metadata;
  std::vector<AddedKeyslot> keyslots;
};

constexpr uint64_t kMaxAreaSize = uint64_t{64} << 20;

/// Throws SystemError: EPERM when the secret opens no keyslot, EINVAL when the header is broken or has no such keyslot,
/// ENOENT when no keyslot may be tried, ENOMEM when Argon2 got no memory. Cannot be interrupted; Argon2 takes seconds.
Unlocked Unlock(const UnlockRequest& request);

/// Adds keyslots, in areas that none in the metadata uses; with none to add, only verifies the volume key. Costs are taken
/// as they are. Throws SystemError: EPERM when the volume key is not the one that the digest verifies, ENOSPC or EINVAL
/// when there is no room.
Added AddKeyslots(const AddRequest& request);

}  // namespace sifcrypt::luks
