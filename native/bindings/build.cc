#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings/exports.h"
#include "bindings/progress.h"
#include "bindings/run_async.h"
#include "core/directory_tree.h"
#include "core/file_range.h"
#include "core/squashfs_writer.h"

namespace sifcrypt {
namespace {

SquashfsCompression ReadCompression(const Napi::Object& options) {
  const std::string name = ReadString(options, "compression");
  for (const SquashfsCompression compression :
       {SquashfsCompression::kGzip, SquashfsCompression::kZstd, SquashfsCompression::kLz4, SquashfsCompression::kXz})
    if (name == SquashfsCompressionName(static_cast<uint16_t>(compression))) return compression;
  throw Napi::RangeError::New(options.Env(), "compression is unknown");
}

SquashfsWriteOptions ReadWriteOptions(const Napi::Object& options) {
  const uint64_t block_size = ReadUnsigned(options, "blockSize");
  const uint64_t threads = ReadUnsigned(options, "threads");
  if (block_size > UINT32_MAX || threads > UINT16_MAX)
    throw Napi::RangeError::New(options.Env(), "blockSize or threads is too large");
  SquashfsWriteOptions write;
  write.codec.compression = ReadCompression(options);
  write.codec.level = ReadInt(options, "level");
  write.codec.block_size = static_cast<uint32_t>(block_size);
  write.threads = static_cast<unsigned>(threads);
  write.squash_owner = ReadBoolean(options, "squashOwner");
  if (options.Get("sourceDateEpoch").StrictEquals(Napi::Number::New(options.Env(), -1)))
    write.source_date_epoch = -1;
  else
    write.source_date_epoch = static_cast<int64_t>(ReadUnsigned(options, "sourceDateEpoch"));
  return write;
}

std::vector<std::string> ReadStrings(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsArray()) throw Napi::TypeError::New(object.Env(), std::string(name) + " must be an array");
  const auto array = value.As<Napi::Array>();
  std::vector<std::string> strings;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    const Napi::Value item = array.Get(i);
    if (!item.IsString()) throw Napi::TypeError::New(object.Env(), std::string(name) + " must hold strings");
    strings.push_back(item.As<Napi::String>().Utf8Value());
  }
  return strings;
}

/// Writes one kind of source to a sink.
using WriteSource = std::function<SquashfsWritten(ByteSink&, const SquashfsProgress&)>;

WriteSource ReadWriteSource(const Napi::Object& options) {
  const Napi::Object source = ReadObject(options.Get("source"), "source");
  if (source.Has("squashfs")) {
    std::optional<uint64_t> length;
    if (!source.Get("length").IsUndefined()) length = ReadUnsigned(source, "length");
    return [range = std::make_shared<Range>(ReadRange(ReadObject(source.Get("squashfs"), "squashfs"))), length](
               ByteSink& sink, const SquashfsProgress& progress) {
      return CopySquashfs(*range->Open(), length, sink, progress);
    };
  }
  return [directory = ReadString(source, "directory"), exclude = ReadStrings(options, "exclude"),
          write = ReadWriteOptions(options)](ByteSink& sink, const SquashfsProgress& progress) {
    DirectoryTree tree(directory, exclude);
    return WriteSquashfs(tree, sink, write, progress);
  };
}

}  // namespace

Napi::Value BuildTree(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  if (!info[1].IsFunction()) throw Napi::TypeError::New(info.Env(), "onProgress must be a function");
  WriteSource write = ReadWriteSource(options);
  std::vector<uint8_t> trailer;
  if (!options.Get("trailer").IsUndefined()) trailer = ReadBytes(options, "trailer");
  std::unique_ptr<ByteSink> sink = std::make_unique<FileSink>(ReadInt(options, "fd"), ReadUnsigned(options, "offset"));
  Cipher cipher = ReadCipher(options, "cipher");
  if (auto* xts = std::get_if<XtsParameters>(&cipher))
    sink = std::make_unique<XtsSink>(std::move(sink), std::move(*xts));
  else if (std::holds_alternative<GocryptfsParameters>(cipher))
    throw Napi::RangeError::New(info.Env(), "gocryptfs is only read");
  return RunAsync(
      info.Env(),
      [write = std::move(write), trailer = std::move(trailer), sink = std::move(sink),
       progress = std::make_unique<Progress>(info.Env(), info[1].As<Napi::Function>())] {
        SquashfsWritten written = write(*sink, [&progress](uint64_t bytes) { return progress->Report(bytes); });
        written.size = WritePadded(*sink, written.size, trailer);
        sink->Finish();
        return written;
      },
      [](Napi::Env env, const SquashfsWritten& written) -> Napi::Value {
        Napi::Object result = Napi::Object::New(env);
        result.Set("size", Napi::Number::New(env, static_cast<double>(written.size)));
        result.Set("inputBytes", Napi::Number::New(env, static_cast<double>(written.input_bytes)));
        result.Set("entries", Napi::Number::New(env, static_cast<double>(written.entries)));
        return result;
      });
}

}  // namespace sifcrypt
