// Mappings by dm-crypt and dm-verity that undo themselves. Root only.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/secret_buffer.h"
#include "core/unique_fd.h"
#include "core/verity.h"

namespace sifcrypt::mapper {

struct ActivateRequest {
  /// LUKS2 metadata that was checked, and how much of the device it and the keyslots take together.
  const std::vector<uint8_t>& metadata;
  uint64_t area_size = 0;
  const SecretBuffer& volume_key;
  /// The block device whose data segment is mapped.
  std::string data_device;
  bool writable = false;
  /// What the file system frees, its file may free: for a volume of which nobody may know what is in use, no.
  bool discards = false;
};

struct VerifyRequest {
  /// What is mapped, from its start on, as far as it is wanted; a multiple of 4096.
  std::string data_device;
  uint64_t size = 0;
  /// What the tree covers; its device begins with it.
  uint64_t data_blocks = 0;
  std::string hash_device;
  const VerityParameters& parameters;
};

/// A mapping, marked for deferred removal from the moment it is open here: it lasts as long as somebody (this
/// object, a mount) has it open. As long as this object lives, and from before the mapping is made, a helper process
/// stands by that removes mapping and node should this process be killed.
class Mapping {
 public:
  /// Throws SystemError "crypt_activate" (EPERM: not this header's key; ENOTSUP: no device-mapper or dm-crypt, or a
  /// cipher the kernel lacks) or "dlopen".
  explicit Mapping(const ActivateRequest& request);
  /// The same with SystemError "verity_activate" (ENOTSUP: no device-mapper or dm-verity). What the mapping gives is
  /// verified whenever it is read from below; nothing is read here.
  explicit Mapping(const VerifyRequest& request);
  /// Also takes away the node: a mounted file system needs it no longer.
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  /// Names the block device for mount(2) while this object lives.
  const std::string& path() const { return path_; }

 private:
  class Watchdog;

  Mapping();
  /// Takes over the mapping that was made.
  void Hold(const UniqueFd& control, const char* operation);

  std::string name_;
  std::string path_;
  std::unique_ptr<Watchdog> watchdog_;
  UniqueFd device_;
};

}  // namespace sifcrypt::mapper
