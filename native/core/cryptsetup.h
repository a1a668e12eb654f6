// libcryptsetup as this project uses it: opened at first use, quiet, one call at a time, on headers that lie in memory.
#pragma once

#include <libcryptsetup.h>

#include <cstdint>
#include <mutex>
#include <string>

#include "core/unique_fd.h"

namespace sifcrypt::cryptsetup {

/// The functions we call. The library is never linked, only its header is used.
struct Library {
  decltype(&crypt_init) init;
  decltype(&crypt_init_data_device) init_data_device;
  decltype(&crypt_free) free;
  decltype(&crypt_load) load;
  decltype(&crypt_format) format;
  decltype(&crypt_set_log_callback) set_log_callback;
  decltype(&crypt_set_rng_type) set_rng_type;
  decltype(&crypt_set_pbkdf_type) set_pbkdf_type;
  decltype(&crypt_get_pbkdf_type) get_pbkdf_type;
  decltype(&crypt_set_data_offset) set_data_offset;
  decltype(&crypt_set_metadata_size) set_metadata_size;
  decltype(&crypt_metadata_locking) metadata_locking;
  decltype(&crypt_keyslot_add_by_volume_key) keyslot_add_by_volume_key;
  decltype(&crypt_keyslot_area) keyslot_area;
  decltype(&crypt_volume_key_get) volume_key_get;
  decltype(&crypt_volume_key_verify) volume_key_verify;
  decltype(&crypt_get_volume_key_size) get_volume_key_size;
  decltype(&crypt_activate_by_volume_key) activate_by_volume_key;
};

/// Exclusive use of the library, which keeps global state (log callback, random generator, lock settings).
class Session {
 public:
  Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  const Library& operator*() const { return *library_; }
  const Library* operator->() const { return library_; }
  /// Throws SystemError with `operation` and what the library logged when `result` is a negative errno; EMFILE or ENFILE where that came of
  /// having no descriptors left.
  int Check(int result, const char* operation) const;

 private:
  std::unique_lock<std::mutex> lock_;
  const Library* library_;
};

/// A file in memory that stands for the device of a header; libcryptsetup opens it by its path.
class HeaderFile {
 public:
  explicit HeaderFile(uint64_t size);
  int fd() const { return fd_.get(); }
  uint64_t size() const { return size_; }
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_.get()); }
  void Write(uint64_t offset, const void* data, size_t size);
  void Read(uint64_t offset, void* out, size_t size) const;

 private:
  UniqueFd fd_;
  uint64_t size_;
};

/// A crypt_device; must end before its session.
class Device {
 public:
  Device(const Session& session, const HeaderFile& header);
  Device(const Session& session, const HeaderFile& header, const std::string& data_device);
  ~Device() { library_->free(device_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  crypt_device* get() const { return device_; }

 private:
  const Library* library_;
  crypt_device* device_ = nullptr;
};

}  // namespace sifcrypt::cryptsetup
