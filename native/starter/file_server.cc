#define FUSE_USE_VERSION 312

#include "starter/file_server.h"

#include <fuse3/fuse_lowlevel.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <utility>

#include "core/system_error.h"
#include "starter/fuse_mount.h"
#include "starter/fuse_session.h"

namespace sifcrypt::starter {

struct FileServer::Implementation : FuseFileSystem {
  std::vector<File> files;
  Owner owner;
  time_t time = 0;

  /// Of the folder, or of the file whose number this is.
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
    attributes.st_blocks = (attributes.st_size + 511) / 512;
    attributes.st_atime = attributes.st_mtime = attributes.st_ctime = time;
    entry.attr_timeout = entry.entry_timeout = kForever;
    return entry;
  }
  /// They are numbered behind the folder. SystemError ENOENT.
  const File& FileOf(fuse_ino_t ino) const {
    if (ino <= FUSE_ROOT_ID || ino - FUSE_ROOT_ID > files.size()) throw SystemError(ENOENT, "fuse");
    return files[ino - FUSE_ROOT_ID - 1];
  }
  static fuse_ino_t InoOf(size_t place) { return FUSE_ROOT_ID + 1 + place; }

  template <bool plus>
  static void List(fuse_req_t request, size_t size, off_t offset);
  static fuse_lowlevel_ops Operations();
};

namespace {

using Files = FileServer::Implementation;

template <typename Body>
void Answer(fuse_req_t request, Body body) noexcept {
  // The kernel learns of a damaged image as of a damaged disk.
  const auto meaning = [](const SystemError& failure) {
    return failure.error() == ENOENT || failure.error() == ENOMEM ? failure.error() : EIO;
  };
  AnswerBy<Files>(request, meaning, body);
}

void OnLookup(fuse_req_t request, fuse_ino_t, const char* name) {
  Answer(request, [&](Files& served) {
    const auto found = std::find_if(served.files.begin(), served.files.end(),
                                    [name](const FileServer::File& file) { return file.name == name; });
    fuse_entry_param entry{};
    entry.entry_timeout = kForever;  // with inode number 0: remembered that there is none
    if (found != served.files.end())
      entry = served.EntryOf(Files::InoOf(static_cast<size_t>(found - served.files.begin())));
    fuse_reply_entry(request, &entry);
  });
}

void OnRead(fuse_req_t request, fuse_ino_t ino, size_t size, off_t offset, fuse_file_info*) {
  Answer(request, [&](Files& served) {
    const ByteSource& bytes = *served.FileOf(ino).bytes;
    const uint64_t at = std::min(static_cast<uint64_t>(offset), bytes.Size());
    // Each thread has its own: a megabyte that is fresh for each answer costs more than what is read into it.
    thread_local std::vector<char> buffer(kFuseMaxRead);
    size = static_cast<size_t>(std::min({uint64_t{size}, bytes.Size() - at, uint64_t{buffer.size()}}));
    bytes.ReadAt(at, buffer.data(), size);
    fuse_reply_buf(request, buffer.data(), size);
  });
}

}  // namespace

template <bool plus>
void FileServer::Implementation::List(fuse_req_t request, size_t size, off_t offset) {
  Answer(request, [&](Files& served) {
    std::vector<std::pair<std::string, fuse_ino_t>> names = {{".", FUSE_ROOT_ID}, {"..", FUSE_ROOT_ID}};
    for (size_t i = 0; i < served.files.size(); ++i) names.emplace_back(served.files[i].name, InoOf(i));
    Listing<plus> listing(request, size);
    for (auto at = static_cast<uint64_t>(offset); at < names.size(); ++at) {
      fuse_entry_param entry = served.EntryOf(names[at].second);
      // Of these two the kernel wants no more than that they are there.
      if (at < 2) entry.ino = 0;
      if (!listing.Add(names[at].first, entry, at + 1)) break;
    }
    listing.Reply();
  });
}

fuse_lowlevel_ops FileServer::Implementation::Operations() {
  fuse_lowlevel_ops operations = OpeningOperations();
  operations.init = [](void* data, fuse_conn_info* connection) {
    Connect(*static_cast<FuseFileSystem*>(data), connection, {FUSE_CAP_READDIRPLUS_AUTO, FUSE_CAP_AUTO_INVAL_DATA});
  };
  operations.lookup = OnLookup;
  operations.getattr = [](fuse_req_t request, fuse_ino_t ino, fuse_file_info*) {
    Answer(request, [&](Files& served) {
      const fuse_entry_param entry = served.EntryOf(ino);
      fuse_reply_attr(request, &entry.attr, kForever);
    });
  };
  operations.read = OnRead;
  operations.statfs = [](fuse_req_t request, fuse_ino_t) {
    Answer(request, [&](Files& served) {
      struct statvfs answer {};
      answer.f_bsize = answer.f_frsize = 4096;
      for (const File& file : served.files) answer.f_blocks += file.bytes->Size() / answer.f_frsize;
      answer.f_files = served.files.size();
      answer.f_namemax = 255;
      fuse_reply_statfs(request, &answer);
    });
  };
  operations.readdir = [](fuse_req_t request, fuse_ino_t, size_t size, off_t offset, fuse_file_info*) {
    List<false>(request, size, offset);
  };
  operations.readdirplus = [](fuse_req_t request, fuse_ino_t, size_t size, off_t offset, fuse_file_info*) {
    List<true>(request, size, offset);
  };
  return operations;
}

FileServer::FileServer(std::vector<File> files, Owner owner, time_t time, UniqueFd device)
    : impl_(std::make_unique<Implementation>()) {
  impl_->files = std::move(files);
  impl_->owner = owner;
  impl_->time = time;
  impl_->session = std::make_unique<FuseSession>(Implementation::Operations(), *impl_, std::move(device));
  impl_->session->Start();
}

FileServer::~FileServer() {
  // Nobody is to ask any more when the files go.
  impl_->session.reset();
}

int FileServer::ended_fd() const { return impl_->session->ended_fd(); }

}  // namespace sifcrypt::starter
