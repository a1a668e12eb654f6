#include "starter/mount_points.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include "core/system_error.h"
#include "core/unique_fd.h"

namespace sifcrypt::starter {
namespace {

/// As many as the kernel follows.
constexpr int kMaxLinks = 40;
/// The host's own are mounted there: the runtime would make there what is missing.
constexpr std::array<std::string_view, 3> kKernelFolders = {"dev", "proc", "sys"};

/// The names of a path, the last one first.
std::vector<std::string> NamesOf(std::string_view path) {
  std::vector<std::string> names;
  while (!path.empty()) {
    const std::string_view name = path.substr(0, path.find('/'));
    path.remove_prefix(std::min(path.size(), name.size() + 1));
    if (!name.empty() && name != ".") names.emplace_back(name);
  }
  std::reverse(names.begin(), names.end());
  return names;
}

std::string ReadLink(int folder, const std::string& name) {
  std::string target(PATH_MAX, '\0');
  target.resize(static_cast<size_t>(CheckErrno(readlinkat(folder, name.c_str(), target.data(), PATH_MAX), "root")));
  return target;
}

void Make(int folder, const std::string& name, bool is_folder) {
  if (is_folder)
    CheckErrno(mkdirat(folder, name.c_str(), 0755), "root");
  else
    UniqueFd(CheckErrno(openat(folder, name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644), "root"));
}

bool IsKernels(const std::string& name) {
  return std::find(kKernelFolders.begin(), kKernelFolders.end(), name) != kKernelFolders.end();
}

/// One walk from the root to a place, links followed as if the root were "/".
class Walk {
 public:
  Walk(const std::string& root, const std::string& place, bool is_folder, const std::vector<std::string>& covered)
      : left_(NamesOf(place)), own_left_(left_.size()), is_folder_(is_folder), covered_(covered) {
    folders_.emplace_back(CheckErrno(open(root.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC), "root"));
  }

  enum class End { kThere, kMissing, kAstray };

  End Run() {
    while (!left_.empty()) {
      const std::string name = std::move(left_.back());
      left_.pop_back();
      const bool is_own = left_.size() < own_left_;
      if (is_own) own_left_ = left_.size();
      if (is_own) is_behind_link_ = false;
      if (name == "..") {
        if (folders_.size() > 1) {
          folders_.pop_back();
          names_.pop_back();
        }
        continue;
      }
      if (links_ > 0 && ((folders_.size() == 1 && IsKernels(name)) || IsCovered(name))) return End::kAstray;
      struct stat info {};
      if (fstatat(here(), name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) {
        if (errno == ENAMETOOLONG && is_behind_link_) return End::kAstray;
        if (errno != ENOENT || links_ == 0) {
          names_.push_back(name);
          names_.insert(names_.end(), left_.rbegin(), left_.rend());
          return End::kMissing;
        }
        Make(here(), name, !left_.empty() || is_folder_);
        if (left_.empty()) return Ended(name);
      } else if (S_ISLNK(info.st_mode)) {
        if (is_own) link_ = {UniqueFd::Duplicate(here()), name, left_.empty()};
        is_behind_link_ = true;
        if (++links_ > kMaxLinks) return End::kAstray;
        const std::string target = ReadLink(here(), name);
        if (target.starts_with('/')) {
          folders_.erase(folders_.begin() + 1, folders_.end());
          names_.clear();
        }
        const std::vector<std::string> names = NamesOf(target);
        left_.insert(left_.end(), names.begin(), names.end());
        continue;
      } else if (!S_ISDIR(info.st_mode)) {
        if (left_.empty() && !is_folder_) return Ended(name);
        return is_behind_link_ ? End::kAstray : End::kMissing;
      }
      folders_.emplace_back(
          CheckErrno(openat(here(), name.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), "root"));
      names_.push_back(name);
    }
    const bool is_fit = is_folder_ && folders_.size() > 1;
    return is_fit || !is_behind_link_ ? End::kThere : End::kAstray;
  }

  /// Where the place is, without links.
  std::string Reached() const {
    std::string path;
    for (const std::string& name : names_) path += '/' + name;
    return path;
  }

  /// Puts in the place of the link that led astray what is wanted there.
  void Replace() const {
    CheckErrno(unlinkat(link_.folder.get(), link_.name.c_str(), 0), "root");
    Make(link_.folder.get(), link_.name, !link_.is_last || is_folder_);
  }

 private:
  /// A part of the place that is a link.
  struct Link {
    UniqueFd folder;
    std::string name;
    bool is_last = false;
  };

  int here() const { return folders_.back().get(); }

  bool IsCovered(const std::string& name) const {
    return std::find(covered_.begin(), covered_.end(), Reached() + '/' + name) != covered_.end();
  }

  End Ended(const std::string& name) {
    names_.push_back(name);
    return End::kThere;
  }

  /// Opened from the root down.
  std::vector<UniqueFd> folders_;
  /// Of all but the root.
  std::vector<std::string> names_;
  /// The next one last. So many of them are the place's own, the others a link's.
  std::vector<std::string> left_;
  size_t own_left_;
  const bool is_folder_;
  const std::vector<std::string>& covered_;
  int links_ = 0;
  /// The last one.
  Link link_;
  bool is_behind_link_ = false;
};

}  // namespace

std::string MakeMountPoint(const std::string& root, const std::string& place, bool is_folder,
                           const std::vector<std::string>& covered) {
  try {
    for (;;) {
      Walk walk(root, place, is_folder, covered);
      if (walk.Run() != Walk::End::kAstray) return walk.Reached();
      walk.Replace();
    }
  } catch (const SystemError& failure) {
    throw SystemError(failure.error(), "root", place + " in the image: " + std::strerror(failure.error()));
  }
}

}  // namespace sifcrypt::starter
