#include "core/luks.h"

#include <sys/random.h>

#include <algorithm>

#include "core/cryptsetup.h"
#include "core/system_error.h"

namespace sifcrypt::luks {
namespace {

/// The smallest of LUKS2 (on-disk format, 2.1): all that cryptsetup 2.0 knows.
constexpr uint64_t kMetadataSize = 16 << 10;
/// libcryptsetup's lower limit for PBKDF2; for the digest of a random volume key, guessing which is hopeless, it is
/// enough.
constexpr uint32_t kMinPbkdf2Iterations = 1000;
constexpr uint32_t kUnit = 512;

crypt_pbkdf_type Pbkdf(const Kdf& kdf) {
  crypt_pbkdf_type pbkdf{};
  pbkdf.type = kdf.type.c_str();
  pbkdf.hash = "sha256";
  pbkdf.iterations = kdf.iterations;
  pbkdf.max_memory_kb = kdf.memory;
  pbkdf.parallel_threads = kdf.parallel;
  pbkdf.flags = CRYPT_PBKDF_NO_BENCHMARK;
  return pbkdf;
}

SecretBuffer RandomBytes(size_t size) {
  SecretBuffer bytes(size);
  size_t done = 0;
  while (done < size) {
    const ssize_t n = getrandom(bytes.data() + done, size - done, 0);
    if (n < 0 && errno == EINTR) continue;
    done += static_cast<size_t>(CheckErrno(n, "getrandom"));
  }
  return bytes;
}

const char* Bytes(const SecretBuffer& secret) { return reinterpret_cast<const char*>(secret.data()); }

/// Copies what there is of [offset, offset + size) of `fd`, leaving out holes: a keyslots area is mostly unused.
void CopyArea(int fd, uint64_t offset, uint64_t size, cryptsetup::HeaderFile& out) {
  std::vector<uint8_t> buffer(std::min<uint64_t>(size, 1 << 20));
  uint64_t at = 0;
  while (at < size) {
    const off_t data = lseek(fd, static_cast<off_t>(offset + at), SEEK_DATA);
    if (data < 0 && errno == ENXIO) return;
    // EINVAL, ESPIPE: no hole detection there; everything is data then. Reading does not depend on the file position.
    if (data >= 0) at = std::max(at, static_cast<uint64_t>(data) - offset);
    if (at >= size) return;
    const ssize_t n =
        pread(fd, buffer.data(), std::min<uint64_t>(buffer.size(), size - at), static_cast<off_t>(offset + at));
    if (n < 0 && errno == EINTR) continue;
    if (CheckErrno(n, "pread") == 0) return;
    out.Write(at, buffer.data(), static_cast<size_t>(n));
    at += static_cast<uint64_t>(n);
  }
}

void CopyArea(const ByteSource& source, uint64_t size, cryptsetup::HeaderFile& out) {
  std::vector<uint8_t> buffer(std::min<uint64_t>(size, 1 << 20));
  for (uint64_t at = 0; at < size; at += buffer.size()) {
    const size_t n = std::min<uint64_t>(buffer.size(), size - at);
    source.ReadAt(at, buffer.data(), n);
    out.Write(at, buffer.data(), n);
  }
}

int AddKeyslot(const cryptsetup::Session& session, const cryptsetup::Device& device, int id,
               const SecretBuffer& volume_key, const NewKeyslot& keyslot) {
  crypt_pbkdf_type pbkdf = Pbkdf(keyslot.kdf);
  session.Check(session->set_pbkdf_type(device.get(), &pbkdf), "crypt_set_pbkdf_type");
  // Where there is no swap, some versions take no more memory than half of what nothing is in, not even files that are only cached.
  const crypt_pbkdf_type* taken = session->get_pbkdf_type(device.get());
  if (taken != nullptr && taken->max_memory_kb > 0 && taken->max_memory_kb < pbkdf.max_memory_kb) {
    const uint64_t work = uint64_t{pbkdf.iterations} * pbkdf.max_memory_kb;
    pbkdf.max_memory_kb = taken->max_memory_kb;
    pbkdf.iterations = static_cast<uint32_t>((work + pbkdf.max_memory_kb - 1) / pbkdf.max_memory_kb);
    session.Check(session->set_pbkdf_type(device.get(), &pbkdf), "crypt_set_pbkdf_type");
  }
  return session.Check(session->keyslot_add_by_volume_key(device.get(), id, Bytes(volume_key), volume_key.size(),
                                                          Bytes(keyslot.secret), keyslot.secret.size()),
                       "crypt_keyslot_add");
}

}  // namespace

Formatted Format(const FormatRequest& request) {
  if (request.header_size > kMaxAreaSize || request.header_size <= 2 * kMetadataSize || request.header_size % 4096 != 0)
    throw SystemError(EINVAL, "crypt_format", "header size " + std::to_string(request.header_size));
  Formatted formatted{{}, RandomBytes(request.volume_key_size)};
  cryptsetup::HeaderFile file(request.header_size);
  {
    const cryptsetup::Session session;
    const cryptsetup::Device device(session, file);
    session->set_rng_type(device.get(), CRYPT_RNG_URANDOM);
    session.Check(session->set_metadata_size(device.get(), kMetadataSize, request.header_size - 2 * kMetadataSize),
                  "crypt_set_metadata_size");
    session.Check(session->set_data_offset(device.get(), request.header_size / kUnit), "crypt_set_data_offset");
    const Kdf digest{"pbkdf2", kMinPbkdf2Iterations, 0, 0};
    const crypt_pbkdf_type digest_pbkdf = Pbkdf(digest);
    crypt_params_luks2 parameters{};
    parameters.pbkdf = &digest_pbkdf;
    parameters.sector_size = request.sector_size;
    session.Check(session->format(device.get(), CRYPT_LUKS2, "aes", "xts-plain64", nullptr, Bytes(formatted.volume_key),
                                  formatted.volume_key.size(), &parameters),
                  "crypt_format");
    // The library fills the keyslots area with random bytes, to hide on a disk which keyslots were used before. This
    // one is new, so 4 MiB of noise in every image would buy nothing.
    CheckErrno(fallocate(file.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * kMetadataSize,
                         static_cast<off_t>(request.header_size - 2 * kMetadataSize)),
               "fallocate");
    for (size_t i = 0; i < request.keyslots.size(); ++i)
      AddKeyslot(session, device, static_cast<int>(i), formatted.volume_key, request.keyslots[i]);
  }
  formatted.header.resize(request.header_size);
  file.Read(0, formatted.header.data(), formatted.header.size());
  return formatted;
}

Unlocked Unlock(const UnlockRequest& request) {
  if (request.area_size > kMaxAreaSize || request.metadata.size() > request.area_size ||
      request.offset > static_cast<uint64_t>(INT64_MAX) - kMaxAreaSize)
    throw SystemError(EINVAL, "crypt_load", "header area of " + std::to_string(request.area_size) + " bytes");
  cryptsetup::HeaderFile file(request.area_size);
  if (request.source)
    CopyArea(*request.source, request.area_size, file);
  else
    CopyArea(request.fd, request.offset, request.area_size, file);
  file.Write(0, request.metadata.data(), request.metadata.size());
  const cryptsetup::Session session;
  const cryptsetup::Device device(session, file);
  session.Check(session->load(device.get(), CRYPT_LUKS2, nullptr), "crypt_load");
  const int key_size = session->get_volume_key_size(device.get());
  if (key_size <= 0) throw SystemError(EINVAL, "crypt_load", "no volume key size");
  SecretBuffer room(static_cast<size_t>(key_size));
  size_t size = room.size();
  const int keyslot =
      session.Check(session->volume_key_get(device.get(), request.keyslot, reinterpret_cast<char*>(room.data()), &size,
                                            Bytes(request.secret), request.secret.size()),
                    "crypt_volume_key_get");
  return {SecretBuffer(room.data(), std::min(size, room.size())), keyslot};
}

Added AddKeyslots(const AddRequest& request) {
  if (request.area_size > kMaxAreaSize || request.metadata.size() > request.area_size)
    throw SystemError(EINVAL, "crypt_load", "header area of " + std::to_string(request.area_size) + " bytes");
  Added added;
  cryptsetup::HeaderFile file(request.area_size);
  file.Write(0, request.metadata.data(), request.metadata.size());
  const cryptsetup::Session session;
  const cryptsetup::Device device(session, file);
  session.Check(session->load(device.get(), CRYPT_LUKS2, nullptr), "crypt_load");
  // Adding verifies it too, and a digest may cost a tenth of a second.
  if (request.keyslots.empty())
    session.Check(session->volume_key_verify(device.get(), Bytes(request.volume_key), request.volume_key.size()),
                  "crypt_volume_key_verify");
  for (const NewKeyslot& keyslot : request.keyslots) {
    const int id = AddKeyslot(session, device, CRYPT_ANY_SLOT, request.volume_key, keyslot);
    uint64_t offset = 0, size = 0;
    session.Check(session->keyslot_area(device.get(), id, &offset, &size), "crypt_keyslot_area");
    AddedKeyslot result{id, offset, std::vector<uint8_t>(size)};
    file.Read(offset, result.area.data(), result.area.size());
    added.keyslots.push_back(std::move(result));
  }
  added.metadata.resize(request.metadata.size());
  file.Read(0, added.metadata.data(), added.metadata.size());
  return added;
}

}  // namespace sifcrypt::luks
