#include "starter/channel.h"

#include <sys/socket.h>

#include <algorithm>
#include <cstring>

namespace sifcrypt::starter {
namespace {

struct Packet {
  Message::Kind kind;
  int32_t error;
  int32_t code;
  int32_t signal;
  char step[32];
  char text[1024];
};

template <size_t size>
void Copy(char (&to)[size], const std::string& from) {
  const size_t length = std::min(from.size(), size - 1);
  std::memcpy(to, from.data(), length);
  to[length] = '\0';
}

union Control {
  cmsghdr align;
  char room[CMSG_SPACE(sizeof(int))];
};

}  // namespace

std::pair<Channel, Channel> Channel::Pair() {
  int ends[2];
  CheckErrno(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), "socketpair");
  return {Channel(UniqueFd(ends[0])), Channel(UniqueFd(ends[1]))};
}

bool Channel::Send(const Message& message, int descriptor) const {
  if (!fd_) return false;
  Packet packet{};
  packet.kind = message.kind;
  packet.error = message.error;
  packet.code = message.code;
  packet.signal = message.signal;
  Copy(packet.step, message.step);
  Copy(packet.text, message.text);
  iovec part{&packet, sizeof packet};
  Control control{};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  if (descriptor >= 0) {
    header.msg_control = control.room;
    header.msg_controllen = sizeof control.room;
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof descriptor);
    std::memcpy(CMSG_DATA(rights), &descriptor, sizeof descriptor);
  }
  ssize_t sent;
  do sent = sendmsg(fd_.get(), &header, MSG_NOSIGNAL);
  while (sent < 0 && errno == EINTR);
  if (sent >= 0) return true;
  if (errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN) return false;
  throw SystemError(errno, "sendmsg");
}

bool Channel::SendFailure(const SystemError& failure, const std::string& step) const {
  return Send({.kind = Message::Kind::kFailed, .error = failure.error(), .step = step, .text = failure.what()});
}

std::optional<Message> Channel::Receive(UniqueFd* descriptor) const {
  Packet packet{};
  iovec part{&packet, sizeof packet};
  Control control{};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control.room;
  header.msg_controllen = sizeof control.room;
  ssize_t received;
  do received = recvmsg(fd_.get(), &header, MSG_CMSG_CLOEXEC);
  while (received < 0 && errno == EINTR);
  if (received < 0 && errno != ECONNRESET) throw SystemError(errno, "recvmsg");
  const cmsghdr* rights = received > 0 ? CMSG_FIRSTHDR(&header) : nullptr;
  if (rights != nullptr && rights->cmsg_type == SCM_RIGHTS && rights->cmsg_len == CMSG_LEN(sizeof(int))) {
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(rights), sizeof fd);
    UniqueFd owned(fd);
    if (descriptor != nullptr) *descriptor = std::move(owned);
  }
  if (received != static_cast<ssize_t>(sizeof packet)) return std::nullopt;
  packet.step[sizeof packet.step - 1] = packet.text[sizeof packet.text - 1] = '\0';
  return Message{packet.kind, packet.error, packet.code, packet.signal, packet.step, packet.text};
}

}  // namespace sifcrypt::starter
