// Reads tar front to back: POSIX (ustar, pax), GNU and what came before. Nothing in it is trusted.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/layer_stream.h"
#include "core/tree_source.h"
#include "core/work_budget.h"

namespace sifcrypt {

/// Data of a sparse file; what lies between is zero.
struct SparseSegment {
  uint64_t offset;
  uint64_t size;
};

struct TarEntry {
  enum class Type { kFile, kHardLink, kSymlink, kCharacterDevice, kBlockDevice, kDirectory, kFifo };
  Type type = Type::kFile;
  /// As it stands in the archive.
  std::string path;
  /// Of both kinds of links.
  std::string target;
  /// Permission bits.
  uint32_t mode = 0;
  uint32_t uid = 0;
  uint32_t gid = 0;
  int64_t mtime = 0;
  uint32_t major = 0;
  uint32_t minor = 0;
  /// All of them, whatever their names.
  std::vector<TreeXattr> xattrs;
  /// Of the file.
  uint64_t size = 0;
  /// Where its data lies in the archive, and how much.
  uint64_t data_offset = 0;
  uint64_t stored_size = 0;
  bool is_sparse = false;
  std::vector<SparseSegment> segments;
};

class TarReader {
 public:
  TarReader(LayerStream& stream, WorkBudget& work) : stream_(stream), work_(work) {}
  /// What was not read of the entry before is skipped. False: the archive has ended. EBADMSG "layer_format", with the name.
  bool Next(TarEntry& entry);

 private:
  using Records = std::map<std::string, std::string, std::less<>>;

  bool ReadHeader(uint8_t* header);
  std::string ReadText(uint64_t size, const char* what);
  void ParseRecords(std::string_view text, Records& records);
  /// Of the entry itself, or else of all that follow a global header; nullptr: neither.
  const std::string* Find(const Records& own, std::string_view key) const;
  void ApplyRecord(const Records& own, const std::string& key, const std::string& value, TarEntry& entry);
  void ApplyRecords(const Records& own, TarEntry& entry);
  void ReadSparse(const uint8_t* header, TarEntry& entry);
  void ReadSparseMap(TarEntry& entry);
  void CheckSegments(TarEntry& entry);
  [[noreturn]] void Fail(const std::string& what) const;

  LayerStream& stream_;
  WorkBudget& work_;
  /// Where the next header is.
  uint64_t next_ = 0;
  /// Of global headers. Looked up where an entry has none of its own, and never copied to it.
  Records globals_;
  /// For messages.
  std::string path_;
};

}  // namespace sifcrypt
