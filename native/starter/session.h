// The session of one run: private namespaces, a folder in memory over an existing one, the image and an overlay in it,
// the bundle. All of it exists only for the process that makes it and its children, and goes when they go.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/unique_fd.h"
#include "starter/channel.h"
#include "starter/layers.h"
#include "starter/options.h"
#include "starter/source_mounts.h"

namespace sifcrypt::starter {

class Session {
 public:
  /// `directory`: absolute, without symbolic links.
  explicit Session(std::string directory) : directory_(std::move(directory)) {}
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session() { Close(); }

  /// Enters the namespaces; `main` writes the ids of a user namespace when there are several. `networks`: the user namespace of its
  /// named networks, or -1. SystemError "userns".
  void Enter(const RunOptions& options, const Channel& main, int networks);
  /// Mounts the folder in memory and makes what is in it. `is_limited`: an ordinary user's container may write as much in memory as
  /// the peers let it. "mount".
  void MountScratch(bool is_limited) const;
  /// Fills it with what the parent sends. "bundle".
  void ReadBundle(UniqueFd pipe) const;
  /// Fills a folder among the bundle's files, and returns the record "process.json", which is none of them. "bundle".
  std::string ReadProcess(UniqueFd pipe, const std::string& folder) const;
  /// Mounts the image: by the kernel, or by FUSE with the device given to `server`, and `access` of MountFuse. "fuse", "mount"
  /// and KernelMount's.
  void MountImage(const ImageOptions& image, const Channel& server, const char* access) const;
  /// A folder that is the image, in this mount namespace: a descriptor from outside cannot be bound. "mount", ESTALE: it is no
  /// longer the one that was opened.
  static UniqueFd OpenFolder(const ImageOptions& image);
  /// Binds it where the image belongs, or with `as_root` where the root does: what is written there is written into it. "mount".
  void BindFolder(int folder, bool as_root) const;
  /// Mounts what the caller wants over the image.
  void MountLayers(const std::vector<LayerOptions>& layers, const std::vector<Channel>& servers);
  /// Makes what the bundle's file "mount-points" lists and the image, a folder, lacks: "d" or "f", and a path, each with a NUL. In
  /// a layer of its own, as nothing can be made in what belongs to ids that are not mapped here.
  void MakeMountPoints();
  /// Puts the overlay on top. "overlay".
  void MountOverlay();
  /// Prepares what the bundle's file "binds" lists, each at "bound/" and its place in the list: nosuid, and nodev unless it is
  /// for devices. (crun, which binds them on into the container, gives flags no attention in a user namespace.) "bind".
  void MountBinds(const std::vector<LayerOptions>& images, const std::vector<Channel>& servers);
  /// A link where the runtime mounts would let the image, or what lies over it, choose what is covered. SystemError "root".
  void CheckRoot() const;
  /// Makes what the bundle's file "places" lists reachable in the root. "root".
  void MakePlaces() const;
  /// Processes of file systems, which are to outlive the payload.
  std::vector<pid_t> helpers() const;
  std::string NameOfHelper(pid_t process) const;
  /// Takes away what has to be written to the disk. Everything else goes with the last process in here.
  void Close();

  std::string Path(const std::string& name) const { return directory_ + "/" + name; }
  const std::string& directory() const { return directory_; }

 private:
  std::string directory_;
  bool in_user_namespace_ = false;
  bool has_points_ = false;
  std::optional<Layers> layers_;
  std::optional<FuseHelper> overlay_;
  std::optional<SourceMounts> bind_images_;
  std::vector<std::string> bound_;
};

}  // namespace sifcrypt::starter
