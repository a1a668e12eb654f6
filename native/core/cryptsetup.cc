#include "core/cryptsetup.h"

#include <sys/mman.h>

#include "core/dynamic_library.h"
#include "core/file_range.h"
#include "core/spare_descriptors.h"
#include "core/system_error.h"

namespace sifcrypt::cryptsetup {
namespace {

std::mutex mutex;
/// What the library reported as an error since the session began; guarded by `mutex`.
std::string log_text;
constexpr size_t kLogLimit = 2000;

void Log(int level, const char* message, void*) {
  if (level != CRYPT_LOG_ERROR || log_text.size() > kLogLimit) return;
  std::string line = message;
  while (!line.empty() && (line.back() == '\n' || line.back() == '.')) line.pop_back();
  if (!log_text.empty()) log_text += "; ";
  log_text += line;
}

Library Open() {
  const DynamicLibrary file({"libcryptsetup.so.12"}, "Debian and Ubuntu: libcryptsetup12, Fedora: cryptsetup-libs");
  Library library{};
  file.Load(library.init, "crypt_init");
  file.Load(library.init_data_device, "crypt_init_data_device");
  file.Load(library.free, "crypt_free");
  file.Load(library.load, "crypt_load");
  file.Load(library.format, "crypt_format");
  file.Load(library.set_log_callback, "crypt_set_log_callback");
  file.Load(library.set_rng_type, "crypt_set_rng_type");
  file.Load(library.set_pbkdf_type, "crypt_set_pbkdf_type");
  file.Load(library.get_pbkdf_type, "crypt_get_pbkdf_type");
  file.Load(library.set_data_offset, "crypt_set_data_offset");
  file.Load(library.set_metadata_size, "crypt_set_metadata_size");
  file.Load(library.metadata_locking, "crypt_metadata_locking");
  file.Load(library.keyslot_add_by_volume_key, "crypt_keyslot_add_by_volume_key");
  file.Load(library.keyslot_area, "crypt_keyslot_area");
  file.Load(library.volume_key_get, "crypt_volume_key_get");
  file.Load(library.volume_key_verify, "crypt_volume_key_verify");
  file.Load(library.get_volume_key_size, "crypt_get_volume_key_size");
  file.Load(library.activate_by_volume_key, "crypt_activate_by_volume_key");
  // Without a callback of ours, errors go to the process's stderr.
  library.set_log_callback(nullptr, Log, nullptr);
  // Headers lie in memory that nobody else sees; the lock folder (/run/cryptsetup) is root's.
  library.metadata_locking(nullptr, 0);
  return library;
}

}  // namespace

Session::Session() : lock_(mutex) {
  // Tried again after a failure: the user may have installed it meanwhile.
  static const Library library = Open();
  library_ = &library;
  log_text.clear();
}

int Session::Check(int result, const char* operation) const {
  if (result >= 0) return result;
  // For want of a descriptor the library says ENOTBLK, ENOSYS, EIO or EINVAL; EPERM is about the secret.
  if (result != -EPERM) CheckSpareDescriptors(operation);
  throw SystemError(-result, operation, log_text);
}

HeaderFile::HeaderFile(uint64_t size)
    : fd_(CheckErrno(memfd_create("luks-header", MFD_CLOEXEC), "memfd_create")), size_(size) {
  CheckErrno(ftruncate(fd_.get(), static_cast<off_t>(size)), "ftruncate");
}

void HeaderFile::Write(uint64_t offset, const void* data, size_t size) { WriteFully(fd_.get(), offset, data, size); }

void HeaderFile::Read(uint64_t offset, void* out, size_t size) const {
  auto* to = static_cast<uint8_t*>(out);
  while (size > 0) {
    const ssize_t n = pread(fd_.get(), to, size, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (CheckErrno(n, "pread") == 0) throw SystemError(EIO, "pread");
    to += n;
    offset += static_cast<uint64_t>(n);
    size -= static_cast<size_t>(n);
  }
}

Device::Device(const Session& session, const HeaderFile& header) : library_(&*session) {
  session.Check(library_->init(&device_, header.path().c_str()), "crypt_init");
}

Device::Device(const Session& session, const HeaderFile& header, const std::string& data_device) : library_(&*session) {
  session.Check(library_->init_data_device(&device_, header.path().c_str(), data_device.c_str()), "crypt_init");
}

}  // namespace sifcrypt::cryptsetup
