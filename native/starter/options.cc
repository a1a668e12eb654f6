#include "starter/options.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <functional>
#include <map>
#include <string_view>
#include <utility>

namespace sifcrypt::starter {
namespace {

constexpr uint64_t kMaxCacheMib = 1 << 20;
constexpr size_t kMaxFileName = 255;
constexpr size_t kMaxLayers = 64;
/// Lines of /etc/subuid that are one user's; the kernel takes 340 (user_namespaces(7)).
constexpr size_t kMaxIdRanges = 64;
constexpr size_t kMaxPublications = 256;
constexpr size_t kMaxNetworks = 16;
/// IFNAMSIZ, with the zero byte.
constexpr size_t kMaxInterface = 16;
/// Room for two addresses at least, and no more than a few thousand are looked at one by one.
constexpr unsigned kLeastBits = 16;
constexpr unsigned kMostBits = 29;
/// Of a view: a SIF has at most 65,536 objects, and far fewer fit into an argument list.
constexpr size_t kMaxPieces = 65536;
/// crun looks at each number up to the highest.
constexpr int kMaxPreserved = 1026;

template <typename Number>
Number ParseNumber(std::string_view text, const std::string& name) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) throw UsageError("--" + name + ": not a number");
  return value;
}

int ParseDescriptor(std::string_view text, const std::string& name) {
  const int fd = ParseNumber<int>(text, name);
  if (fd < 0 || fcntl(fd, F_GETFD) < 0) throw UsageError("--" + name + ": not an open descriptor");
  return fd;
}

/// 32 bytes in lower-case hexadecimal.
std::array<uint8_t, 32> ParseDigest(std::string_view text, const std::string& name) {
  std::array<uint8_t, 32> into;
  const auto is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  if (text.size() != 2 * into.size() || !std::all_of(text.begin(), text.end(), is_digit))
    throw UsageError("--" + name + ": not 32 bytes in hexadecimal");
  for (size_t i = 0; i < into.size(); ++i) std::from_chars(text.data() + 2 * i, text.data() + 2 * i + 2, into[i], 16);
  return into;
}

/// The arguments one command knows; each may be given once, unless it was added as one of many.
class Arguments {
 public:
  using Handler = std::function<void(std::string_view value, const std::string& name)>;

  void Add(const std::string& name, bool required, Handler handler) {
    known_[name] = {std::move(handler), required, false, false};
  }
  template <typename Value>
  void AddParsed(const std::string& name, bool required, Value& into,
                 Value (*parse)(std::string_view text, const std::string& name)) {
    Add(name, required, [&into, parse](std::string_view text, const std::string& n) { into = parse(text, n); });
  }
  template <typename Number>
  void AddNumber(const std::string& name, bool required, Number& into) {
    AddParsed(name, required, into, ParseNumber<Number>);
  }
  void AddDescriptor(const std::string& name, bool required, int& into) {
    AddParsed(name, required, into, ParseDescriptor);
  }
  /// Was it among the arguments that were parsed?
  bool Given(const std::string& name) const { return known_.at(name).given; }
  void AddPath(const std::string& name, bool required, std::string& into) {
    Add(name, required, [&into](std::string_view text, const std::string& n) {
      if (!text.starts_with('/')) throw UsageError("--" + n + ": not an absolute path");
      into = text;
    });
  }
  /// "1", or not given.
  void AddFlag(const std::string& name, bool& into) {
    Add(name, false, [&into](std::string_view text, const std::string& n) {
      if (text != "1") throw UsageError("--" + n + ": 1 or not given");
      into = true;
    });
  }
  template <typename Word>
  void AddWord(const std::string& name, bool required, std::map<std::string_view, Word> words, Word& into) {
    Add(name, required, [words = std::move(words), &into](std::string_view text, const std::string& n) {
      const auto found = words.find(text);
      if (found == words.end()) throw UsageError("--" + n + ": unknown");
      into = found->second;
    });
  }
  /// Each adds one to a list.
  template <typename Item>
  void AddItems(const std::string& name, size_t most, std::vector<Item>& into,
                Item (*parse)(std::string_view text, const std::string& name)) {
    known_[name] = {[&into, most, parse](std::string_view text, const std::string& n) {
                      if (into.size() == most) throw UsageError("--" + n + ": too many");
                      into.push_back(parse(text, n));
                    },
                    false, true, false};
  }
  void AddText(const std::string& name, bool required, std::string& into) {
    Add(name, required, [&into](std::string_view text, const std::string& n) {
      if (text.empty()) throw UsageError("--" + n + ": empty");
      into = text;
    });
  }

  void Parse(const std::vector<std::string>& arguments) {
    for (const std::string& argument : arguments) {
      const size_t equals = argument.find('=');
      if (!argument.starts_with("--") || equals == std::string::npos) throw UsageError("unknown argument: " + argument);
      const std::string name = argument.substr(2, equals - 2);
      const auto found = known_.find(name);
      if (found == known_.end()) throw UsageError("unknown argument: --" + name);
      if (std::exchange(found->second.given, true) && !found->second.many)
        throw UsageError("--" + name + ": given twice");
      found->second.handler(std::string_view(argument).substr(equals + 1), name);
    }
    for (const auto& [name, argument] : known_)
      if (argument.required && !argument.given) throw UsageError("--" + name + ": missing");
  }

 private:
  struct Argument {
    Handler handler;
    bool required = false;
    bool many = false;
    bool given = false;
  };
  std::map<std::string, Argument> known_;
};

void AddImage(Arguments& arguments, ImageOptions& image, bool required = true) {
  ImageRange& range = image.range;
  arguments.AddDescriptor("image-fd", required, range.fd);
  arguments.AddNumber("offset", required, range.partition.offset);
  arguments.AddNumber("size", required, range.partition.size);
  arguments.AddNumber("verity-offset", false, range.verity.offset);
  arguments.AddNumber("verity-size", false, range.verity.size);
  arguments.AddParsed("verity-root", false, range.verity_parameters.root, ParseDigest);
  arguments.AddParsed("verity-salt", false, range.verity_parameters.salt, ParseDigest);
  arguments.AddNumber("segment-offset", false, range.segment.offset);
  arguments.AddNumber("segment-size", false, range.segment.size);
  arguments.Add("cipher", false, [&range](std::string_view text, const std::string& name) {
    const auto type = CipherType(text);
    if (!type) throw UsageError("--" + name + ": unknown");
    range.cipher.type = *type;
  });
  arguments.AddDescriptor("key-fd", false, image.key_fd);
  arguments.AddNumber("sector-size", false, range.cipher.sector_size);
  arguments.AddNumber("iv-tweak", false, range.cipher.iv_tweak);
  arguments.Add("file", false, [&range](std::string_view text, const std::string& name) {
    if (text.empty() || text.size() > kMaxFileName || text.find('/') != std::string_view::npos)
      throw UsageError("--" + name + ": not a file's name");
    range.cipher.file = text;
  });
  arguments.AddDescriptor("metadata-fd", false, image.metadata_fd);
  arguments.AddNumber("area-size", false, image.area_size);
  arguments.AddNumber("cache-mib", false, image.cache_mib);
  arguments.AddNumber("memory", false, image.memory);
  arguments.AddWord<Engine>(
      "engine", required, {{"userspace", Engine::kUserspace}, {"kernel", Engine::kKernel}, {"memory", Engine::kMemory}},
      image.engine);
  arguments.Add("owner", false, [&image](std::string_view text, const std::string& name) {
    const size_t colon = text.find(':');
    if (colon == std::string_view::npos) throw UsageError("--" + name + ": not UID:GID");
    image.owner =
        Owner{ParseNumber<uid_t>(text.substr(0, colon), name), ParseNumber<gid_t>(text.substr(colon + 1), name)};
  });
}

void CheckImage(const Arguments& arguments, const ImageOptions& image) {
  if (image.cache_mib > kMaxCacheMib) throw UsageError("--cache-mib: too large");
  if (image.is_folder() && (image.encrypted() || image.range.verified() || arguments.Given("size")))
    throw UsageError("--folder: has no place in a file");
  for (const char* name : {"verity-offset", "verity-size", "verity-root", "verity-salt"})
    if (arguments.Given(name) != image.range.verified())
      throw UsageError("--verity-size: goes with --verity-offset, --verity-root and --verity-salt");
  if (arguments.Given("cipher") != image.encrypted()) throw UsageError("--cipher: goes with --key-fd");
  if (image.encrypted() && image.engine == Engine::kKernel && (image.metadata_fd < 0 || image.area_size == 0))
    throw UsageError("--engine=kernel: needs --metadata-fd and --area-size");
  if ((image.engine == Engine::kMemory) != (image.memory > 0)) throw UsageError("--engine=memory: goes with --memory");
}

/// A name of one path component that crun accepts as a container's.
bool IsPlainName(std::string_view name) {
  return !name.starts_with('.') && name.size() <= 128 && std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::isalnum(c) || c == '.' || c == '_' || c == '-';
  });
}

/// The part before the next comma; takes it off `text`.
std::string_view NextPart(std::string_view& text, char separator) {
  const std::string_view part = text.substr(0, text.find(separator));
  text.remove_prefix(std::min(text.size(), part.size() + 1));
  return part;
}

/// Open descriptors in ascending order, with commas between.
std::vector<int> ParseDescriptors(std::string_view text, const std::string& name) {
  std::vector<int> descriptors;
  while (!text.empty()) {
    const int fd = ParseDescriptor(NextPart(text, ','), name);
    if (fd <= (descriptors.empty() ? STDERR_FILENO : descriptors.back()) || fd > kMaxPreserved)
      throw UsageError("--" + name + ": not in ascending order from 3 on");
    descriptors.push_back(fd);
  }
  return descriptors;
}

/// "kind=KIND,name=value,...,path=PATH": the path, which may hold anything, is last.
LayerOptions ParseLayer(std::string_view text, const std::string& name) {
  LayerOptions layer;
  Arguments known;
  AddImage(known, layer.image, false);
  using Kind = LayerOptions::Kind;
  known.AddWord<Kind>(
      "kind", true, {{"directory", Kind::kDirectory}, {"squashfs", Kind::kSquashfs}, {"ext", Kind::kExt}}, layer.kind);
  known.AddFlag("writable", layer.writable);
  known.AddDescriptor("lock-fd", false, layer.lock_fd);
  known.AddText("path", false, layer.path);
  std::vector<std::string> parts;
  while (!text.empty()) {
    const bool is_path = text.starts_with("path=");
    parts.push_back("--" + std::string(is_path ? text : NextPart(text, ',')));
    if (is_path) break;
  }
  known.Parse(parts);
  const bool is_directory = layer.kind == LayerOptions::Kind::kDirectory;
  if (is_directory != layer.path.starts_with('/') || is_directory != (layer.image.range.fd < 0))
    throw UsageError("--" + name + ": a directory has an absolute path, anything else a descriptor");
  if (layer.writable && layer.kind == LayerOptions::Kind::kSquashfs)
    throw UsageError("--" + name + ": a squashfs cannot be written");
  if (layer.kind == LayerOptions::Kind::kExt && layer.image.engine == Engine::kMemory)
    throw UsageError("--" + name + ": no engine for it");
  if (layer.kind == LayerOptions::Kind::kExt && layer.image.engine == Engine::kUserspace && layer.image.encrypted())
    throw UsageError("--" + name + ": only the kernel engine has encrypted ones");
  CheckImage(known, layer.image);
  return layer;
}

/// "INSIDE:OUTSIDE:COUNT", several with commas between.
std::vector<IdRange> ParseIdMap(std::string_view text, const std::string& name) {
  std::vector<IdRange> map;
  while (!text.empty()) {
    std::string_view part = NextPart(text, ',');
    IdRange range;
    range.inside = ParseNumber<uint32_t>(NextPart(part, ':'), name);
    range.outside = ParseNumber<uint32_t>(NextPart(part, ':'), name);
    range.count = ParseNumber<uint32_t>(part, name);
    map.push_back(range);
  }
  if (map.empty() || map.size() > kMaxIdRanges) throw UsageError("--" + name + ": too few or too many ranges");
  return map;
}

void AddIdMaps(Arguments& arguments, std::vector<IdRange>& uids, std::vector<IdRange>& gids) {
  arguments.AddParsed("uid-map", false, uids, ParseIdMap);
  arguments.AddParsed("gid-map", false, gids, ParseIdMap);
}

void CheckIdMaps(const std::vector<IdRange>& uids, const std::vector<IdRange>& gids) {
  if (uids.empty() != gids.empty()) throw UsageError("--uid-map: needs --gid-map");
}

/// IPv4.
std::string ParseAddress(std::string_view text, const std::string& name) {
  const std::string address(text);
  in_addr ignored{};
  if (inet_pton(AF_INET, address.c_str(), &ignored) != 1) throw UsageError("--" + name + ": not an address");
  return address;
}

/// protocol,address,port of the machine,port of the container,count
Publication ParsePublication(std::string_view text, const std::string& name) {
  Publication one;
  one.protocol = NextPart(text, ',');
  one.address = ParseAddress(NextPart(text, ','), name);
  one.machine_port = ParseNumber<uint16_t>(NextPart(text, ','), name);
  one.container_port = ParseNumber<uint16_t>(NextPart(text, ','), name);
  one.count = ParseNumber<uint16_t>(text, name);
  if (one.protocol != "tcp" && one.protocol != "udp") throw UsageError("--" + name + ": tcp or udp");
  for (const uint16_t first : {one.machine_port, one.container_port})
    if (first == 0 || one.count == 0 || first + one.count - 1 > UINT16_MAX)
      throw UsageError("--" + name + ": not a port");
  return one;
}

/// What may be written in a file of names, and in JSON, as it is.
bool IsName(std::string_view name) {
  return !name.empty() && name.size() <= kMaxFileName && std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::isalnum(c) || c == '.' || c == '_' || c == '-';
  });
}

/// name,bridge,subnet,gateway,internal or nothing,address or nothing[,alias]...
NamedNetwork ParseNamedNetwork(std::string_view text, const std::string& name) {
  NamedNetwork network;
  network.name = NextPart(text, ',');
  network.interface = NextPart(text, ',');
  std::string_view subnet = NextPart(text, ',');
  network.subnet = subnet;
  ParseAddress(NextPart(subnet, '/'), name);
  const auto bits = ParseNumber<unsigned>(subnet, name);
  network.gateway = ParseAddress(NextPart(text, ','), name);
  const std::string_view internal = NextPart(text, ',');
  network.internal = internal == "internal";
  if (const std::string_view address = NextPart(text, ','); !address.empty())
    network.address = ParseAddress(address, name);
  while (!text.empty()) network.aliases.emplace_back(NextPart(text, ','));
  const bool named = IsName(network.name) && IsName(network.interface) && network.interface.size() < kMaxInterface &&
                     std::all_of(network.aliases.begin(), network.aliases.end(), IsName);
  if (!named || bits < kLeastBits || bits > kMostBits || (!internal.empty() && !network.internal))
    throw UsageError("--" + name + ": not a network");
  return network;
}

/// no, always, on-failure or on-failure,RETRIES
void ParseRestart(std::string_view text, const std::string& name, ServiceOptions& service) {
  const std::string_view policy = NextPart(text, ',');
  if (policy == "always")
    service.restart = ServiceOptions::Restart::kAlways;
  else if (policy == "on-failure")
    service.restart = ServiceOptions::Restart::kOnFailure;
  else if (policy != "no")
    throw UsageError("--" + name + ": no, always or on-failure");
  if (!text.empty()) service.retries = ParseNumber<int>(text, name);
}

/// interval,timeout,start period,retries
void ParseHealth(std::string_view text, const std::string& name, ServiceOptions& service) {
  for (int64_t* part : {&service.health_interval, &service.health_timeout, &service.health_start})
    *part = ParseNumber<int64_t>(NextPart(text, ','), name);
  service.health_retries = ParseNumber<int>(text, name);
  if (service.health_interval <= 0 || service.health_timeout <= 0 || service.health_retries <= 0)
    throw UsageError("--" + name + ": nothing is at once");
}

/// head, image or root; where it is; from where on, how much
ViewPiece ParsePiece(std::string_view text, const std::string& name) {
  ViewPiece piece;
  const std::string_view from = NextPart(text, ',');
  if (from == "image")
    piece.from = ViewPiece::From::kImage;
  else if (from == "root")
    piece.from = ViewPiece::From::kRoot;
  else if (from != "head")
    throw UsageError("--" + name + ": head, image or root");
  piece.at = ParseNumber<uint64_t>(NextPart(text, ','), name);
  piece.extent.offset = ParseNumber<uint64_t>(NextPart(text, ','), name);
  piece.extent.size = ParseNumber<uint64_t>(text, name);
  return piece;
}

/// What is known, then "--", an absolute path, and its arguments.
std::vector<std::string> ParseProgram(Arguments& known, const std::vector<std::string>& arguments) {
  const auto end = std::find(arguments.begin(), arguments.end(), "--");
  known.Parse({arguments.begin(), end});
  if (end == arguments.end() || end + 1 == arguments.end() || !end[1].starts_with('/'))
    throw UsageError("--: an absolute path follows");
  return {end + 1, arguments.end()};
}

/// An absolute path in which nothing leads up.
bool IsPlainPath(std::string_view path) { return path.starts_with('/') && path.find("/..") == std::string_view::npos; }

}  // namespace

MountOptions ParseMountOptions(const std::vector<std::string>& arguments) {
  MountOptions options;
  Arguments known;
  known.AddText("message-name", false, options.message_name);
  AddImage(known, options.image);
  known.AddText("target", true, options.target);
  known.AddText("source-name", false, options.source_name);
  known.AddDescriptor("status-fd", true, options.status_fd);
  known.AddDescriptor("watch-fd", false, options.watch_fd);
  ViewOptions& view = options.view;
  known.AddDescriptor("view-head-fd", false, view.head_fd);
  known.AddNumber("view-size", false, view.size);
  known.AddNumber("view-root-size", false, view.root_size);
  known.AddItems("view-piece", kMaxPieces, view.pieces, ParsePiece);
  known.Parse(arguments);
  CheckImage(known, options.image);
  for (const char* name : {"view-size", "view-root-size", "view-piece"})
    if (known.Given(name) != view.is_wanted())
      throw UsageError("--view-head-fd: goes with --view-size, --view-root-size and --view-piece");
  if (view.is_wanted() && options.image.engine != Engine::kUserspace)
    throw UsageError("--view-head-fd: is for the userspace engine");
  if (options.image.engine == Engine::kMemory) throw UsageError("--engine=memory: is not for mounts");
  return options;
}

RunOptions ParseRunOptions(const std::vector<std::string>& arguments) {
  RunOptions options;
  Arguments known;
  known.AddText("message-name", false, options.message_name);
  AddImage(known, options.image, false);
  known.AddPath("folder", false, options.image.folder);
  known.AddFlag("writable", options.writable);
  known.AddText("session", true, options.session);
  known.AddDescriptor("bundle-fd", true, options.bundle_fd);
  known.AddPath("crun", true, options.crun);
  known.AddItems("layer", kMaxLayers, options.layers, ParseLayer);
  known.AddItems("bind-image", kMaxLayers, options.bind_images, ParseLayer);
  AddIdMaps(known, options.uid_map, options.gid_map);
  known.AddFlag("init", options.has_init);
  known.AddFlag("terminal", options.has_terminal);
  known.AddParsed("preserve-fds", false, options.preserved, ParseDescriptors);
  known.AddPath("pasta", false, options.network.pasta);
  known.AddParsed("resolver", false, options.network.resolver, ParseAddress);
  known.AddItems("publish", kMaxPublications, options.network.published, ParsePublication);
  NetworkOptions& network = options.network;
  known.AddItems("join", kMaxNetworks, network.named, ParseNamedNetwork);
  known.AddPath("networks", false, network.folder);
  known.AddPath("netavark", false, network.netavark);
  known.AddPath("aardvark", false, network.aardvark);
  known.AddText("container-name", false, network.container);
  known.AddItems("dns", kMaxNetworks, network.dns, ParseAddress);
  known.AddParsed("networks-uid-map", false, network.uid_map, ParseIdMap);
  known.AddParsed("networks-gid-map", false, network.gid_map, ParseIdMap);
  ServiceOptions& service = options.service;
  known.Add("restart", false,
            [&service](std::string_view text, const std::string& name) { ParseRestart(text, name, service); });
  known.Add("health", false,
            [&service](std::string_view text, const std::string& name) { ParseHealth(text, name, service); });
  known.AddDescriptor("journal-fd", false, service.journal_fd);
  known.AddPath("log-out", false, options.log.out);
  known.AddPath("log-err", false, options.log.err);
  known.AddNumber("log-size", false, options.log.max_size);
  known.AddNumber("log-files", false, options.log.max_files);
  known.AddText("cgroup-manager", false, options.cgroup_manager);
  known.AddText("cgroup", false, options.cgroup);
  known.AddText("id", true, options.id);
  known.AddPath("shared", false, options.shared);
  known.AddDescriptor("held-fd", false, options.held_fd);
  known.AddDescriptor("status-fd", true, options.status_fd);
  known.AddDescriptor("watch-fd", false, options.watch_fd);
  known.Parse(arguments);
  for (const char* name : {"image-fd", "engine", "offset", "size"}) {
    const bool place = name == std::string_view("offset") || name == std::string_view("size");
    if (!known.Given(name) && !(place && options.image.is_folder()))
      throw UsageError(std::string("--") + name + ": missing");
  }
  CheckImage(known, options.image);
  if (options.writable && (!options.image.is_folder() || !options.layers.empty()))
    throw UsageError("--writable: goes with --folder, and nothing lies over it");
  for (const LayerOptions& image : options.bind_images)
    if (image.kind == LayerOptions::Kind::kDirectory) throw UsageError("--bind-image: a directory is bound as it is");
  CheckIdMaps(options.uid_map, options.gid_map);
  const auto writable = std::count_if(options.layers.begin(), options.layers.end(),
                                      [](const LayerOptions& layer) { return layer.writable; });
  if (writable > 1) throw UsageError("--layer: only one can be writable");
  if (options.network.pasta.empty() != options.network.resolver.empty() ||
      (options.network.pasta.empty() && !options.network.published.empty()))
    throw UsageError("--pasta: goes with --resolver, and --publish with both");
  for (const char* name : {"networks", "netavark", "aardvark", "container-name"})
    if (known.Given(name) == network.named.empty()) throw UsageError(std::string("--join: goes with --") + name);
  if (network.named.empty() && !network.dns.empty()) throw UsageError("--dns: goes with --join");
  if (!network.named.empty() && !network.exists()) throw UsageError("--join: goes with --pasta");
  if (!network.named.empty() && !IsName(network.container)) throw UsageError("--container-name: not a name");
  CheckIdMaps(network.uid_map, network.gid_map);
  for (const char* name : {"log-out", "log-err", "log-files"})
    if (known.Given(name) != options.log.exists()) throw UsageError(std::string("--log-size: goes with --") + name);
  if (options.log.max_files == 0) throw UsageError("--log-files: one at least");
  if (options.cgroup_manager != "disabled" && options.cgroup_manager != "cgroupfs" &&
      options.cgroup_manager != "systemd")
    throw UsageError("--cgroup-manager: disabled, cgroupfs or systemd");
  if (!options.cgroup.empty() && !IsPlainPath(options.cgroup)) throw UsageError("--cgroup: not an absolute path");
  if (!IsPlainName(options.id)) throw UsageError("--id: not a plain name");
  return options;
}

RunOptions ParsePrepareOptions(const std::vector<std::string>& arguments) {
  RunOptions options;
  Arguments known;
  known.AddText("message-name", false, options.message_name);
  AddImage(known, options.image);
  known.AddText("session", true, options.session);
  known.AddDescriptor("bundle-fd", true, options.bundle_fd);
  AddIdMaps(known, options.uid_map, options.gid_map);
  known.AddDescriptor("status-fd", true, options.status_fd);
  known.AddDescriptor("watch-fd", true, options.watch_fd);
  known.Parse(arguments);
  CheckImage(known, options.image);
  CheckIdMaps(options.uid_map, options.gid_map);
  return options;
}

EnterOptions ParseEnterOptions(const std::vector<std::string>& arguments) {
  EnterOptions options;
  Arguments known;
  known.AddDescriptor("user-fd", false, options.user_fd);
  known.AddDescriptor("mount-fd", false, options.mount_fd);
  known.AddNumber("open-files", false, options.open_files);
  options.program = ParseProgram(known, arguments);
  return options;
}

KeepOptions ParseKeepOptions(const std::vector<std::string>& arguments) {
  KeepOptions options;
  Arguments known;
  known.AddDescriptor("folder-fd", true, options.folder_fd);
  known.AddDescriptor("socket-fd", true, options.socket_fd);
  known.AddFlag("rootless", options.rootless);
  known.AddPath("pasta", true, options.pasta);
  known.AddParsed("resolver", true, options.resolver, ParseAddress);
  known.AddPath("netavark", true, options.netavark);
  known.AddPath("aardvark", true, options.aardvark);
  known.Parse(arguments);
  return options;
}

std::vector<LayerOptions> OtherImages(const RunOptions& options) {
  std::vector<LayerOptions> images = options.layers;
  images.insert(images.end(), options.bind_images.begin(), options.bind_images.end());
  return images;
}

JoinOptions ParseJoinOptions(const std::vector<std::string>& arguments) {
  JoinOptions options;
  Arguments known;
  known.AddNumber("pid", true, options.pid);
  known.AddText("session", true, options.session);
  known.AddText("id", true, options.id);
  known.AddPath("crun", true, options.crun);
  known.AddText("folder", true, options.folder);
  known.AddDescriptor("seat-fd", false, options.seat_fd);
  known.AddParsed("preserve-fds", false, options.preserved, ParseDescriptors);
  known.AddDescriptor("bundle-fd", true, options.bundle_fd);
  known.AddDescriptor("status-fd", true, options.status_fd);
  known.AddDescriptor("watch-fd", true, options.watch_fd);
  known.Parse(arguments);
  if (options.pid <= 1) throw UsageError("--pid: not a process");
  if (!IsPlainName(options.id)) throw UsageError("--id: not a plain name");
  if (!IsPlainName(options.folder)) throw UsageError("--folder: not a plain name");
  return options;
}

WorkspaceOptions ParseWorkspaceOptions(const std::vector<std::string>& arguments) {
  WorkspaceOptions options;
  Arguments known;
  known.AddPath("session", true, options.session);
  known.AddNumber("memory", false, options.memory);
  known.AddPath("spill", false, options.spill);
  known.AddPath("volume", false, options.volume);
  known.AddNumber("disk", false, options.disk);
  known.AddPath("folder", false, options.folder);
  AddIdMaps(known, options.uid_map, options.gid_map);
  known.AddDescriptor("status-fd", true, options.status_fd);
  known.AddDescriptor("watch-fd", true, options.watch_fd);
  options.program = ParseProgram(known, arguments);
  CheckIdMaps(options.uid_map, options.gid_map);
  if (!options.folder.empty() + !options.volume.empty() + (options.memory > 0) != 1)
    throw UsageError("one of --folder, --volume and --memory");
  if (!options.spill.empty() && options.memory == 0) throw UsageError("--spill: needs --memory");
  return options;
}

}  // namespace sifcrypt::starter
