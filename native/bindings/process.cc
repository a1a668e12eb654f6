#include <malloc.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "bindings/convert.h"
#include "bindings/exports.h"
#include "bindings/run_async.h"
#include "core/meeting_place.h"
#include "core/process_image.h"
#include "core/process_signal.h"
#include "core/secret_buffer.h"
#include "core/signal_deadline.h"
#include "core/system_error.h"
#include "core/unique_fd.h"

namespace sifcrypt {
namespace {

Napi::Error Described(Napi::Env env, const SystemError& cause) {
  Napi::Error error = Napi::Error::New(env, cause.what());
  DescribeSystemError(error.Value(), cause);
  return error;
}

/// A call that does not block, so it is no promise: what it throws is thrown here, as a system error.
template <typename Call>
auto Now(Napi::Env env, Call call) {
  try {
    return call();
  } catch (const SystemError& cause) {
    throw Described(env, cause);
  }
}

std::vector<int> ReadNumbers(const Napi::Object& object, const char* name) {
  return ReadList(object, name, [](const Napi::Value& item) { return static_cast<int>(item.ToNumber().Int32Value()); });
}

}  // namespace

Napi::Value ForbidDumps(const Napi::CallbackInfo& info) {
  Now(info.Env(), [] { CheckErrno(prctl(PR_SET_DUMPABLE, 0), "prctl"); });
  return info.Env().Undefined();
}

Napi::Value SecretMemory(const Napi::CallbackInfo& info) {
  const int size = ReadInt(ReadObject(info[0], "options"), "size");
  if (size <= 0) throw Napi::RangeError::New(info.Env(), "size must be above 0");
  auto made = Now(info.Env(), [&] { return std::make_unique<SecretBuffer>(static_cast<size_t>(size)); });
  SecretBuffer* memory = made.release();
  return Napi::Buffer<uint8_t>::New(info.Env(), memory->data(), memory->size(), [memory](Napi::Env, uint8_t*) {
    const std::unique_ptr<SecretBuffer> last(memory);
  });
}

Napi::Value PeerOf(const Napi::CallbackInfo& info) {
  const int fd = ReadInt(ReadObject(info[0], "options"), "fd");
  ucred peer{};
  socklen_t size = sizeof(peer);
  Now(info.Env(), [&] { CheckErrno(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size), "getsockopt"); });
  return ObjectToJs(info.Env(), {{"uid", ToJs(info.Env(), peer.uid)}, {"pid", ToJs(info.Env(), peer.pid)}});
}

Napi::Value ConnectIn(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  const int folder = ReadInt(options, "folder");
  const std::string name = ReadString(options, "name");
  UniqueFd connection = Now(info.Env(), [&] { return meeting::Connect(folder, name, "connect"); });
  if (!connection) return info.Env().Undefined();
  return Napi::Number::New(info.Env(), connection.Release());
}

Napi::Value ExitNow(const Napi::CallbackInfo& info) {
  // Whatever waits for threads on its way out waits for what they do.
  _exit(ReadInt(ReadObject(info[0], "options"), "status"));
}

Napi::Value EndAfterSignals(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  const std::vector<int> signals = ReadNumbers(options, "signals");
  const std::chrono::milliseconds patience(ReadInt(options, "patienceMs"));
  const std::chrono::milliseconds with_children(ReadInt(options, "withChildrenMs"));
  Now(info.Env(), [&] { EndAfterSignals(signals, patience, with_children); });
  return info.Env().Undefined();
}

Napi::Value OverwriteFreed(const Napi::CallbackInfo& info) {
  const bool on = ReadBoolean(ReadObject(info[0], "options"), "on");
#ifdef M_PERTURB
  mallopt(M_PERTURB, on ? 0xff : 0);
#else
  static_cast<void>(on);
#endif
  return info.Env().Undefined();
}

Napi::Value MakeMemoryFile(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  const std::string name = ReadString(options, "name");
  const std::vector<uint8_t> bytes = ReadBytes(options, "bytes");
  const int fd = Now(info.Env(), [&] { return MemoryFile(name.c_str(), bytes.data(), bytes.size()).Release(); });
  return Napi::Number::New(info.Env(), fd);
}

Napi::Value FillPipe(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  const SecretBuffer bytes = ReadSecret(options, "bytes");
  const int fd = Now(info.Env(), [&] { return FilledPipe(bytes.data(), bytes.size()).Release(); });
  return Napi::Number::New(info.Env(), fd);
}

Napi::Value HoldSignals(const Napi::CallbackInfo& info) {
  Now(info.Env(), [] { BlockSignals(); });
  return info.Env().Undefined();
}

Napi::Value OpenPipe(const Napi::CallbackInfo& info) {
  Pipe pipe = Now(info.Env(), [] { return MakePipe(); });
  const Napi::Env env = info.Env();
  return ObjectToJs(env, {{"reader", ToJs(env, pipe.reader.Release())}, {"writer", ToJs(env, pipe.writer.Release())}});
}

Napi::Value StartProgram(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  const std::vector<int> inherited = ReadNumbers(options, "inherited");
  const std::string file = ReadString(options, "file");
  const std::vector<std::string> arguments = ReadStrings(options, "arguments");
  const std::vector<std::string> environment = ReadStrings(options, "environment");
  return RunAsync(info.Env(), [inherited, file, arguments, environment] {
    return StartProcess(file, arguments, environment, inherited);
  });
}

Napi::Value WaitForProgram(const Napi::CallbackInfo& info) {
  const pid_t child = ReadInt(ReadObject(info[0], "options"), "pid");
  return RunAsync(info.Env(), [child] { WaitForProcess(child); });
}

Napi::Value SendSignal(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  const int pid = ReadInt(options, "pid");
  const std::string start_time = ReadString(options, "startTime");
  const int signal = ReadInt(options, "signal");
  const bool sent = Now(info.Env(), [&] { return SignalProcess(pid, start_time, signal); });
  return Napi::Boolean::New(info.Env(), sent);
}

Napi::Value BecomeProgram(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  const std::vector<int> kept = ReadNumbers(options, "kept");
  const std::string file = ReadString(options, "file");
  const std::vector<std::string> arguments = ReadStrings(options, "arguments");
  const std::vector<std::string> environment = ReadStrings(options, "environment");
  Now(info.Env(), [&] { ReplaceProcess(file, arguments, environment, kept); });
  return info.Env().Undefined();
}

Napi::Value OpenTerminal(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  const auto columns = static_cast<uint16_t>(ReadInt(options, "columns"));
  const auto rows = static_cast<uint16_t>(ReadInt(options, "rows"));
  PseudoTerminal pair = Now(info.Env(), [&] { return OpenPseudoTerminal(columns, rows); });
  const Napi::Env env = info.Env();
  return ObjectToJs(
      env, {{"controller", ToJs(env, pair.controller.Release())}, {"terminal", ToJs(env, pair.terminal.Release())}});
}

Napi::Value SetTerminalSize(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  const int fd = ReadInt(options, "fd");
  const auto columns = static_cast<uint16_t>(ReadInt(options, "columns"));
  const auto rows = static_cast<uint16_t>(ReadInt(options, "rows"));
  Now(info.Env(), [&] { ResizeTerminal(fd, columns, rows); });
  return info.Env().Undefined();
}

}  // namespace sifcrypt
