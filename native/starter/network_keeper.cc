#include "starter/network_keeper.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <fstream>
#include <iterator>
#include <list>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "core/meeting_place.h"
#include "core/system_error.h"
#include "core/unique_fd.h"
#include "starter/door.h"
#include "starter/namespaces.h"
#include "starter/network.h"
#include "starter/processes.h"
#include "starter/spawn.h"
#include "starter/status.h"

namespace sifcrypt::starter {
namespace {

constexpr int kFailure = 255;
constexpr char kOperation[] = "network";
constexpr char kSocket[] = "keeper";
/// Who is in which network: "NETWORK ADDRESS CONTAINER\n" each.
constexpr char kMembers[] = "members";
constexpr int kAttempts = 10;
/// Setting a container up takes a tenth of a second, and others wait meanwhile.
constexpr int kAnswerSeconds = 120;
/// Somebody who is just connecting holds the folder's lock that long.
constexpr int kLockMs = 20;
constexpr size_t kMaxAnswer = 64 << 10;
constexpr size_t kMaxReason = 600;
/// pasta's interface among the networks.
constexpr char kUplink[] = "up0";
// Inside the keeper's mount namespace.
constexpr char kState[] = "/run/netavark";
constexpr char kPlaces[] = "/run/containers";
constexpr char kNetworks[] = "/run/networks";
constexpr char kResolverFile[] = "/run/resolver";
constexpr char kResolverPlace[] = "/etc/resolv.conf";
/// What is there outside: whom pasta asks.
constexpr char kMachineResolvers[] = "/run/machine-resolvers";
/// Whom a container is sent to that is in internal networks alone: nobody listens there.
constexpr char kNobody[] = "127.0.0.1";

SystemError Failed(int error, const std::string& text) { return {error, kOperation, text}; }

/// What a failure was about, without its operation, which is said again.
std::string Reason(const Message& failure) {
  const std::string prefix = std::string(kOperation) + ": ";
  return failure.text.starts_with(prefix) ? failure.text.substr(prefix.size()) : failure.text;
}

UniqueFd Connect(int folder) { return meeting::Connect(folder, kSocket, kOperation); }

/// The first process of the namespaces becomes a program of its own: what this one has in memory is not its business.
[[noreturn]] void BecomeKeeper(const NetworkOptions& options, int folder, int socket, const Channel& told) {
  CloseAllBut({folder, socket, told.fd()});
  DetachStandardStreams();
  // One of its own: with the other it would hold the lock.
  const int own = open(("/proc/self/fd/" + std::to_string(folder)).c_str(), O_RDONLY | O_DIRECTORY);
  fcntl(socket, F_SETFD, 0);
  std::vector<std::string> words{"sifcrypt-starter",
                                 "keep",
                                 "--folder-fd=" + std::to_string(own),
                                 "--socket-fd=" + std::to_string(socket),
                                 "--pasta=" + options.pasta,
                                 "--resolver=" + options.resolver,
                                 "--netavark=" + options.netavark,
                                 "--aardvark=" + options.aardvark};
  // Before a user namespace, whose first user is root, there was one who was not.
  if (!options.uid_map.empty()) words.emplace_back("--rootless=1");
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  execv("/proc/self/exe", argv.data());
  told.SendFailure(SystemError(errno, kOperation), kOperation);
  _exit(kFailure);
}

void StartKeeper(const NetworkOptions& options, int folder, int socket) {
  std::pair<Channel, Channel> told = Channel::Pair();
  // Two generations, so that it is nobody's child here.
  const pid_t middle = ForkChild([&] {
    setsid();
    told.first.Close();
    std::pair<Channel, Channel> ids = Channel::Pair();
    const pid_t outer = ForkChild([&] {
      ids.first.Close();
      try {
        const bool many = options.uid_map.size() > 1;
        EnterNamespaces(many, ids.second, CLONE_NEWPID);
        if (CheckErrno(fork(), kOperation) == 0) BecomeKeeper(options, folder, socket, told.second);
      } catch (const SystemError& failure) {
        told.second.SendFailure(failure, StepOf(failure));
      }
      return 0;
    });
    ids.second.Close();
    try {
      if (ids.first.Receive()) MapIds(outer, options.uid_map, options.gid_map, ids.first);
    } catch (const SystemError& failure) {
      told.second.SendFailure(failure, StepOf(failure));
      kill(outer, SIGKILL);
    }
    while (waitpid(outer, nullptr, __WALL) < 0 && errno == EINTR) {
    }
    return 0;
  });
  told.second.Close();
  const auto failure = told.first.Receive();
  while (waitpid(middle, nullptr, __WALL) < 0 && errno == EINTR) {
  }
  if (failure) throw Failed(failure->error, Reason(*failure));
}

std::string_view NextPart(std::string_view& text) {
  const std::string_view part = text.substr(0, text.find(','));
  text.remove_prefix(std::min(text.size(), part.size() + 1));
  return part;
}

uint32_t AddressOf(const std::string& text) {
  in_addr address{};
  if (inet_pton(AF_INET, text.c_str(), &address) != 1) throw Failed(EINVAL, text + " is no address");
  return ntohl(address.s_addr);
}

std::string TextOf(uint32_t address) {
  const in_addr value{htonl(address)};
  char text[INET_ADDRSTRLEN];
  inet_ntop(AF_INET, &value, text, sizeof text);
  return text;
}

std::string Quoted(const std::string& text) { return '"' + text + '"'; }

/// A connection: a container that is in networks, or is about to be.
struct Guest {
  Channel channel;
  std::string container;
  std::vector<std::string> dns;
  std::vector<NamedNetwork> networks;
  /// What netavark was told, and is told again to undo it. Empty: it is in none yet.
  std::string options;
  /// A file that stands for its network namespace.
  std::string place;
};

class Keeper {
 public:
  explicit Keeper(const KeepOptions& options)
      : options_(options), folder_(options.folder_fd), door_(UniqueFd(options.socket_fd)) {
    // They came through execve(2), and are not for what is started from here.
    for (const int fd : {folder_.get(), door_.fd()}) CheckErrno(fcntl(fd, F_SETFD, FD_CLOEXEC), kOperation);
  }
  int Run();

 private:
  void Prepare();
  UniqueFd MakeNetworks() const;
  void Accept();
  void OnMessage(Guest& guest);
  void OnWord(Guest& guest, const std::string& word) const;
  void Join(Guest& guest, const UniqueFd& network);
  void Leave(const Guest& guest) const;
  void Part();
  void ChooseAddress(const Guest& guest, NamedNetwork& network) const;
  bool HasUplink() const;
  void ConnectUplink() const;
  void RunNetavark(const char* action, const Guest& guest) const;
  void TellMembers() const;
  bool IsLast() const;

  const KeepOptions& options_;
  UniqueFd folder_;
  Door door_;
  UniqueFd networks_;
  std::list<Guest> guests_;
  /// Those that have ended, and are still to be taken out of their networks.
  std::list<Guest> leaving_;
  unsigned count_ = 0;
  /// Where /etc/resolv.conf leads to.
  std::string resolver_;
};

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxAnswer, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  return text;
}

void WriteFile(const std::string& path, const std::string& text) {
  const UniqueFd file(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!file || write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    throw SystemError(errno, kOperation, path);
}

void MakeFile(const std::string& path) { WriteFile(path, ""); }

/// Where a link leads to that is going to be covered has to be made anew.
void MakeWayTo(const std::string& path) {
  for (size_t end = path.find('/', 1); end != std::string::npos; end = path.find('/', end + 1))
    mkdir(path.substr(0, end).c_str(), 0755);
  const UniqueFd file(open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
}

void Keeper::Prepare() {
  setsid();
  umask(077);
  const std::unique_ptr<char, decltype(&free)> resolver(realpath(kResolverPlace, nullptr), free);
  if (resolver) resolver_ = resolver.get();
  const std::string resolvers = ReadAll(kResolverPlace);
  CheckErrno(mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr), kOperation);
  // netavark and aardvark-dns find nothing of the machine's here: no service manager, no lock, no process of another's.
  CheckErrno(mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700"), kOperation);
  for (const char* place : {kState, kPlaces}) CheckErrno(mkdir(place, 0700), kOperation);
  WriteFile(kResolverFile, "nameserver " + options_.resolver + "\n");
  WriteFile(kMachineResolvers, resolvers);
  if (!resolver_.empty()) {
    if (resolver_.starts_with("/run/")) MakeWayTo(resolver_);
    CheckErrno(mount(kResolverFile, resolver_.c_str(), nullptr, MS_BIND, nullptr), kOperation);
  }
  networks_ = MakeNetworks();
  MakeFile(kNetworks);
  const std::string source = "/proc/self/fd/" + std::to_string(networks_.get());
  CheckErrno(mount(source.c_str(), kNetworks, nullptr, MS_BIND, nullptr), kOperation);
}

/// A network namespace. Who makes one is in it, and could not come back to the machine's.
UniqueFd Keeper::MakeNetworks() const {
  std::pair<Channel, Channel> ends = Channel::Pair();
  const pid_t maker = ForkChild([&] {
    if (unshare(CLONE_NEWNET) != 0) {
      ends.second.SendFailure(SystemError(errno, kOperation), kOperation);
      return kFailure;
    }
    const UniqueFd made(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
    ends.second.Send({.kind = Message::Kind::kDevice}, made.get());
    return 0;
  });
  ends.second.Close();
  UniqueFd network;
  const auto message = ends.first.Receive(&network);
  while (waitpid(maker, nullptr, __WALL) < 0 && errno == EINTR) {
  }
  if (!network) throw Failed(message ? message->error : EIO, "a network namespace could not be made");
  return network;
}

void Keeper::Accept() {
  UniqueFd connection = door_.LetIn();
  if (!connection) return;
  const UniqueFd user(open("/proc/self/ns/user", O_RDONLY | O_CLOEXEC));
  Guest guest{.channel = Channel(std::move(connection))};
  if (guest.channel.Send({.kind = Message::Kind::kDevice}, user.get())) guests_.push_back(std::move(guest));
}

void Keeper::OnWord(Guest& guest, const std::string& word) const {
  std::string_view rest = word;
  const std::string_view kind = NextPart(rest);
  if (kind == "container") {
    guest.container = rest;
  } else if (kind == "dns") {
    guest.dns.emplace_back(rest);
  } else if (kind == "alias" && !guest.networks.empty()) {
    guest.networks.back().aliases.emplace_back(rest);
  } else if (kind == "network") {
    NamedNetwork network;
    for (std::string* part : {&network.name, &network.interface, &network.subnet, &network.gateway})
      *part = NextPart(rest);
    network.internal = NextPart(rest) == "internal";
    network.address = rest;
    guest.networks.push_back(std::move(network));
  }
}

void Keeper::ChooseAddress(const Guest& guest, NamedNetwork& network) const {
  const size_t slash = network.subnet.find('/');
  unsigned bits = 0;
  std::from_chars(network.subnet.data() + slash + 1, network.subnet.data() + network.subnet.size(), bits);
  const uint32_t first = AddressOf(network.subnet.substr(0, slash));
  const uint32_t last = first + (uint32_t{1} << (32 - bits)) - 1;
  std::vector<uint32_t> taken{AddressOf(network.gateway)};
  for (const Guest& other : guests_)
    for (const NamedNetwork& known : other.networks) {
      if (known.name != network.name || other.options.empty()) continue;
      if (other.container == guest.container)
        throw Failed(EEXIST, "there is a container " + guest.container + " in the network " + network.name);
      taken.push_back(AddressOf(known.address));
    }
  const auto is_free = [&](uint32_t address) {
    return address > first && address < last && std::find(taken.begin(), taken.end(), address) == taken.end();
  };
  if (!network.address.empty()) {
    if (!is_free(AddressOf(network.address)))
      throw Failed(EADDRINUSE, network.address + " is not free in the network " + network.name);
    return;
  }
  for (uint32_t address = first + 1; address < last; ++address)
    if (is_free(address)) return network.address = TextOf(address), void();
  throw Failed(EADDRNOTAVAIL, "no address is free in the network " + network.name);
}

/// Its interface goes with pasta.
bool Keeper::HasUplink() const {
  const pid_t looker = ForkChild([&] {
    CheckErrno(setns(networks_.get(), CLONE_NEWNET), kOperation);
    return if_nametoindex(kUplink) == 0 ? 1 : 0;
  });
  int status = 0;
  while (waitpid(looker, &status, __WALL) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void Keeper::ConnectUplink() const {
  std::vector<std::string> arguments = UplinkArguments(options_.resolver, kNetworks, kUplink);
  arguments.insert(arguments.end(), {"-t", "none", "-u", "none"});
  std::pair<Channel, Channel> ends = Channel::Pair();
  const pid_t starter = ForkChild([&] {
    try {
      // It asks the machine's name servers, where aardvark-dns asks it.
      CheckErrno(unshare(CLONE_NEWNS), kOperation);
      CheckErrno(mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), kOperation);
      if (!resolver_.empty())
        CheckErrno(mount(kMachineResolvers, resolver_.c_str(), nullptr, MS_BIND, nullptr), kOperation);
      RunPasta(options_.pasta, arguments);
      return 0;
    } catch (const SystemError& failure) {
      ends.second.SendFailure(failure, kOperation);
      return kFailure;
    }
  });
  ends.second.Close();
  const auto failure = ends.first.Receive();
  while (waitpid(starter, nullptr, __WALL) < 0 && errno == EINTR) {
  }
  if (failure) throw Failed(failure->error, Reason(*failure));
}

/// As a list of JSON.
std::string ListOf(const std::vector<std::string>& words) {
  std::string list;
  for (const std::string& word : words) list.append(list.empty() ? "" : ",").append(Quoted(word));
  return "[" + list + "]";
}

bool LeadsOut(const Guest& guest) {
  return std::any_of(guest.networks.begin(), guest.networks.end(),
                     [](const NamedNetwork& one) { return !one.internal; });
}

/// What netavark is told of a container.
std::string OptionsOf(const Guest& guest, const std::string& id) {
  std::string networks, infos;
  size_t number = 0;
  // Questions would lead out as well.
  const std::vector<std::string> dns = LeadsOut(guest) ? guest.dns : std::vector<std::string>{kNobody};
  for (const NamedNetwork& one : guest.networks) {
    const char* separator = number == 0 ? "" : ",";
    networks.append(separator).append(Quoted(one.name)) +=
        R"(:{"interface_name":)" + Quoted("eth" + std::to_string(number)) + R"(,"static_ips":[)" + Quoted(one.address) +
        R"(],"aliases":)" + ListOf(one.aliases) + "}";
    // Networks are kept apart. Pieces as large as pasta's interface takes: without, each is cut in 40.
    infos.append(separator).append(Quoted(one.name)) +=
        R"(:{"name":)" + Quoted(one.name) + R"(,"id":)" + Quoted(one.name) +
        R"(,"driver":"bridge","network_interface":)" + Quoted(one.interface) + R"(,"subnets":[{"subnet":)" +
        Quoted(one.subnet) + R"(,"gateway":)" + Quoted(one.gateway) + R"(}],"ipv6_enabled":false,"internal":)" +
        (one.internal ? "true" : "false") +
        R"(,"dns_enabled":true,"ipam_options":{"driver":"host-local"},"options":{"isolate":"true","mtu":"65520"}})";
    ++number;
  }
  return R"({"container_id":)" + Quoted(id) + R"(,"container_name":)" + Quoted(guest.container) +
         (dns.empty() ? std::string() : R"(,"dns_servers":)" + ListOf(dns)) + R"(,"networks":{)" + networks +
         R"(},"network_info":{)" + infos + "}}";
}

void Keeper::RunNetavark(const char* action, const Guest& guest) const {
  // In files: aardvark-dns, which it starts, has the same streams.
  const std::string input = "/run/input", answer = "/run/answer", complaints = "/run/complaints";
  for (const std::string& path : {input, answer, complaints}) unlink(path.c_str());
  WriteFile(input, guest.options);
  for (const std::string& path : {answer, complaints}) MakeFile(path);
  const pid_t child = ForkChild([&]() -> int {
    const UniqueFd in(CheckErrno(open(input.c_str(), O_RDONLY | O_CLOEXEC), kOperation));
    const UniqueFd out(CheckErrno(open(answer.c_str(), O_WRONLY | O_CLOEXEC), kOperation));
    const UniqueFd error(CheckErrno(open(complaints.c_str(), O_WRONLY | O_CLOEXEC), kOperation));
    dup2(in.get(), STDIN_FILENO);
    dup2(out.get(), STDOUT_FILENO);
    dup2(error.get(), STDERR_FILENO);
    CheckErrno(setns(networks_.get(), CLONE_NEWNET), kOperation);
    signal(SIGPIPE, SIG_DFL);
    const char* argv[] = {"netavark",
                          "--config",
                          kState,
                          "-r",
                          options_.rootless ? "true" : "false",
                          "--aardvark-binary",
                          options_.aardvark.c_str(),
                          action,
                          guest.place.c_str(),
                          nullptr};
    const char* environment[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", nullptr};
    execve(options_.netavark.c_str(), const_cast<char**>(argv), const_cast<char**>(environment));
    dprintf(STDERR_FILENO, "%s: %s", options_.netavark.c_str(), std::strerror(errno));
    return kFailure;
  });
  int status = 0;
  while (waitpid(child, &status, __WALL) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return;
  std::string reason = ReadAll(answer) + ReadAll(complaints);
  while (!reason.empty() && reason.back() == '\n') reason.pop_back();
  throw Failed(EIO, "netavark: " + (reason.empty() ? "it failed" : reason.substr(0, kMaxReason)));
}

void Keeper::TellMembers() const {
  const std::string temporary = std::string(kMembers) + ".new";
  unlinkat(folder_.get(), temporary.c_str(), 0);
  std::string text;
  for (const Guest& guest : guests_)
    for (const NamedNetwork& network : guest.networks)
      if (!guest.options.empty()) text += network.name + " " + network.address + " " + guest.container + "\n";
  const UniqueFd file(openat(folder_.get(), temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!file || write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
      renameat(folder_.get(), temporary.c_str(), folder_.get(), kMembers) != 0)
    throw SystemError(errno, kOperation, kMembers);
}

void Keeper::Join(Guest& guest, const UniqueFd& network) {
  // They make room.
  Part();
  for (; !leaving_.empty(); leaving_.pop_front()) Leave(leaving_.front());
  for (NamedNetwork& wanted : guest.networks) ChooseAddress(guest, wanted);
  const std::string id = "c" + std::to_string(++count_);
  guest.place = std::string(kPlaces) + "/" + id;
  MakeFile(guest.place);
  const std::string source = "/proc/self/fd/" + std::to_string(network.get());
  CheckErrno(mount(source.c_str(), guest.place.c_str(), nullptr, MS_BIND, nullptr), kOperation);
  if (LeadsOut(guest) && !HasUplink()) ConnectUplink();
  guest.options = OptionsOf(guest, id);
  RunNetavark("setup", guest);
  TellMembers();
}

void Keeper::Leave(const Guest& guest) const {
  if (!guest.options.empty()) try {
      RunNetavark("teardown", guest);
    } catch (const SystemError&) {
      // What it has left ends with the bridge, or with this process; nobody is there any more to be told.
    }
  if (guest.place.empty()) return;
  umount2(guest.place.c_str(), MNT_DETACH);
  unlink(guest.place.c_str());
}

/// Tells from the others who has ended: at once, as they keep nobody from removing a network.
void Keeper::Part() {
  const size_t before = leaving_.size();
  for (auto guest = guests_.begin(); guest != guests_.end();) {
    const auto next = std::next(guest);
    if (guest->channel.fd() < 0) leaving_.splice(leaving_.end(), guests_, guest);
    guest = next;
  }
  if (leaving_.size() > before) TellMembers();
}

void Keeper::OnMessage(Guest& guest) {
  UniqueFd network;
  const auto message = guest.channel.Receive(&network);
  if (!message) return guest.channel.Close();
  if (message->kind == Message::Kind::kWord) return OnWord(guest, message->text);
  if (message->kind != Message::Kind::kDevice || !network || !guest.place.empty()) return;
  try {
    Join(guest, network);
    guest.channel.Send({.kind = Message::Kind::kStarted});
  } catch (const SystemError& failure) {
    guest.channel.SendFailure(failure, kOperation);
  }
}

/// Nobody is here, nobody is about to come, and whoever comes later finds no socket.
bool Keeper::IsLast() const {
  if (!meeting::LockDeserted(folder_.get(), door_.fd())) return false;
  for (const char* name : {kSocket, kMembers}) unlinkat(folder_.get(), name, 0);
  return true;
}

int Keeper::Run() {
  try {
    Prepare();
  } catch (const SystemError& failure) {
    // It is told to who comes first, who has started it.
    Channel(UniqueFd(accept4(door_.fd(), nullptr, nullptr, SOCK_CLOEXEC))).SendFailure(failure, kOperation);
    return kFailure;
  }
  bool had_guests = false;
  for (;;) {
    std::vector<pollfd> events{door_.event()};
    for (const Guest& guest : guests_) events.push_back({guest.channel.fd(), POLLIN, 0});
    int timeout = had_guests && guests_.empty() ? kLockMs : door_.timeout();
    if (!leaving_.empty()) timeout = 0;
    if (poll(events.data(), events.size(), timeout) < 0 && errno != EINTR) throw SystemError(errno, "poll");
    auto event = events.begin() + 1;
    for (Guest& guest : guests_)
      if ((event++)->revents != 0) OnMessage(guest);
    Part();
    if (events[0].revents != 0) Accept();
    had_guests |= !guests_.empty();
    // Orphans of netavark's and pasta's.
    while (waitpid(-1, nullptr, WNOHANG | __WALL) > 0) {
    }
    // What is left of them ends with this process.
    if (had_guests && guests_.empty() && IsLast()) return 0;
    // One at a time: others may be leaving meanwhile.
    if (!leaving_.empty()) {
      Leave(leaving_.front());
      leaving_.pop_front();
    }
  }
}

/// What the keeper says, within reason.
std::optional<Message> AnswerOf(const Channel& keeper, UniqueFd* descriptor = nullptr) {
  try {
    return keeper.Receive(descriptor);
  } catch (const SystemError& failure) {
    if (failure.error() != EAGAIN) throw;
    throw Failed(ETIMEDOUT,
                 "what keeps the networks has not answered for " + std::to_string(kAnswerSeconds) + " seconds");
  }
}

}  // namespace

KeeperConnection ConnectToKeeper(const NetworkOptions& options) {
  const UniqueFd folder(open(options.folder.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!folder) throw SystemError(errno, kOperation, options.folder + ": " + std::strerror(errno));
  // One at a time starts it, and it does not end meanwhile.
  CheckErrno(flock(folder.get(), LOCK_EX), kOperation);
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    if (UniqueFd connection = Connect(folder.get())) {
      const timeval patience{kAnswerSeconds, 0};
      setsockopt(connection.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
      KeeperConnection found{Channel(std::move(connection)), {}};
      const auto hello = AnswerOf(found.channel, &found.user);
      if (found.user) return found;
      if (hello) throw Failed(hello->error, Reason(*hello));
      // It is just ending, or was killed.
    }
    unlinkat(folder.get(), kSocket, 0);
    const UniqueFd listener = meeting::Listen(folder.get(), kSocket, kOperation);
    StartKeeper(options, folder.get(), listener.get());
  }
  throw Failed(EIO, "what keeps the networks ends at once");
}

void ClearUpKeeper(const std::string& path) {
  const UniqueFd folder(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!folder || flock(folder.get(), LOCK_EX) != 0 || Connect(folder.get())) return;
  for (const char* name : {kSocket, kMembers}) unlinkat(folder.get(), name, 0);
}

void JoinNetworks(const NetworkOptions& options, const Channel& keeper, int network) {
  const auto say = [&](const std::string& word) { keeper.Send({.kind = Message::Kind::kWord, .text = word}); };
  say("container," + options.container);
  for (const std::string& server : options.dns) say("dns," + server);
  for (const NamedNetwork& one : options.named) {
    say("network," + one.name + "," + one.interface + "," + one.subnet + "," + one.gateway + "," +
        (one.internal ? "internal" : "") + "," + one.address);
    for (const std::string& alias : one.aliases) say("alias," + alias);
  }
  keeper.Send({.kind = Message::Kind::kDevice}, network);
  const auto answer = AnswerOf(keeper);
  if (!answer) throw Failed(EIO, "what keeps the networks has ended");
  if (answer->kind != Message::Kind::kStarted) throw Failed(answer->error, Reason(*answer));
}

int KeepCommand(const KeepOptions& options) {
  try {
    return Keeper(options).Run();
  } catch (const SystemError&) {
    // Whoever is connected sees that it has ended.
    return kFailure;
  }
}

}  // namespace sifcrypt::starter
