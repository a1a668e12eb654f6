#include "starter/network.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "core/system_error.h"
#include "core/unique_fd.h"
#include "starter/network_keeper.h"
#include "starter/say.h"
#include "starter/spawn.h"
#include "starter/status.h"

namespace sifcrypt::starter {
namespace {

constexpr int kFailure = 255;
constexpr char kOperation[] = "network";
// The container's side: addresses of its own, as with the machine's it could not reach what is published there.
constexpr char kAddress[] = "10.255.254.2";
constexpr char kPrefix[] = "24";
constexpr char kGateway[] = "10.255.254.1";
/// What its interface is made by.
constexpr char kTun[] = "/dev/net/tun";

void WriteText(const char* path, const char* text) {
  const UniqueFd file(open(path, O_WRONLY | O_CLOEXEC));
  if (!file || write(file.get(), text, std::strlen(text)) < 0)
    throw SystemError(errno, kOperation, std::string(path) + ": " + std::strerror(errno));
}

/// pasta 2023 takes what is free of a range and says nothing of the rest.
void CheckIsFree(const Publication& one, uint16_t port) {
  const UniqueFd probe(
      CheckErrno(socket(AF_INET, (one.is_udp() ? SOCK_DGRAM : SOCK_STREAM) | SOCK_CLOEXEC, 0), kOperation));
  const int on = 1;
  // What is left of connections that have ended keeps nobody from listening.
  if (!one.is_udp()) setsockopt(probe.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  inet_pton(AF_INET, one.address.c_str(), &address.sin_addr);
  if (bind(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    throw SystemError(errno, "port",
                      one.protocol + " " + one.address + ":" + std::to_string(port) + ": " + std::strerror(errno));
}

std::string Ports(uint16_t first, uint16_t count) {
  const std::string start = std::to_string(first);
  return count == 1 ? start : start + "-" + std::to_string(first + count - 1);
}

std::vector<std::string> PastaArguments(const NetworkOptions& options, const std::string& place) {
  // Beside those of named networks its route is the one that counts.
  std::vector<std::string> arguments =
      UplinkArguments(options.resolver, place, options.named.empty() ? "eth0" : "pub0");
  for (const char* flag : {"-t", "-u"}) {
    bool any = false;
    for (const Publication& one : options.published) {
      if (one.is_udp() != (flag[1] == 'u')) continue;
      any = true;
      arguments.insert(arguments.end(), {flag, one.address + "/" + Ports(one.machine_port, one.count) + ":" +
                                                   Ports(one.container_port, one.count)});
    }
    if (!any) arguments.insert(arguments.end(), {flag, "none"});
  }
  return arguments;
}

/// Waits for the end of who needs it. SystemError "network" when something else ends before: the keeper of named networks, or a child.
void Watch(const NetworkOptions& options, const SignalQueue& signals, const Channel& container, const Channel& keeper) {
  for (;;) {
    pollfd events[] = {{container.fd(), POLLIN, 0}, {signals.fd(), POLLIN, 0}, {keeper.fd(), POLLIN, 0}};
    if (poll(events, std::size(events), -1) < 0 && errno != EINTR) throw SystemError(errno, "poll");
    if (events[0].revents != 0) return;
    if (events[2].revents != 0) {
      ClearUpKeeper(options.folder);
      throw SystemError(EIO, kOperation, "what keeps the networks has ended");
    }
    while (signals.Next().number != 0) {
    }
    if (waitpid(-1, nullptr, WNOHANG | __WALL) > 0) throw SystemError(EIO, kOperation, "pasta has ended");
  }
}

/// The first process of the PID namespace. pasta becomes its child when it is ready.
int Keep(const NetworkOptions& options, const SignalQueue& signals, const Channel& main, const Channel& container,
         const Channel& keeper, const std::string& place, int network) {
  try {
    // It wants a file that stands for the namespace. (Whoever joins the container knows the session by its mount namespace, so the
    // process above has none.)
    CheckErrno(unshare(CLONE_NEWNS), kOperation);
    CheckErrno(mount(nullptr, "/", nullptr, MS_REC | MS_SLAVE, nullptr), kOperation);
    CheckErrno(mount("tmpfs", place.c_str(), "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=64k"), kOperation);
    const std::string file = place + "/network";
    const UniqueFd made(CheckErrno(open(file.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600), kOperation));
    CheckErrno(mount(("/proc/self/fd/" + std::to_string(network)).c_str(), file.c_str(), nullptr, MS_BIND, nullptr),
               kOperation);
    RunPasta(options.pasta, PastaArguments(options, file));
    container.Send({.kind = Message::Kind::kStarted});
    Watch(options, signals, container, keeper);
    return 0;
  } catch (const SystemError& failure) {
    main.SendFailure(failure, StepOf(failure));
  }
  return kFailure;
}

/// pasta of 2023 passes on what is addressed to the machine's loopback, and a socket that is bound to an interface sends that there. A
/// rule of the container's network, which goes with it, and which no payload may change, keeps it in.
void KeepLoopbackApart() {
  try {
    RunProgram(FindProgram("nft", kOperation),
               {"add table inet sifcrypt; "
                "add chain inet sifcrypt out { type filter hook output priority 0; }; "
                "add rule inet sifcrypt out ip daddr 127.0.0.0/8 oifname != \"lo\" reject"},
               kOperation);
  } catch (const SystemError& failure) {
    if (failure.error() != ENOENT)
      Say(std::string("what listens on the machine's loopback may be sent to from inside: ") + failure.what());
  }
}

}  // namespace

void RunPasta(const std::string& program, const std::vector<std::string>& arguments) {
  try {
    RunProgram(program, arguments, kOperation);
  } catch (const SystemError& failure) {
    // It has said all that it was about to do, and where there is no syslog that it could not say so there.
    std::istringstream lines(failure.what());
    std::string reason;
    for (std::string line; std::getline(lines, line);)
      if (!line.empty() && !line.starts_with("Failed to send ")) reason = line;
    if (access(kTun, R_OK | W_OK) != 0) reason = std::string(kTun) + ": " + std::strerror(errno);
    const std::string prefix = std::string(kOperation) + ": ";
    if (reason.starts_with(prefix)) reason.erase(0, prefix.size());
    throw SystemError(failure.error(), kOperation, "pasta: " + reason);
  }
}

std::vector<std::string> UplinkArguments(const std::string& resolver, const std::string& place,
                                         const std::string& interface) {
  std::vector<std::string> arguments{
      // Nothing of the machine's own that listens on its loopback alone is to be reached.
      "--no-map-gw", "-T", "none", "-U", "none",
      // Addresses and routes, but those of the machine.
      "--config-net", "-4", "-a", kAddress, "-n", kPrefix, "-g", kGateway, "--dns-forward", resolver, "-I", interface,
      "--netns", place};
  if (geteuid() == 0) arguments.insert(arguments.end(), {"--runas", "0"});
  return arguments;
}

int NetworkProcess(const NetworkOptions& options, const SignalQueue& signals, const Channel& main,
                   const Channel& container, const Channel& keeper, const std::string& place) {
  setpgid(0, 0);
  std::vector<int> kept{signals.fd(), main.fd(), container.fd()};
  if (keeper.fd() >= 0) kept.push_back(keeper.fd());
  CloseAllBut(kept);
  DetachStandardStreams();
  try {
    for (const Publication& one : options.published)
      for (uint16_t i = 0; i < one.count; ++i) CheckIsFree(one, static_cast<uint16_t>(one.machine_port + i));
    UniqueFd user;
    UniqueFd network;
    container.Receive(&user);
    container.Receive(&network);
    if (!user || !network) return 0;  // the container process has failed, and says why
    if (keeper.fd() >= 0) JoinNetworks(options, keeper, network.get());
    if (!options.is_direct()) {
      network.Reset();
      user.Reset();
      container.Send({.kind = Message::Kind::kStarted});
      Watch(options, signals, container, keeper);
      return 0;
    }
    if (geteuid() != 0) CheckErrno(setns(user.get(), CLONE_NEWUSER), kOperation);
    CheckErrno(unshare(CLONE_NEWPID), kOperation);
    // Other capabilities than before: the kernel has forgotten it.
    CheckErrno(prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl");
    const pid_t init = ForkChild([&] { return Keep(options, signals, main, container, keeper, place, network.get()); });
    int status = 0;
    while (waitpid(init, &status, __WALL) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : kFailure;
  } catch (const SystemError& failure) {
    main.SendFailure(failure, StepOf(failure));
  }
  return kFailure;
}

void HandOverNetwork(const Channel& network) {
  KeepLoopbackApart();
  // As in a machine of its own: whoever has no privileges may ping and listen anywhere. Large answers to far clients get stuck in
  // pasta's interface unless little of them is sent at a time.
  WriteText("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
  WriteText("/proc/sys/net/ipv4/ping_group_range", "0 0");
  WriteText("/proc/sys/net/ipv4/tcp_wmem", "4096 16384 131072");
  for (const char* name : {"/proc/self/ns/user", "/proc/self/ns/net"}) {
    const UniqueFd file(CheckErrno(open(name, O_RDONLY | O_CLOEXEC), kOperation));
    network.Send({.kind = Message::Kind::kDevice}, file.get());
  }
}

bool WaitForNetwork(const Channel& network) { return network.Receive().has_value(); }

}  // namespace sifcrypt::starter
