#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/archive.h"
#include "bindings/exports.h"
#include "bindings/progress.h"
#include "bindings/run_async.h"
#include "core/added_tree.h"
#include "core/copy_range.h"
#include "core/directory_tree.h"
#include "core/file_range.h"
#include "core/image_range.h"
#include "core/layer_tree.h"
#include "core/scratch_fill.h"
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

int64_t ReadSourceDateEpoch(const Napi::Object& options) {
  const bool none = options.Get("sourceDateEpoch").StrictEquals(Napi::Number::New(options.Env(), -1));
  return none ? -1 : static_cast<int64_t>(ReadUnsigned(options, "sourceDateEpoch"));
}

std::optional<TreeOwner> ReadOwner(const Napi::Object& options) {
  if (options.Get("owner").IsUndefined()) return std::nullopt;
  const Napi::Object owner = ReadObject(options.Get("owner"), "owner");
  return TreeOwner{ReadUint32(owner, "uid"), ReadUint32(owner, "gid")};
}

SquashfsWriteOptions ReadWriteOptions(const Napi::Object& options) {
  const uint32_t threads = ReadUint32(options, "threads");
  if (threads > UINT16_MAX) throw Napi::RangeError::New(options.Env(), "threads is too large");
  SquashfsWriteOptions write;
  write.codec.compression = ReadCompression(options);
  write.codec.level = ReadInt(options, "level");
  write.codec.block_size = ReadUint32(options, "blockSize");
  write.threads = threads;
  write.owner = ReadOwner(options);
  write.source_date_epoch = ReadSourceDateEpoch(options);
  return write;
}

std::vector<AddedEntry> ReadAdded(const Napi::Object& source) {
  return ReadList(source, "added", [](const Napi::Value& value) {
    const Napi::Object item = ReadObject(value, "added");
    AddedEntry entry;
    entry.path = ReadString(item, "path");
    entry.mode = static_cast<mode_t>(ReadInt(item, "mode"));
    entry.mtime = static_cast<int64_t>(ReadUnsigned(item, "mtime"));
    entry.keep = ReadBoolean(item, "keep");
    const std::string type = ReadString(item, "type");
    if (type == "file") {
      entry.mode |= S_IFREG;
      entry.content = ReadBytes(item, "content");
    } else if (type == "symlink") {
      entry.mode |= S_IFLNK;
      entry.target = ReadString(item, "target");
    } else {
      entry.mode |= S_IFDIR;
    }
    return entry;
  });
}

std::vector<Layer> ReadLayers(const Napi::Object& source) {
  SharedArchive archive;
  return ReadList(source, "layers", [&archive](const Napi::Value& value) {
    const Napi::Object item = ReadObject(value, "layers");
    Layer layer;
    layer.blob = ReadBlob(ReadObject(item.Get("blob"), "blob"), archive);
    layer.decoded = archive.decoded;
    layer.name = ReadString(item, "name");
    if (!item.Get("digest").IsUndefined()) layer.digest = ReadBytes(item, "digest");
    layer.diff_id = ReadBytes(item, "diffId");
    return layer;
  });
}

/// Writes one kind of source to a sink.
using WriteSource = std::function<SquashfsWritten(ByteSink&, Progress&)>;
/// Has somebody go through a tree, who tells how many bytes of it he has read. Gives the attributes that are left out.
using UseTree = std::function<void(TreeSource&, const SquashfsProgress&)>;
using WithTree = std::function<uint64_t(const UseTree&, Progress&)>;

SquashfsProgress ReportTo(Progress& progress) {
  return [&progress](uint64_t bytes) { return progress.Report(bytes); };
}

WithTree ReadLayerTree(const Napi::Object& source) {
  const Napi::Object limits = ReadObject(source.Get("limits"), "limits");
  return [layers = ReadLayers(source), added = ReadAdded(source),
          limits = LayerLimits{ReadUnsigned(limits, "bytes"), ReadUnsigned(limits, "memory")}](const UseTree& use,
                                                                                               Progress& progress) {
    LayerTree image(layers, limits, [&progress](uint64_t) {
      if (!progress.Report(0)) throw SystemError(ECANCELED, "layer_read");
    });
    AddedTree tree(image, added);
    use(tree, ReportTo(progress));
    return image.skipped_xattrs();
  };
}

WithTree ReadFolderTree(const Napi::Object& source, const Napi::Object& options) {
  return [directory = ReadString(source, "directory"), exclude = ReadStrings(options, "exclude"),
          added = ReadAdded(source),
          count = options.Get("countContent").ToBoolean().Value()](const UseTree& use, Progress& progress) -> uint64_t {
    DirectoryTree folder(directory, exclude);
    AddedTree tree(folder, added);
    std::optional<ContentCounter> content;
    if (count) content.emplace(folder);
    use(tree, [&](uint64_t bytes) { return progress.Report(bytes, content ? content->total() : std::nullopt); });
    return 0;
  };
}

/// Of layers or a folder.
WithTree ReadTree(const Napi::Object& source, const Napi::Object& options) {
  return source.Has("layers") ? ReadLayerTree(source) : ReadFolderTree(source, options);
}

WriteSource ReadWriteSource(const Napi::Object& options) {
  const Napi::Object source = ReadObject(options.Get("source"), "source");
  if (source.Has("squashfs")) {
    std::optional<uint64_t> length;
    if (!source.Get("length").IsUndefined()) length = ReadUnsigned(source, "length");
    return [range = std::make_shared<Range>(ReadRange(ReadObject(source.Get("squashfs"), "squashfs"))), length](
               ByteSink& sink, Progress& progress) {
      return CopySquashfs(*range->Open(), length, sink, ReportTo(progress));
    };
  }
  if (source.Has("bytes"))
    return [range = std::make_shared<Range>(ReadRange(ReadObject(source.Get("bytes"), "bytes")))](ByteSink& sink,
                                                                                                  Progress& progress) {
      SquashfsWritten written;
      written.size = written.input_bytes = CopyRange(*range->Open(), sink, ReportTo(progress));
      return written;
    };
  return [with_tree = ReadTree(source, options), write = ReadWriteOptions(options)](ByteSink& sink,
                                                                                    Progress& progress) {
    SquashfsWritten written;
    written.skipped_xattrs = with_tree(
        [&](TreeSource& tree, const SquashfsProgress& report) { written = WriteSquashfs(tree, sink, write, report); },
        progress);
    return written;
  };
}

/// Whether the folder is in a scratch of ours, which from now on fills it with what is written to the file.
bool BeginFilling(int folder, int file) {
  constexpr decltype(std::declval<struct statfs>().f_type) kFuseMagic = 0x65735546;
  struct statfs system {};
  CheckErrno(fstatfs(folder, &system), "fstatfs");
  if (system.f_type != kFuseMagic) return false;
  struct stat status {};
  CheckErrno(fstat(file, &status), "fstat");
  const uint64_t number = status.st_ino;
  if (ioctl(folder, kScratchFill, &number) == 0) return true;
  if (errno == ENOTTY || errno == ENOSYS) return false;
  throw SystemError(errno, "fill");
}

void SendPiece(int file, const uint8_t* piece, size_t size) {
  try {
    WriteFully(file, 0, piece, size);
  } catch (const SystemError& failure) {
    // It is nothing else that it calls invalid.
    throw SystemError(failure.error(), failure.error() == EINVAL ? "chown" : "fill");
  }
}

/// What gets what is written.
struct Target {
  std::unique_ptr<ByteSink> file;
  Cipher cipher;
  SecretBuffer key;
  uint32_t time = 0;
};

std::unique_ptr<Target> ReadTarget(const Napi::Object& options) {
  auto target = std::make_unique<Target>();
  target->file = std::make_unique<FileSink>(ReadInt(options, "fd"), ReadUnsigned(options, "offset"));
  target->key = ReadCipher(options, target->cipher);
  const int64_t epoch = ReadSourceDateEpoch(options);
  target->time = static_cast<uint32_t>(std::clamp<int64_t>(epoch < 0 ? time(nullptr) : epoch, 0, UINT32_MAX));
  return target;
}

/// Offsets of 8-byte numbers in `size` bytes.
std::vector<uint64_t> ReadPlaces(const Napi::Object& options, const char* name, uint64_t size) {
  if (options.Get(name).IsUndefined()) return {};
  return ReadList(options, name, [name, size](const Napi::Value& item) {
    const int64_t at = item.ToNumber().Int64Value();
    if (at < 0 || !RangeFits(static_cast<uint64_t>(at), 8, size))
      throw Napi::RangeError::New(item.Env(), std::string(name) + " lies outside of the trailer");
    return static_cast<uint64_t>(at);
  });
}

}  // namespace

Napi::Value BuildTree(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  if (!info[1].IsFunction()) throw Napi::TypeError::New(info.Env(), "onProgress must be a function");
  WriteSource write = ReadWriteSource(options);
  std::vector<uint8_t> trailer;
  if (!options.Get("trailer").IsUndefined()) trailer = ReadBytes(options, "trailer");
  std::vector<uint64_t> length_at = ReadPlaces(options, "trailerLengthAt", trailer.size());
  return RunAsync(
      info.Env(),
      [write = std::move(write), trailer = std::move(trailer), length_at = std::move(length_at),
       target = ReadTarget(options),
       progress = std::make_unique<Progress>(info.Env(), info[1].As<Napi::Function>())]() mutable {
        // What all of it takes in the file, at the end. The sinks above own it.
        const ByteSink& file = *target->file;
        const std::unique_ptr<ByteSink> sink =
            EncryptingSink(std::move(target->file), std::move(target->cipher), std::move(target->key), target->time);
        SquashfsWritten written = write(*sink, *progress);
        for (const uint64_t at : length_at)
          for (int i = 0; i < 8; ++i) trailer[at + i] = static_cast<uint8_t>(written.size >> (8 * i));
        WritePadded(*sink, written.size, trailer);
        sink->Finish();
        written.size = file.Size();
        return written;
      },
      [](Napi::Env env, const SquashfsWritten& written) -> Napi::Value {
        return ObjectToJs(env, {{"size", ToJs(env, written.size)},
                                {"inputBytes", ToJs(env, written.input_bytes)},
                                {"entries", ToJs(env, written.entries)},
                                {"skippedXattrs", ToJs(env, written.skipped_xattrs)}});
      });
}

Napi::Value FillScratch(const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  return RunAsync(info.Env(), [folder = UniqueFd::Duplicate(ReadInt(options, "folder")),
                               file = UniqueFd::Duplicate(ReadInt(options, "pieces")), owner = ReadOwner(options),
                               with_tree = ReadTree(ReadObject(options.Get("source"), "source"), options),
                               progress = std::make_unique<Progress>(info.Env(), ProgressArgument(info))] {
    if (!BeginFilling(folder.get(), file.get())) return false;
    with_tree(
        [&](TreeSource& tree, const SquashfsProgress& report) {
          ScratchPieces pieces([&file](const uint8_t* piece, size_t size) { SendPiece(file.get(), piece, size); },
                               owner,
                               [&report](uint64_t bytes) {
                                 if (!report(bytes)) throw SystemError(ECANCELED, "fill");
                               });
          tree.Walk(pieces);
          pieces.Finish();
        },
        *progress);
    return true;
  });
}

}  // namespace sifcrypt
