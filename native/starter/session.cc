#include "starter/session.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <vector>

#include "core/system_error.h"
#include "starter/bundle.h"
#include "starter/confine.h"
#include "starter/fuse_mount.h"
#include "starter/health.h"
#include "starter/image.h"
#include "starter/memory_mount.h"
#include "starter/mount_points.h"
#include "starter/namespaces.h"

namespace sifcrypt::starter {
namespace {

/// What an ordinary user's containers may write in memory, as the peers limit it.
constexpr char kUserScratchLimit[] = ",size=64m";
constexpr char kConfig[] = "config.json";
/// Of a command that joins a container.
constexpr char kProcess[] = "process.json";
/// Which places of the host and of images the container gets to see.
constexpr char kBinds[] = "binds";
/// Where the container mounts, each with what: a path, or nothing for a file system of the kernel's.
constexpr char kPlaces[] = "places";
/// What the container needs to mount over.
constexpr char kMountPoints[] = "mount-points";
// openat2(2): younger than the headers that some of the systems we build on have.
#ifdef SYS_openat2
constexpr long kOpenat2 = SYS_openat2;
#else
constexpr long kOpenat2 = 437;
#endif
/// It is not sure where ".." leads, and says EAGAIN, while anything on the machine is renamed or mounted.
constexpr int kMaxLooks = 1000;

/// The initial user namespace maps every id to itself.
bool IsInitialUserNamespace() {
  std::ifstream map("/proc/self/uid_map");
  uint64_t inside = 1, outside = 1, count = 0;
  map >> inside >> outside >> count;
  return inside == 0 && outside == 0 && count == UINT32_MAX;
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// Links in an image, which is somebody else's, lead to where they would if it were the root. None: errno says why.
UniqueFd LookInside(const std::string& root, const std::string& path) {
  const UniqueFd top(CheckErrno(open(root.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC), "bind"));
  open_how how{};
  how.flags = O_PATH | O_CLOEXEC;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
  long fd = -1;
  int looks = 0;
  do fd = syscall(kOpenat2, top.get(), path.c_str(), &how, sizeof how);
  while (fd < 0 && errno == EAGAIN && ++looks < kMaxLooks);
  return UniqueFd(static_cast<int>(fd));
}

UniqueFd OpenInside(const std::string& root, const std::string& path, const std::string& name) {
  UniqueFd found = LookInside(root, path);
  if (!found)
    throw SystemError(
        errno, "bind",
        name + ": " + path + " in it: " + (errno == ENOSYS ? "this needs Linux 5.6" : std::strerror(errno)));
  return found;
}

/// Where an open folder is, from `root`: "/etc".
std::string PathFrom(const std::string& root, int folder) {
  char path[PATH_MAX];
  const std::string link = "/proc/self/fd/" + std::to_string(folder);
  const ssize_t n = CheckErrno(readlink(link.c_str(), path, sizeof path), "overlay");
  const std::string found(path, static_cast<size_t>(n));
  return found.starts_with(root + "/") ? found.substr(root.size()) : "";
}

/// An owner that is not mapped into a user namespace cannot be given; then it is the caller.
void GiveOwner(const std::string& path, const struct stat& like) {
  if (chown(path.c_str(), like.st_uid, like.st_gid) != 0 && errno != EINVAL && errno != EPERM)
    throw SystemError(errno, "overlay");
}

/// Makes the folders of a path, each below `root`, as those of the same name below `model` are.
void MakeFoldersLike(const std::string& root, const std::string& model, const std::string& path) {
  for (size_t end = 0; end != std::string::npos;) {
    end = path.find('/', end + 1);
    const std::string name = path.substr(0, end);
    const std::string target = root + name;
    if (name.empty()) continue;
    if (mkdir(target.c_str(), 0755) != 0) {
      if (errno == EEXIST) continue;
      throw SystemError(errno, "overlay", name + ": " + std::strerror(errno));
    }
    struct stat info {};
    if (lstat((model + name).c_str(), &info) != 0) {
      if (errno == ENOENT) continue;
      throw SystemError(errno, "overlay", name + ": " + std::strerror(errno));
    }
    if (!S_ISDIR(info.st_mode)) continue;
    CheckErrno(chmod(target.c_str(), info.st_mode & 07777), "overlay");
    GiveOwner(target, info);
  }
}

void MakeDirectory(const std::string& path) { CheckErrno(mkdir(path.c_str(), 0755), "mount"); }

}  // namespace

void Session::Enter(const RunOptions& options, const Channel& main, int networks) {
  const int network = options.network.exists() ? CLONE_NEWNET : 0;
  const bool below = networks >= 0 && geteuid() != 0;
  if (below) EnterNamespacesBelow(networks, options.uid_map, options.gid_map, network);
  in_user_namespace_ = below || EnterNamespaces(!options.uid_map.empty(), main, network) || !IsInitialUserNamespace();
}

void Session::MountScratch(bool is_limited) const {
  const std::string data = std::string("mode=0700") + (is_limited && in_user_namespace_ ? kUserScratchLimit : "");
  CheckErrno(mount("tmpfs", directory_.c_str(), "tmpfs", MS_NOSUID | MS_NODEV, data.c_str()), "mount");
  CheckErrno(mount(nullptr, directory_.c_str(), nullptr, MS_PRIVATE, nullptr), "mount");
  for (const char* name : {"lower", "points", "upper", "work", "layers", "images", "bound", "root", "state", "files"})
    MakeDirectory(Path(name));
}

void Session::ReadBundle(UniqueFd pipe) const {
  BundleReader reader(std::move(pipe));
  bool has_config = false;
  for (size_t count = 0; const auto record = reader.NextRecord(); ++count) {
    if (count == kMaxRecords) throw FormatError("bundle", "too many records");
    has_config |= record->name == kConfig;
    const bool is_ours = record->name == kConfig || record->name == kBinds || record->name == kPlaces ||
                         record->name == kMountPoints || record->name == kHealthCommand;
    const std::string path = is_ours ? Path(record->name) : Path("files/") + record->name;
    const UniqueFd file(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!file) throw SystemError(errno, "bundle", record->name + ": " + std::strerror(errno));
    reader.CopyTo(file.get(), record->size);
    CheckErrno(fchmod(file.get(), record->mode), "bundle");
  }
  if (!has_config) throw FormatError("bundle", "no config.json");
}

std::string Session::ReadProcess(UniqueFd pipe, const std::string& folder) const {
  BundleReader reader(std::move(pipe));
  const std::string place = Path("files/" + folder);
  std::string process;
  for (size_t count = 0; const auto record = reader.NextRecord(); ++count) {
    if (count == kMaxRecords) throw FormatError("bundle", "too many records");
    if (record->name == kProcess) {
      process = reader.Take(record->size);
      continue;
    }
    const std::string path = place + '/' + record->name;
    const UniqueFd file(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!file) throw SystemError(errno, "bundle", record->name + ": " + std::strerror(errno));
    reader.CopyTo(file.get(), record->size);
    CheckErrno(fchmod(file.get(), record->mode), "bundle");
  }
  if (process.empty()) throw FormatError("bundle", "no process.json");
  return process;
}

void Session::MountImage(const ImageOptions& image, const Channel& server, const char* access) const {
  if (image.engine == Engine::kKernel) return MountWithKernel(image, Path("lower"));
  if (image.engine == Engine::kMemory) return MountInMemory(image, Path("lower"));
  const UniqueFd device = MountFuse(Path("lower"), "sifcrypt", kReadOnly, access);
  if (!server.Send({.kind = Message::Kind::kDevice}, device.get()))
    throw SystemError(EPIPE, "server", "the server of the image has ended");
}

UniqueFd Session::OpenFolder(const ImageOptions& image) {
  UniqueFd folder(open(image.folder.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!folder) throw SystemError(errno, "mount", image.folder + ": " + std::strerror(errno));
  struct stat now {
  }, opened{};
  CheckErrno(fstat(folder.get(), &now), "mount");
  CheckErrno(fstat(image.range.fd, &opened), "mount");
  if (now.st_dev != opened.st_dev || now.st_ino != opened.st_ino)
    throw SystemError(ESTALE, "mount", image.folder + ": it was replaced meanwhile");
  return folder;
}

void Session::BindFolder(int folder, bool as_root) const {
  const std::string target = Path(as_root ? "root" : "lower");
  const std::string source = "/proc/self/fd/" + std::to_string(folder);
  // What holds the session's folder does not show the session.
  CheckErrno(mount(nullptr, directory_.c_str(), nullptr, MS_UNBINDABLE, nullptr), "mount");
  CheckErrno(mount(source.c_str(), target.c_str(), nullptr, MS_BIND | MS_REC, nullptr), "mount");
  RestrictMount(target, MS_NODEV, "mount");
  CheckErrno(mount(nullptr, directory_.c_str(), nullptr, MS_PRIVATE, nullptr), "mount");
}

void Session::MountLayers(const std::vector<LayerOptions>& layers, const std::vector<Channel>& servers) {
  layers_.emplace(layers, Path("layers"), servers);
}

void Session::MakeMountPoints() {
  const std::string image = Path("lower");
  const std::vector<std::string> words = SplitWords(ReadFile(Path(kMountPoints)));
  if (words.size() % 2 != 0 || words.size() / 2 > kMaxBinds) throw FormatError("bundle", "not a list of mount points");
  has_points_ = !words.empty();
  for (size_t i = 0; i < words.size(); i += 2) {
    const std::string& path = words[i + 1];
    if (!path.starts_with('/')) throw FormatError("bundle", "a mount point's path is not absolute");
    if (LookInside(image, path) || errno != ENOENT) continue;
    // What there is of the way to it, links followed, and what there is not.
    size_t end = path.size();
    UniqueFd above;
    do {
      end = path.rfind('/', end - 1);
      above = LookInside(image, path.substr(0, end) + "/");
    } while (!above && errno == ENOENT && end > 0);
    if (!above) continue;
    const std::string place = PathFrom(image, above.get()) + path.substr(end);
    const bool is_folder = words[i] == "d";
    MakeFoldersLike(Path("points"), image, is_folder ? place : place.substr(0, place.rfind('/')));
    if (!is_folder)
      UniqueFd(CheckErrno(open((Path("points") + place).c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644), "overlay"));
  }
}

void Session::MountOverlay() {
  const std::string prefix = directory_ + "/";
  const auto relative = [&](const std::string& path) { return path.substr(prefix.size()); };
  std::string lower;
  if (layers_)
    for (const std::string& path : layers_->read_only()) lower = relative(path) + ":" + lower;
  lower += has_points_ ? "points:lower" : "lower";
  const bool kept = layers_ && !layers_->writable().empty();
  const std::string top = kept ? relative(layers_->writable()) + "/" : "";
  // The root folder's own attributes are those of the upper layer's.
  struct stat root {};
  CheckErrno(stat(Path("lower").c_str(), &root), "overlay");
  if (!kept) {
    CheckErrno(chmod(Path("upper").c_str(), root.st_mode & 07777), "overlay");
    GiveOwner(Path("upper"), root);
  }
  // Relative, because a path could hold the separators of the option string.
  CheckErrno(chdir(directory_.c_str()), "overlay");
  std::string data = "lowerdir=" + lower + ",upperdir=" + top + "upper,workdir=" + top + "work";
  if (kept && layers_->writable_is_fuse()) {
    overlay_.emplace(
        HelperProgram{
            "fuse-overlayfs",
            {"-f", "-o", data},
            {{Path("lower"), "/lower", true}, {Path("points"), "/points"}, {Path("layers"), "/layers", true}}},
        Path("root"), MS_NOSUID | MS_NODEV, kByMode, "overlay");
    return CheckErrno(chdir("/"), "overlay"), void();
  }
  if (in_user_namespace_) data += ",userxattr";
  if (mount("overlay", "root", "overlay", MS_NOSUID | MS_NODEV, data.c_str()) != 0) {
    const bool refused = in_user_namespace_ && (errno == EPERM || errno == EINVAL);
    if (kept)
      throw SystemError(errno, "overlay",
                        layers_->writable_name() +
                            ": the kernel's overlay does not take it as the layer to write: " + std::strerror(errno));
    if (errno == EINVAL && in_user_namespace_ && has_points_)
      throw SystemError(
          errno, "overlay",
          "the folder has other file systems mounted in it, which an ordinary user's overlay may not cover");
    throw SystemError(errno, "overlay",
                      refused ? "the kernel has no overlay file system for user namespaces (Linux 5.11 has)" : "");
  }
  CheckErrno(chdir("/"), "overlay");
}

void Session::MountBinds(const std::vector<LayerOptions>& images, const std::vector<Channel>& servers) {
  if (!images.empty()) bind_images_.emplace("bind", kByMode);
  auto server = servers.begin();
  for (size_t i = 0; i < images.size(); ++i) {
    const std::string target = Path("images/") + std::to_string(i);
    MakeDirectory(target);
    bind_images_->Add(images[i], target, NeedsServer(images[i]) ? &*server++ : nullptr);
  }
  const std::vector<BindSource> binds = ParseBinds(ReadFile(Path(kBinds)), images.size());
  // What holds the session's folder does not show the session.
  CheckErrno(mount(nullptr, directory_.c_str(), nullptr, MS_UNBINDABLE, nullptr), "bind");
  for (const BindSource& bind : binds) {
    UniqueFd inside;
    std::string source = bind.path;
    if (bind.image) {
      inside = OpenInside(Path("images/") + std::to_string(*bind.image), bind.path, NameOf(images[*bind.image]));
      source = "/proc/self/fd/" + std::to_string(inside.get());
    }
    const std::string target = Path("bound/") + std::to_string(bound_.size());
    struct stat info {};
    if (stat(source.c_str(), &info) != 0) throw SystemError(errno, "bind", bind.path + ": " + std::strerror(errno));
    if (S_ISDIR(info.st_mode))
      MakeDirectory(target);
    else
      UniqueFd(CheckErrno(open(target.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600), "bind"));
    if (mount(source.c_str(), target.c_str(), nullptr, MS_BIND | MS_REC, nullptr) != 0)
      throw SystemError(errno, "bind", bind.path + ": " + std::strerror(errno));
    bound_.push_back(target);
    RestrictMount(target, (bind.devices ? 0 : MS_NODEV) | (bind.read_only ? MS_RDONLY : 0), "bind");
  }
  CheckErrno(mount(nullptr, directory_.c_str(), nullptr, MS_PRIVATE, nullptr), "bind");
}

void Session::CheckRoot() const {
  for (const char* folder : {"dev", "proc", "sys", "etc", ".sifcrypt"}) {
    struct stat info {};
    if (lstat((Path("root/") + folder).c_str(), &info) == 0) {
      if (!S_ISDIR(info.st_mode))
        throw SystemError(ENOTDIR, "root",
                          std::string("/") + folder + " is no folder, in the image or what lies over it");
    } else if (errno != ENOENT) {
      throw SystemError(errno, "root", std::string("/") + folder + ": " + std::strerror(errno));
    }
  }
}

void Session::MakePlaces() const {
  const std::vector<std::string> words = SplitWords(ReadFile(Path(kPlaces)));
  if (words.size() % 2 != 0) throw FormatError("bundle", "not a list of places");
  std::vector<std::string> covered;
  for (size_t i = 0; i < words.size(); i += 2) {
    // What lies in something that is mounted before is there, or made there.
    bool is_inside = false;
    for (size_t before = 0; before < i; before += 2) is_inside |= words[i].starts_with(words[before] + '/');
    if (is_inside) continue;
    struct stat source {};
    const bool is_folder = words[i + 1].empty() || stat(words[i + 1].c_str(), &source) != 0 || S_ISDIR(source.st_mode);
    covered.push_back(MakeMountPoint(Path("root"), words[i], is_folder, covered));
  }
}

std::vector<pid_t> Session::helpers() const {
  std::vector<pid_t> processes;
  if (layers_)
    for (const FuseHelper& helper : layers_->helpers()) processes.push_back(helper.process());
  if (bind_images_)
    for (const FuseHelper& helper : bind_images_->helpers()) processes.push_back(helper.process());
  if (overlay_) processes.push_back(overlay_->process());
  return processes;
}

std::string Session::NameOfHelper(pid_t process) const {
  if (layers_)
    for (const FuseHelper& helper : layers_->helpers())
      if (helper.process() == process) return helper.name();
  if (bind_images_)
    for (const FuseHelper& helper : bind_images_->helpers())
      if (helper.process() == process) return helper.name();
  return overlay_ ? overlay_->name() : "";
}

void Session::Close() {
  if (bind_images_)
    for (const std::string& target : bound_) umount2(target.c_str(), UMOUNT_NOFOLLOW | MNT_DETACH);
  bind_images_.reset();
  if (!layers_) return;
  if (overlay_)
    overlay_.reset();
  else if (umount2(Path("root").c_str(), UMOUNT_NOFOLLOW) != 0)
    umount2(Path("root").c_str(), UMOUNT_NOFOLLOW | MNT_DETACH);
  layers_.reset();
}

}  // namespace sifcrypt::starter
