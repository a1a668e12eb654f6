// The command line of the starter. It is made by a program (lib/runtime), so it is plain: --name=value, nothing else.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/image_range.h"

namespace sifcrypt::starter {

class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

enum class Engine { kUserspace, kKernel, kMemory };

struct Owner {
  uid_t uid = 0;
  gid_t gid = 0;
};

/// Where the squashfs is, or a folder that takes its place. Descriptors are inherited ones.
struct ImageOptions {
  Engine engine = Engine::kUserspace;
  ImageRange range;
  /// Absolute, without symbolic links: range.fd is this folder, and nothing else counts.
  std::string folder;
  /// A pipe that gives the key; -1: it is not encrypted.
  int key_fd = -1;
  /// A pipe that gives the LUKS2 metadata, for the kernel engine.
  int metadata_fd = -1;
  uint64_t area_size = 0;
  uint64_t cache_mib = 8;
  /// Bytes that the memory engine may take.
  uint64_t memory = 0;
  /// Every file's owner, instead of what the image says.
  std::optional<Owner> owner;

  bool encrypted() const { return key_fd >= 0; }
  bool is_folder() const { return !folder.empty(); }
  /// Does a process of ours serve it?
  bool NeedsServer() const { return engine == Engine::kUserspace && !is_folder(); }
};

/// A part of the plain image that a view has.
struct ViewPiece {
  /// Its header and table, the file that the image is in, or the root file system, deciphered.
  enum class From { kHead, kImage, kRoot };
  From from = From::kHead;
  /// Where it is in the plain image.
  uint64_t at = 0;
  /// Where it comes from.
  Extent extent;
};

/// The plain image as a file, and its root file system as another: what is mounted instead of what is in that.
struct ViewOptions {
  /// A pipe that gives header and table.
  int head_fd = -1;
  /// Of the plain image.
  uint64_t size = 0;
  /// Of its root file system.
  uint64_t root_size = 0;
  std::vector<ViewPiece> pieces;

  bool is_wanted() const { return head_fd >= 0; }
};

struct MountOptions {
  /// What messages begin with.
  std::string message_name = "sifcrypt";
  ImageOptions image;
  ViewOptions view;
  std::string target;
  /// What mount tables show as the source: the image.
  std::string source_name = "sifcrypt";
  int status_fd = -1;
  int watch_fd = -1;
};

/// One of what lies over the image, lowest first. At most one is writable.
struct LayerOptions {
  enum class Kind {
    kDirectory,
    kSquashfs,
    kExt,
  };
  Kind kind = Kind::kDirectory;
  bool writable = false;
  /// Of a directory: absolute.
  std::string path;
  /// Of the others. A kExt of the userspace engine is plain.
  ImageOptions image;
  /// Of a kExt: a lock of the caller's, to be held open as long as it is mounted.
  int lock_fd = -1;
};

/// A line of a user or group map, as user_namespaces(7) has them.
struct IdRange {
  uint32_t inside = 0;
  uint32_t outside = 0;
  uint32_t count = 0;
};

/// Ports of the machine that lead to as many of the container's.
struct Publication {
  /// tcp or udp.
  std::string protocol;
  /// Of the machine: IPv4.
  std::string address;
  uint16_t machine_port = 0;
  uint16_t container_port = 0;
  uint16_t count = 1;
  bool is_udp() const { return protocol == "udp"; }
};

/// A network that several containers are in (network_keeper.h).
struct NamedNetwork {
  std::string name;
  /// The bridge.
  std::string interface;
  /// ADDRESS/BITS, and the machine's own address in there: IPv4.
  std::string subnet;
  std::string gateway;
  /// Without a way out.
  bool internal = false;
  /// The container's; empty: any that is free.
  std::string address;
  /// By which it is found there, beside its own.
  std::vector<std::string> aliases;
};

/// A network of the container's own that is connected to the machine's (network.h), or to those of other containers.
struct NetworkOptions {
  /// The program; empty: there is none of this kind.
  std::string pasta;
  /// The address at which the container finds the machine's resolver.
  std::string resolver;
  std::vector<Publication> published;
  std::vector<NamedNetwork> named;
  /// The folder of this user's networks, and what makes them.
  std::string folder;
  std::string netavark;
  std::string aardvark;
  /// How the container is called there.
  std::string container;
  /// Who is asked for names that are nobody's there; none: the machine's resolver.
  std::vector<std::string> dns;
  /// The ids of the user namespace that they are in.
  std::vector<IdRange> uid_map;
  std::vector<IdRange> gid_map;

  bool exists() const { return !pasta.empty(); }
  /// Is the container itself connected to the machine's?
  bool is_direct() const { return exists() && (named.empty() || !published.empty()); }
};

/// Who keeps named networks: by descriptors of its folder and of the socket in there, and by programs.
struct KeepOptions {
  int folder_fd = -1;
  int socket_fd = -1;
  bool rootless = false;
  std::string pasta;
  std::string resolver;
  std::string netavark;
  std::string aardvark;
};

/// What becomes of a payload when it has ended, and how it is asked whether it is well (service.h).
struct ServiceOptions {
  enum class Restart { kNo, kOnFailure, kAlways };
  Restart restart = Restart::kNo;
  /// So often at most; -1: without end.
  int retries = -1;
  /// Milliseconds; an interval of 0: nobody asks.
  int64_t health_interval = 0;
  int64_t health_timeout = 0;
  int64_t health_start = 0;
  int health_retries = 0;
  /// A file that says what has become of it. -1: there is none.
  int journal_fd = -1;
};

/// What is kept of what a payload writes.
struct LogOptions {
  /// Of standard output and of standard error: absolute.
  std::string out;
  std::string err;
  uint64_t max_size = 0;
  unsigned max_files = 1;
  bool exists() const { return max_size > 0; }
};

struct RunOptions {
  /// What messages begin with.
  std::string message_name = "sifcrypt";
  ImageOptions image;
  /// It is a folder, and written to: nothing lies over it.
  bool writable = false;
  std::vector<LayerOptions> layers;
  /// What the bundle's binds name by their place in here; no directories.
  std::vector<LayerOptions> bind_images;
  /// Empty: a user namespace of an ordinary user has the caller's ids only. Otherwise newuidmap and newgidmap write these.
  std::vector<IdRange> uid_map;
  std::vector<IdRange> gid_map;
  NetworkOptions network;
  ServiceOptions service;
  LogOptions log;
  /// crun's: disabled, cgroupfs or systemd.
  std::string cgroup_manager = "disabled";
  /// What cgroupfs makes, from the root of cgroups: removed at the end, should crun not come to it. May be empty.
  std::string cgroup;
  /// The payload's parent is sifcrypt-init, which passes its end on as an exit status.
  bool has_init = false;
  /// The payload has a terminal of its own: the runtime passes on what is typed, Ctrl-C too.
  bool has_terminal = false;
  /// These descriptors are the payload's as well, in ascending order.
  std::vector<int> preserved;
  std::string session;
  int bundle_fd = -1;
  std::string crun;
  std::string id;
  /// The socket of those who share it (seats.h): it lives as long as one of them. Empty: it is its caller's.
  std::string shared;
  /// What it keeps open for those who share it, or -1: a key for whoever can open the image as well (lib/encryption/luks-format.ts).
  int held_fd = -1;
  int status_fd = -1;
  int watch_fd = -1;
};

/// All images of these that are not the root's, in the order in which they get their servers.
std::vector<LayerOptions> OtherImages(const RunOptions& options);

/// What a program runs in that is not ours: namespaces that were made for it, or the caller's own.
struct EnterOptions {
  /// -1: the one that this process is in.
  int user_fd = -1;
  int mount_fd = -1;
  /// The soft limit; 0: it stays.
  uint64_t open_files = 0;
  /// An absolute path and its arguments. It inherits all other descriptors, and the environment.
  std::vector<std::string> program;
};

/// A command for a container that runs.
struct JoinOptions {
  /// The starter that runs it.
  pid_t pid = -1;
  /// Its session, container and OCI runtime, as it was told.
  std::string session;
  std::string id;
  std::string crun;
  /// Where its files go among the session's.
  std::string folder;
  /// A connection that is held until it ends (seats.h). -1: the container does not live of it.
  int seat_fd = -1;
  /// These descriptors are the command's as well, in ascending order.
  std::vector<int> preserved;
  int bundle_fd = -1;
  int status_fd = -1;
  int watch_fd = -1;
};

/// What a build is made in (workspace_command.h).
struct WorkspaceOptions {
  /// The folder that the workspace is mounted over; absolute, without symbolic links.
  std::string session;
  /// Bytes of memory that files under construction may take.
  uint64_t memory = 0;
  /// The folder of an unnamed file for what does not fit, encrypted. Empty: there is none, and a tmpfs does.
  std::string spill;
  /// The folder of an unnamed file for a throw-away LUKS2 volume instead. Root only.
  std::string volume;
  /// Bytes that this file, or that one, may take.
  uint64_t disk = 0;
  /// Instead of a tmpfs: an existing folder.
  std::string folder;
  /// More than one line, or none: the caller alone becomes root, or nothing is mapped at all when that is root.
  std::vector<IdRange> uid_map;
  std::vector<IdRange> gid_map;
  int status_fd = -1;
  int watch_fd = -1;
  /// What runs inside: an absolute path and its arguments. It inherits all other descriptors.
  std::vector<std::string> program;
};

/// All throw UsageError, also for a descriptor that is not open.
KeepOptions ParseKeepOptions(const std::vector<std::string>& arguments);
MountOptions ParseMountOptions(const std::vector<std::string>& arguments);
RunOptions ParseRunOptions(const std::vector<std::string>& arguments);
/// Of these it has the image, the ids, the session, its bundle, and how it is watched and reports.
RunOptions ParsePrepareOptions(const std::vector<std::string>& arguments);
EnterOptions ParseEnterOptions(const std::vector<std::string>& arguments);
JoinOptions ParseJoinOptions(const std::vector<std::string>& arguments);
WorkspaceOptions ParseWorkspaceOptions(const std::vector<std::string>& arguments);

}  // namespace sifcrypt::starter
