// What a parent sends for one run: files, one behind the other in a stream, and what some of them say.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/unique_fd.h"

namespace sifcrypt::starter {

/// In one stream.
constexpr size_t kMaxRecords = 64;
/// Of what the container mounts, and of what it mounts over.
constexpr size_t kMaxBinds = 4096;

/// A stream of records: "<octal mode> <size> <name>\n" and <size> bytes. FormatError "bundle".
class BundleReader {
 public:
  struct Record {
    mode_t mode = 0;
    uint64_t size = 0;
    /// A plain one: letters, digits, dots, underscores and dashes.
    std::string name;
  };

  explicit BundleReader(UniqueFd pipe) : pipe_(std::move(pipe)), buffer_(64 << 10) {}

  /// After all bytes of the one before. nullopt: the stream has ended.
  std::optional<Record> NextRecord();
  void CopyTo(int fd, uint64_t size);
  std::string Take(uint64_t size);

 private:
  bool Fill();
  /// What of so many bytes, at least one, is there; never empty.
  std::string_view Rest(uint64_t size);

  UniqueFd pipe_;
  std::vector<char> buffer_;
  size_t at_ = 0;
  size_t end_ = 0;
};

/// What ends with a zero byte each. FormatError "bundle".
std::vector<std::string> SplitWords(const std::string& text);

/// One of the binds: a path of the host, or inside one of the images.
struct BindSource {
  std::optional<size_t> image;
  std::string path;
  bool devices = false;
  bool read_only = false;
};

/// "<image's number or nothing>\0<path>\0<flags>\0", one behind the other. Of the flags d is for devices, r for read-only.
/// FormatError "bundle".
std::vector<BindSource> ParseBinds(const std::string& text, size_t images);

}  // namespace sifcrypt::starter
