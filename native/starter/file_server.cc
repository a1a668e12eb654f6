#define FUSE_USE_VERSION 312

#include "starter/file_server.h"

#include <fuse3/fuse_lowlevel.h>
#include <limits.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <utility>

#include "core/system_error.h"
#include "starter/fuse_answers.h"
#include "starter/fuse_mount.h"

namespace sifcrypt::starter {

namespace {

constexpr uint32_t kBlockUnit = 512;
constexpr uint32_t kStatUnit = 4096;

struct Folder : FuseFileSystem {
  std::vector<ServedFile> files;
  Owner owner;
  time_t time = 0;

  /// They are numbered behind the folder. SystemError ENOENT.
  const ServedFile& FileOf(fuse_ino_t ino) const {
    if (ino <= FUSE_ROOT_ID || ino - FUSE_ROOT_ID > files.size()) throw SystemError(ENOENT, "fuse");
    return files[ino - FUSE_ROOT_ID - 1];
  }
  static fuse_ino_t InoOf(size_t place) { return FUSE_ROOT_ID + 1 + place; }

  /// Of the folder, or of a file.
  fuse_entry_param EntryOf(fuse_ino_t ino) const {
    fuse_entry_param entry{};
    struct stat& attributes = entry.attr;
    entry.ino = attributes.st_ino = ino;
    const bool is_folder = ino == FUSE_ROOT_ID;
    attributes.st_mode = is_folder ? S_IFDIR | 0500 : S_IFREG | FileOf(ino).mode;
    attributes.st_nlink = is_folder ? 2 : 1;
    attributes.st_uid = owner.uid;
    attributes.st_gid = owner.gid;
    attributes.st_size = is_folder ? 0 : static_cast<off_t>(FileOf(ino).bytes->Size());
    attributes.st_blksize = kFuseMaxRead;
    attributes.st_blocks = (attributes.st_size + kBlockUnit - 1) / kBlockUnit;
    attributes.st_atime = attributes.st_mtime = attributes.st_ctime = time;
    entry.attr_timeout = entry.entry_timeout = kForever;
    return entry;
  }
};

template <typename Body>
void Answer(fuse_req_t request, Body body) noexcept {
  // The kernel learns of a damaged image as of a damaged disk.
  const auto meaning = [](const SystemError& failure) {
    return failure.error() == ENOENT || failure.error() == ENOMEM ? failure.error() : EIO;
  };
  AnswerBy<Folder>(request, meaning, body);
}

void OnInit(void* data, fuse_conn_info* connection) {
  Connect(*static_cast<FuseFileSystem*>(data), connection, {FUSE_CAP_READDIRPLUS_AUTO, FUSE_CAP_AUTO_INVAL_DATA});
}

void OnLookup(fuse_req_t request, fuse_ino_t, const char* name) {
  Answer(request, [&](Folder& folder) {
    const auto found = std::find_if(folder.files.begin(), folder.files.end(),
                                    [name](const ServedFile& file) { return file.name == name; });
    fuse_entry_param entry{};
    entry.entry_timeout = kForever;  // with inode number 0: remembered that there is none
    if (found != folder.files.end())
      entry = folder.EntryOf(Folder::InoOf(static_cast<size_t>(found - folder.files.begin())));
    fuse_reply_entry(request, &entry);
  });
}

void OnGetAttr(fuse_req_t request, fuse_ino_t ino, fuse_file_info*) {
  Answer(request, [&](Folder& folder) {
    const fuse_entry_param entry = folder.EntryOf(ino);
    fuse_reply_attr(request, &entry.attr, kForever);
  });
}

void OnRead(fuse_req_t request, fuse_ino_t ino, size_t size, off_t offset, fuse_file_info*) {
  Answer(request, [&](Folder& folder) {
    const ByteSource& bytes = *folder.FileOf(ino).bytes;
    const uint64_t at = std::min(static_cast<uint64_t>(offset), bytes.Size());
    // Each thread has its own: a megabyte that is fresh for each answer costs more than what is read into it.
    thread_local std::vector<char> buffer(kFuseMaxRead);
    size = static_cast<size_t>(std::min({uint64_t{size}, bytes.Size() - at, uint64_t{buffer.size()}}));
    bytes.ReadAt(at, buffer.data(), size);
    fuse_reply_buf(request, buffer.data(), size);
  });
}

void OnStatFs(fuse_req_t request, fuse_ino_t) {
  Answer(request, [&](Folder& folder) {
    struct statvfs answer {};
    answer.f_bsize = answer.f_frsize = kStatUnit;
    for (const ServedFile& file : folder.files) answer.f_blocks += file.bytes->Size() / kStatUnit;
    answer.f_files = folder.files.size();
    answer.f_namemax = NAME_MAX;
    fuse_reply_statfs(request, &answer);
  });
}

template <bool plus>
void OnReadDir(fuse_req_t request, fuse_ino_t, size_t size, off_t offset, fuse_file_info*) {
  Answer(request, [&](Folder& folder) {
    std::vector<std::pair<std::string, fuse_ino_t>> names = {{".", FUSE_ROOT_ID}, {"..", FUSE_ROOT_ID}};
    for (size_t i = 0; i < folder.files.size(); ++i) names.emplace_back(folder.files[i].name, Folder::InoOf(i));
    Listing<plus> listing(request, size);
    for (auto at = static_cast<uint64_t>(offset); at < names.size(); ++at) {
      fuse_entry_param entry = folder.EntryOf(names[at].second);
      // Of the first two the kernel wants no more than that they are there.
      if (at < 2) entry.ino = 0;
      if (!listing.Add(names[at].first, entry, at + 1)) break;
    }
    listing.Reply();
  });
}

fuse_lowlevel_ops Operations() {
  fuse_lowlevel_ops operations = OpeningOperations();
  operations.init = OnInit;
  operations.lookup = OnLookup;
  operations.getattr = OnGetAttr;
  operations.read = OnRead;
  operations.statfs = OnStatFs;
  operations.readdir = OnReadDir<false>;
  operations.readdirplus = OnReadDir<true>;
  return operations;
}

}  // namespace

std::unique_ptr<FuseSession> ServeFiles(std::vector<ServedFile> files, Owner owner, time_t time, UniqueFd device) {
  auto folder = std::make_unique<Folder>();
  folder->files = std::move(files);
  folder->owner = owner;
  folder->time = time;
  return std::make_unique<FuseSession>(Operations(), std::move(folder), std::move(device));
}

}  // namespace sifcrypt::starter
