// A squashfs opened for reading, as an object of functions (NativeTree in lib/native/binding.ts). They own
// what they need and look at no `this`, so no object from elsewhere can be mistaken for theirs.
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/exports.h"
#include "bindings/progress.h"
#include "bindings/run_async.h"
#include "core/extract.h"
#include "core/squashfs_reader.h"
#include "core/unfolding.h"

namespace sifcrypt {
namespace {

// A directory is listed as a whole; an image may claim any number of entries.
constexpr size_t kMaxListed = size_t{1} << 20;
constexpr size_t kMaxListedText = size_t{64} << 20;
constexpr uint64_t kMaxRead = uint64_t{1} << 30;
constexpr uint64_t kMaxPlainRead = uint64_t{16} << 20;
/// What a squashfs is padded to.
constexpr uint64_t kPadding = 4096;

using ReaderPtr = std::shared_ptr<const SquashfsReader>;

/// What the functions of one tree share. Touched on the event loop only; work in progress holds the reader or the
/// source itself.
struct OpenedTree {
  /// The bytes that the squashfs starts in.
  std::shared_ptr<const ByteSource> source;
  ReaderPtr reader;
};
using OpenedTreePtr = std::shared_ptr<OpenedTree>;

const SquashfsReader& Usable(const ReaderPtr& reader) {
  if (!reader) throw SystemError(EBADF, "squashfs_read", "the tree is closed");
  return *reader;
}

const char* TypeName(InodeType type) {
  switch (type) {
    case InodeType::kDirectory:
      return "directory";
    case InodeType::kFile:
      return "file";
    case InodeType::kSymlink:
      return "symlink";
    case InodeType::kBlockDevice:
      return "block-device";
    case InodeType::kCharacterDevice:
      return "character-device";
    case InodeType::kFifo:
      return "fifo";
    case InodeType::kSocket:
      return "socket";
  }
  return "";
}

Napi::Buffer<char> BytesToJs(Napi::Env env, const std::string& bytes) {
  return Napi::Buffer<char>::Copy(env, bytes.data(), bytes.size());
}

Napi::Object StatToJs(Napi::Env env, const InodeStat& inode) {
  Napi::Object stat = ObjectToJs(env, {{"inode", ToJs(env, inode.inode_number)},
                                       {"type", ToJs(env, TypeName(inode.type))},
                                       {"mode", ToJs(env, inode.mode)},
                                       {"uid", ToJs(env, inode.uid)},
                                       {"gid", ToJs(env, inode.gid)},
                                       {"nlink", ToJs(env, inode.nlink)},
                                       {"mtime", ToJs(env, inode.mtime)},
                                       {"size", ToJs(env, inode.size)},
                                       {"rdev", ToJs(env, inode.rdev)}});
  if (inode.type == InodeType::kSymlink) stat.Set("target", BytesToJs(env, inode.target));
  return stat;
}

std::string PathArgument(const Napi::CallbackInfo& info) {
  std::string path;
  if (info[0].IsBuffer()) {
    const auto bytes = info[0].As<Napi::Buffer<char>>();
    path.assign(bytes.Data(), bytes.Length());
  } else if (info[0].IsString()) {
    path = info[0].As<Napi::String>().Utf8Value();
  } else {
    throw Napi::TypeError::New(info.Env(), "path must be a string or a Buffer");
  }
  if (path.find('\0') != std::string::npos) throw Napi::TypeError::New(info.Env(), "path must not contain a NUL");
  return path;
}

/// A Buffer over the bytes themselves.
Napi::Value OwnedToJs(Napi::Env env, std::unique_ptr<std::vector<uint8_t>> bytes) {
  // A vector without bytes has no address, and V8 takes an external buffer without one for a detached one.
  if (bytes->empty()) return Napi::Buffer<uint8_t>::New(env, 0);
  auto* owned = bytes.release();
  return Napi::Buffer<uint8_t>::NewOrCopy(
      env, owned->data(), owned->size(),
      [](Napi::BasicEnv, uint8_t*, std::vector<uint8_t>* hint) {
        const std::unique_ptr<std::vector<uint8_t>> done(hint);
      },
      owned);
}

Napi::Value Stat(const OpenedTree& tree, const Napi::CallbackInfo& info) {
  if (!info[1].IsBoolean()) throw Napi::TypeError::New(info.Env(), "follow must be a boolean");
  return RunAsync(
      info.Env(),
      [reader = tree.reader, path = PathArgument(info), follow = info[1].As<Napi::Boolean>().Value()] {
        const SquashfsReader& squashfs = Usable(reader);
        return InodeStat(*squashfs.GetInode(squashfs.Resolve(path, follow)));
      },
      [](Napi::Env env, const InodeStat& inode) -> Napi::Value { return StatToJs(env, inode); });
}

struct ListedEntry {
  std::string name;
  InodeStat stat;
};

Napi::Array EntriesToJs(Napi::Env env, const std::vector<ListedEntry>& entries) {
  Napi::Array list = Napi::Array::New(env, entries.size());
  for (uint32_t i = 0; i < entries.size(); ++i) {
    const Napi::HandleScope scope(env);
    list.Set(i, ObjectToJs(env, {{"name", BytesToJs(env, entries[i].name)}, {"stat", StatToJs(env, entries[i].stat)}}));
  }
  return list;
}

Napi::Value List(const OpenedTree& tree, const Napi::CallbackInfo& info) {
  return RunAsync(
      info.Env(),
      [reader = tree.reader, path = PathArgument(info)] {
        const SquashfsReader& squashfs = Usable(reader);
        std::vector<ListedEntry> entries;
        size_t text = 0;
        const InodePtr directory = squashfs.GetInode(squashfs.Resolve(path, true));
        squashfs.ReadDir(*directory, 0, [&](const DirectoryEntry& entry) {
          entries.push_back({std::string(entry.name), InodeStat(*squashfs.GetInode(entry.ref))});
          text += entry.name.size() + entries.back().stat.target.size();
          if (entries.size() > kMaxListed || text > kMaxListedText)
            throw SystemError(EOVERFLOW, "squashfs_readdir", "too many entries");
          return true;
        });
        return entries;
      },
      [](Napi::Env env, const std::vector<ListedEntry>& entries) -> Napi::Value { return EntriesToJs(env, entries); });
}

/// A walk under way; it starts with the first call. It does not keep a closed tree's key.
struct OpenedWalk {
  OpenedWalk(const ReaderPtr& opened, std::string start) : reader(opened), path(std::move(start)) {}

  const std::weak_ptr<const SquashfsReader> reader;
  const std::string path;
  std::mutex mutex;
  std::optional<TreeWalk> walk;
};

Napi::Value NextFolder(const std::shared_ptr<OpenedWalk>& opened, const Napi::CallbackInfo& info) {
  struct Listed {
    std::string path;
    std::vector<ListedEntry> entries;
  };
  return RunAsync(
      info.Env(),
      [opened]() -> std::optional<Listed> {
        const std::lock_guard<std::mutex> lock(opened->mutex);
        const ReaderPtr reader = opened->reader.lock();
        const SquashfsReader& squashfs = Usable(reader);
        if (!opened->walk) opened->walk.emplace(squashfs, opened->path);
        auto folder = opened->walk->Next(squashfs, kMaxListed, kMaxListedText);
        if (!folder) return std::nullopt;
        Listed listed{std::move(folder->path), {}};
        for (TreeWalk::Entry& entry : folder->entries)
          listed.entries.push_back({std::move(entry.name), InodeStat(*entry.inode)});
        return listed;
      },
      [](Napi::Env env, const std::optional<Listed>& listed) -> Napi::Value {
        if (!listed) return env.Undefined();
        return ObjectToJs(env,
                          {{"path", BytesToJs(env, listed->path)}, {"entries", EntriesToJs(env, listed->entries)}});
      });
}

Napi::Value Walk(const OpenedTree& tree, const Napi::CallbackInfo& info) {
  const auto opened = std::make_shared<OpenedWalk>(tree.reader, PathArgument(info));
  return Napi::Function::New(
      info.Env(), [opened](const Napi::CallbackInfo& call) { return NextFolder(opened, call); }, "next");
}

Napi::Value Read(const OpenedTree& tree, const Napi::CallbackInfo& info) {
  return RunAsync(
      info.Env(),
      [reader = tree.reader, path = PathArgument(info), position = UnsignedArgument(info, 1, "position"),
       length = UnsignedArgument(info, 2, "length")] {
        const SquashfsReader& squashfs = Usable(reader);
        const InodePtr inode = squashfs.GetInode(squashfs.Resolve(path, true));
        const uint64_t rest = inode->size > position ? inode->size - position : 0;
        const uint64_t size = std::min(length, rest);
        if (inode->type == InodeType::kFile && size > kMaxRead)
          throw SystemError(EFBIG, "squashfs_read", "more than 1 GiB in one read");
        auto bytes = std::make_unique<std::vector<uint8_t>>(inode->type == InodeType::kFile ? size : 0);
        bytes->resize(squashfs.Read(*inode, position, bytes->data(), bytes->size()));
        return bytes;
      },
      OwnedToJs);
}

Napi::Value StoredAt(const OpenedTree& tree, const Napi::CallbackInfo& info) {
  return RunAsync(
      info.Env(),
      [reader = tree.reader, path = PathArgument(info)] {
        const SquashfsReader& squashfs = Usable(reader);
        return squashfs.StoredAt(*squashfs.GetInode(squashfs.Resolve(path, false)));
      },
      [](Napi::Env env, const std::optional<uint64_t>& place) -> Napi::Value {
        return place ? ToJs(env, *place) : env.Undefined();
      });
}

Napi::Value ReadPlain(const OpenedTree& tree, const Napi::CallbackInfo& info) {
  return RunAsync(
      info.Env(),
      [source = tree.source, position = UnsignedArgument(info, 0, "position"),
       length = UnsignedArgument(info, 1, "length")] {
        if (!source) throw SystemError(EBADF, "squashfs_read", "the tree is closed");
        const uint64_t rest = source->Size() > position ? source->Size() - position : 0;
        const uint64_t size = std::min(length, rest);
        if (size > kMaxPlainRead) throw SystemError(EFBIG, "squashfs_read", "more than 16 MiB in one read");
        auto bytes = std::make_unique<std::vector<uint8_t>>(size);
        if (size > 0) source->ReadAt(position, bytes->data(), size);
        return bytes;
      },
      OwnedToJs);
}

Napi::Value Xattrs(const OpenedTree& tree, const Napi::CallbackInfo& info) {
  return RunAsync(
      info.Env(),
      [reader = tree.reader, path = PathArgument(info)] {
        const SquashfsReader& squashfs = Usable(reader);
        return squashfs.Xattrs(*squashfs.GetInode(squashfs.Resolve(path, false)));
      },
      [](Napi::Env env, const std::vector<Xattr>& xattrs) -> Napi::Value {
        Napi::Array list = Napi::Array::New(env, xattrs.size());
        for (uint32_t i = 0; i < xattrs.size(); ++i) {
          list.Set(i,
                   ObjectToJs(env, {{"name", ToJs(env, xattrs[i].name)}, {"value", BytesToJs(env, xattrs[i].value)}}));
        }
        return list;
      });
}

Napi::Value ExtractTree(const OpenedTree& tree, const Napi::CallbackInfo& info) {
  const Napi::Object options = ReadObject(info[0], "options");
  if (!info[1].IsFunction()) throw Napi::TypeError::New(info.Env(), "onProgress must be a function");
  ExtractRequest request;
  const std::vector<uint8_t> path = ReadBytes(options, "path");
  request.path.assign(path.begin(), path.end());
  if (request.path.find('\0') != std::string::npos)
    throw Napi::TypeError::New(info.Env(), "path must not contain a NUL");
  request.target = ReadString(options, "target");
  request.preserve_owner = ReadBoolean(options, "preserveOwner");
  request.fill = ReadBoolean(options, "fill");
  if (!options.Get("keepModes").IsUndefined()) request.keep_modes = ReadBoolean(options, "keepModes");
  auto progress = std::make_unique<Progress>(info.Env(), info[1].As<Napi::Function>());
  request.on_progress = [&progress = *progress](uint64_t bytes) { return progress.Report(bytes); };
  return RunAsync(
      info.Env(),
      [reader = tree.reader, progress = std::move(progress), request = std::move(request)] {
        return Extract(Usable(reader), request);
      },
      [](Napi::Env env, const Extracted& extracted) -> Napi::Value {
        return ObjectToJs(env, {{"entries", ToJs(env, extracted.entries)}, {"bytes", ToJs(env, extracted.bytes)}});
      });
}

Napi::Value Close(OpenedTree& tree, const Napi::CallbackInfo& info) {
  tree.reader.reset();
  tree.source.reset();
  return info.Env().Undefined();
}

Napi::Value TreeToJs(Napi::Env env, OpenedTree opened) {
  const uint64_t used = opened.reader->info().bytes_used;
  const uint64_t padded = (used + kPadding - 1) / kPadding * kPadding;
  const uint64_t plain_size = opened.source->Size();
  const auto tree = std::make_shared<OpenedTree>(std::move(opened));
  Napi::Object object = Napi::Object::New(env);
  const auto add = [&](const char* name, auto operation) {
    object.Set(name,
               Napi::Function::New(
                   env, [tree, operation](const Napi::CallbackInfo& info) { return operation(*tree, info); }, name));
  };
  add("stat", Stat);
  add("list", List);
  add("walk", Walk);
  add("read", Read);
  add("storedAt", StoredAt);
  add("readPlain", ReadPlain);
  add("xattrs", Xattrs);
  add("extract", ExtractTree);
  add("close", Close);
  object.Set("plainSize", Napi::Number::New(env, static_cast<double>(plain_size)));
  object.Set("squashfsSize", Napi::Number::New(env, static_cast<double>(padded)));
  object.Freeze();
  return object;
}

}  // namespace

Napi::Value OpenTree(const Napi::CallbackInfo& info) {
  Range range;
  std::exception_ptr failure;
  try {
    range = ReadRange(ReadObject(info[0], "range"));
  } catch (const SystemError&) {
    failure = std::current_exception();
  }
  return RunAsync(
      info.Env(),
      [range = std::move(range), failure = std::move(failure)]() mutable -> OpenedTree {
        if (failure) std::rethrow_exception(failure);
        std::shared_ptr<const ByteSource> source = range.Open();
        auto reader = std::make_shared<const SquashfsReader>(source);
        return {std::move(source), std::move(reader)};
      },
      [](Napi::Env env, OpenedTree tree) { return TreeToJs(env, std::move(tree)); });
}

}  // namespace sifcrypt
