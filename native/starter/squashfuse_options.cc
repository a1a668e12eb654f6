#include "starter/squashfuse_options.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <charconv>
#include <iterator>
#include <string_view>

#include "starter/options.h"

namespace sifcrypt::starter {
namespace {

constexpr char kDescriptors[] = "/dev/fd/";
/// Of /dev/fuse: devices.txt of the kernel.
constexpr unsigned kMiscMajor = 10;
constexpr unsigned kFuseMinor = 229;

template <typename Number>
Number ParseNumber(std::string_view text, const std::string& what) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size())
    throw UsageError(what + ": not a number, or one that is too large");
  return value;
}

/// What squashfuse takes for no owner at all.
template <typename Id>
std::optional<Id> ParseOwner(std::string_view text, const std::string& what) {
  const Id id = ParseNumber<Id>(text, what);
  return id == 0 ? std::nullopt : std::optional<Id>(id);
}

struct MountFlag {
  const char* name;
  unsigned long flag;
  bool is_set;
};
constexpr MountFlag kMountFlags[] = {
    {"nosuid", MS_NOSUID, true},   {"suid", MS_NOSUID, false},   {"nodev", MS_NODEV, true},
    {"dev", MS_NODEV, false},      {"noexec", MS_NOEXEC, true},  {"exec", MS_NOEXEC, false},
    {"noatime", MS_NOATIME, true}, {"atime", MS_NOATIME, false},
};
/// What is so anyway, or makes no difference to what is read; those with a value end in "=".
constexpr std::string_view kIgnored[] = {
    "ro",        "rw",       "async",    "sync",   "dirsync",  "clone_fd",     "auto_unmount",
    "max_read=", "subtype=", "blksize=", "blkdev", "nonempty", "max_threads=", "max_idle_threads="};
constexpr std::string_view kAccess[] = {"allow_other", "default_permissions"};

bool IsIgnored(std::string_view option) {
  return std::any_of(std::begin(kIgnored), std::end(kIgnored), [option](std::string_view known) {
    return known.back() == '=' ? option.starts_with(known) : option == known;
  });
}

/// One of those behind -o.
void ParseMountOption(const std::string& option, SquashfuseOptions& options) {
  const size_t equals = option.find('=');
  const std::string name = option.substr(0, equals);
  const std::string what = "-o " + name;
  const bool has_value = equals != std::string::npos;
  const std::string value = has_value ? option.substr(equals + 1) : "";
  if (has_value && name == "offset") {
    options.offset = ParseNumber<uint64_t>(value, what);
  } else if (has_value && name == "uid") {
    options.uid = ParseOwner<uid_t>(value, what);
  } else if (has_value && name == "gid") {
    options.gid = ParseOwner<gid_t>(value, what);
  } else if (has_value && name == "timeout") {
    options.timeout = ParseNumber<unsigned>(value, what);
  } else if (has_value && name == "subdir") {
    options.subdir = value;
  } else if (has_value && name == "notify_pipe") {
    options.notify_pipe = value;
  } else if (has_value && name == "fsname") {
    options.source = value;
  } else if (option == "debug") {
    options.foreground = true;
  } else if (std::find(std::begin(kAccess), std::end(kAccess), option) != std::end(kAccess)) {
    options.access += (options.access.empty() ? "" : ",") + option;
  } else if (const auto* flag = std::find_if(std::begin(kMountFlags), std::end(kMountFlags),
                                             [&](const MountFlag& known) { return option == known.name; });
             flag != std::end(kMountFlags)) {
    options.flags = flag->is_set ? options.flags | flag->flag : options.flags & ~flag->flag;
  } else if (!IsIgnored(option)) {
    throw UsageError("unknown option: -o " + option);
  }
}

/// A comma ends one, unless a backslash stands before it.
void ParseMountOptions(std::string_view list, SquashfuseOptions& options) {
  std::string option;
  for (size_t at = 0; at <= list.size(); ++at) {
    if (at == list.size() || list[at] == ',') {
      if (!option.empty()) ParseMountOption(option, options);
      option.clear();
    } else {
      if (list[at] == '\\' && at + 1 < list.size()) ++at;
      option += list[at];
    }
  }
}

/// -1: it is another kind of path.
int DeviceOf(std::string_view mount_point) {
  if (!mount_point.starts_with(kDescriptors)) return -1;
  const int fd = ParseNumber<int>(mount_point.substr(std::size(kDescriptors) - 1), std::string(mount_point));
  struct stat info {};
  if (fd < 0 || fstat(fd, &info) != 0 || !S_ISCHR(info.st_mode) || info.st_rdev != makedev(kMiscMajor, kFuseMinor))
    throw UsageError(std::string(mount_point) + ": not an open /dev/fuse");
  return fd;
}

}  // namespace

const char* const kSquashfuseUsage =
    "Usage: squashfuse_ll [options] ARCHIVE MOUNTPOINT\n"
    "\n"
    "Mounts a squashfs, by sifcrypt in the place of squashfuse_ll. MOUNTPOINT may be /dev/fd/N,\n"
    "a /dev/fuse that is mounted already.\n"
    "\n"
    "    -o offset=N            the squashfs begins at byte N of ARCHIVE\n"
    "    -o subdir=PATH         show this folder of it\n"
    "    -o uid=N               every file belongs to user N\n"
    "    -o gid=N               every file belongs to group N\n"
    "    -o timeout=N           unmount after N seconds in which nobody used it\n"
    "    -o notify_pipe=PATH    write 's' to this FIFO when it is mounted, 'f' when it cannot be\n"
    "    -o allow_other         other users may look, too\n"
    "    -o default_permissions the kernel checks the modes of files\n"
    "    -o fsname=NAME         what mount tables show as the source\n"
    "    -f                     stay in the foreground\n"
    "    -d, -o debug           the same\n"
    "    -s                     accepted: it serves with as many threads as it likes\n"
    "    -h, --help             print this\n"
    "    -V, --version          print the version\n";

SquashfuseOptions ParseSquashfuseOptions(const std::vector<std::string>& arguments) {
  SquashfuseOptions options;
  std::vector<std::string> paths;
  bool only_paths = false;
  for (size_t at = 0; at < arguments.size(); ++at) {
    const std::string& word = arguments[at];
    if (only_paths || word.size() < 2 || word[0] != '-') {
      paths.push_back(word);
    } else if (word == "--") {
      only_paths = true;
    } else if (word.starts_with("-h") || word.starts_with("--h")) {
      options.wanted = SquashfuseOptions::Wanted::kHelp;
      return options;
    } else if (word == "-V" || word == "--version") {
      options.wanted = SquashfuseOptions::Wanted::kVersion;
      return options;
    } else if (word == "-f" || word == "-d") {
      options.foreground = true;
    } else if (word.starts_with("-o")) {
      if (word.size() == 2 && ++at == arguments.size()) throw UsageError("-o has no value");
      ParseMountOptions(word.size() == 2 ? arguments[at] : std::string_view(word).substr(2), options);
    } else if (word != "-s") {
      throw UsageError("unknown option: " + word);
    }
  }
  if (paths.size() != 2) throw UsageError("it takes ARCHIVE and MOUNTPOINT");
  options.archive = paths[0];
  options.mount_point = paths[1];
  options.device = DeviceOf(options.mount_point);
  return options;
}

}  // namespace sifcrypt::starter
