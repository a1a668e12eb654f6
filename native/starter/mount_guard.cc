#include "starter/mount_guard.h"

#include <sys/wait.h>
#include <unistd.h>

#include <utility>

#include "core/system_error.h"
#include "starter/fuse_mount.h"
#include "starter/processes.h"

namespace sifcrypt::starter {
namespace {

constexpr char kLost[] = "a process that is to unmount at the end has ended";

void TakeBack(const Channel& orders, const std::string& target, const std::string& before,
              const Channel* other = nullptr) {
  std::string mounted;
  while (const auto message = orders.Receive()) {
    if (message->kind == Message::Kind::kEnded) return;
    if (message->kind == Message::Kind::kTerminate)
      UnmountUnused(target, mounted);
    else
      mounted = message->text;
  }
  if (other != nullptr) other->Receive();
  // Without word of it there may be a mount all the same: the end can come right after it was made.
  if (mounted.empty()) mounted = MountIdentity(target);
  if (mounted != before) Unmount(target, mounted);
}

}  // namespace

MountGuard::MountGuard(const std::string& target, const std::function<void()>& at_start) {
  // Looked at here: by the time the other processes get to it there may be a mount.
  const std::string before = MountIdentity(target);
  const std::pair<Channel, Channel> first_life = Channel::Pair();
  Start(first_, first_life.first, [&](const Channel& orders) {
    if (at_start) at_start();
    TakeBack(orders, target, before);
  });
  Start(second_, first_life.second, [&](const Channel& orders) {
    if (at_start) at_start();
    // Not at the same time as the first, which could make it the mount below that is taken away.
    TakeBack(orders, target, before, &first_life.second);
  });
}

void MountGuard::Watch(const std::string& identity) const {
  for (const Process* process : {&first_, &second_})
    if (!process->orders.Send({.text = identity})) throw SystemError(EPIPE, "server", kLost);
}

void MountGuard::UnmountUnused() const {
  const Message order{.kind = Message::Kind::kTerminate};
  if (!first_.orders.Send(order)) second_.orders.Send(order);
}

void MountGuard::Dismiss() const {
  for (const Process* process : {&first_, &second_}) process->orders.Send({.kind = Message::Kind::kEnded});
}

void MountGuard::Unmount() {
  for (Process* process : {&first_, &second_}) process->orders.Close();
  for (const Process* process : {&first_, &second_})
    while (process->id > 0 && waitpid(process->id, nullptr, 0) < 0 && errno == EINTR) {
    }
}

template <typename Body>
void MountGuard::Start(Process& process, const Channel& life, Body body) {
  std::pair<Channel, Channel> ends = Channel::Pair();
  process.orders = std::move(ends.first);
  process.id = ForkChild([&] {
    OutliveParent();
    setsid();
    CloseAllBut({ends.second.fd(), life.fd()});
    DetachStandardStreams();
    ends.second.Send({.kind = Message::Kind::kStarted});
    body(ends.second);
    return 0;
  });
  ends.second.Close();
  if (!process.orders.Receive()) throw SystemError(EPIPE, "server", kLost);
}

}  // namespace sifcrypt::starter
