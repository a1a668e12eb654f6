#include "core/tar_reader.h"

#include <string.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "core/system_error.h"

namespace sifcrypt {
namespace {

constexpr size_t kBlock = 512;
// Ours: extended headers, long names, and the pieces of a sparse file that are taken.
constexpr uint64_t kMaximumExtension = 1 << 20;
constexpr size_t kMaximumExtensions = 16;
constexpr size_t kMaximumSegments = 1 << 16;
// What Linux lets a file have.
constexpr size_t kMaximumXattrNames = 64 << 10;
// What is counted: an entry with its header, and bytes that are copied.
constexpr uint64_t kStepsPerEntry = 8;
constexpr uint64_t kBytesPerStep = 64;

// Fields of a header: offset and size (POSIX.1-1988, and GNU's in the room of the prefix).
struct Field {
  size_t at, size;
};
constexpr Field kName{0, 100}, kMode{100, 8}, kUid{108, 8}, kGid{116, 8}, kSize{124, 12}, kMtime{136, 12},
    kChecksum{148, 8}, kTarget{157, 100}, kMajor{329, 8}, kMinor{337, 8}, kPrefix{345, 155}, kRealSize{483, 12};
constexpr Field kStarPrefix{345, 131}, kGnuAccessed{345, 12}, kGnuChanged{357, 12};
constexpr size_t kTypeAt = 156, kMagicAt = 257, kStarMagicAt = 508, kSparseAt = 386, kExtendedAt = 482;
constexpr size_t kSparseInHeader = 4, kSparseInBlock = 21, kBlockExtendedAt = 504;

constexpr std::string_view kXattrRecord = "SCHILY.xattr.";
constexpr std::string_view kEncodedXattrRecord = "LIBARCHIVE.xattr.";

/// Is it looked at? The others, comments above all, are not kept.
bool IsKnown(std::string_view key) {
  constexpr std::string_view kKeys[] = {"path",
                                        "linkpath",
                                        "uid",
                                        "gid",
                                        "mtime",
                                        "size",
                                        "GNU.sparse.name",
                                        "GNU.sparse.major",
                                        "GNU.sparse.map",
                                        "GNU.sparse.realsize",
                                        "GNU.sparse.size"};
  return key.starts_with(kXattrRecord) || key.starts_with(kEncodedXattrRecord) ||
         std::find(std::begin(kKeys), std::end(kKeys), key) != std::end(kKeys);
}

std::string_view Text(const uint8_t* header, Field field) {
  const auto* start = reinterpret_cast<const char*>(header + field.at);
  return {start, strnlen(start, field.size)};
}

template <typename Number>
bool ParseDecimal(std::string_view text, Number& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc{} && end == text.data() + text.size();
}

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::string PercentDecoded(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && HexValue(text[i + 1]) >= 0 && HexValue(text[i + 2]) >= 0) {
      out += static_cast<char>(HexValue(text[i + 1]) << 4 | HexValue(text[i + 2]));
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

bool DecodeBase64(std::string_view text, std::string& out) {
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    if (c == '=' || c == '\n') continue;
    const char* const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char* found = c == '\0' ? nullptr : strchr(alphabet, c);
    if (found == nullptr) return false;
    bits = bits << 6 | static_cast<uint32_t>(found - alphabet);
    count += 6;
    if (count >= 8) {
      count -= 8;
      out += static_cast<char>(bits >> count & 0xff);
    }
  }
  return true;
}

/// Octal, or a big-endian number behind a first byte with its highest bit set.
bool ParseNumber(const uint8_t* field, size_t size, int64_t& out) {
  if ((field[0] & 0x80) != 0) {
    const bool negative = (field[0] & 0x40) != 0;
    uint64_t value = negative ? ~uint64_t{0} : 0;
    for (size_t i = 0; i < size; ++i) {
      const uint8_t byte = i == 0 ? static_cast<uint8_t>((field[0] & 0x7f) | (negative ? 0x80 : 0)) : field[i];
      const auto top = static_cast<uint8_t>(value >> 56);
      if (top != (negative ? 0xff : 0)) return false;
      value = value << 8 | byte;
    }
    if (!negative && value > INT64_MAX) return false;
    out = static_cast<int64_t>(value);
    return negative == (out < 0);
  }
  uint64_t value = 0;
  size_t i = 0;
  while (i < size && (field[i] == ' ' || field[i] == '\0')) ++i;
  for (; i < size && field[i] >= '0' && field[i] <= '7'; ++i) value = value << 3 | (field[i] - '0');
  for (; i < size; ++i)
    if (field[i] != ' ' && field[i] != '\0') return false;
  out = static_cast<int64_t>(value);
  return true;
}

bool IsZero(const uint8_t* block) {
  return std::all_of(block, block + kBlock, [](uint8_t byte) { return byte == 0; });
}

bool ChecksumFits(const uint8_t* header) {
  int64_t wanted = 0;
  if (!ParseNumber(header + kChecksum.at, kChecksum.size, wanted)) return false;
  int64_t plain = 0;
  int64_t withSigns = 0;
  for (size_t i = 0; i < kBlock; ++i) {
    const bool itself = i >= kChecksum.at && i < kChecksum.at + kChecksum.size;
    const uint8_t byte = itself ? ' ' : header[i];
    plain += byte;
    withSigns += static_cast<int8_t>(byte);
  }
  return wanted == plain || wanted == withSigns;
}

/// GNU's format has none: two times lie there. Go put one there before 1.8, so it is one if it is text and these are no numbers.
bool IsPrefixOfOldGo(const uint8_t* header) {
  const auto is_time = [header](Field field) {
    int64_t ignored = 0;
    return header[field.at] == 0 || ParseNumber(header + field.at, field.size, ignored);
  };
  const std::string_view text = Text(header, kPrefix);
  return header[kTypeAt] != 'S' && !(is_time(kGnuAccessed) && is_time(kGnuChanged)) &&
         std::all_of(text.begin(), text.end(), [](char c) { return (c & 0x80) == 0; });
}

/// What belongs in front of the name, if anything does.
std::string_view Prefix(const uint8_t* header) {
  if (memcmp(header + kMagicAt, "ustar  ", 8) == 0)
    return IsPrefixOfOldGo(header) ? Text(header, kPrefix) : std::string_view();
  if (memcmp(header + kMagicAt, "ustar", 6) != 0) return {};
  // Two times follow upon star's.
  return Text(header, memcmp(header + kStarMagicAt, "tar", 4) == 0 ? kStarPrefix : kPrefix);
}

uint64_t Padded(uint64_t size) { return (size + kBlock - 1) / kBlock * kBlock; }

}  // namespace

void TarReader::Fail(const std::string& what) const {
  throw FormatError("layer_format", stream_.name() + ": " + (path_.empty() ? "" : path_ + ": ") + what);
}

bool TarReader::ReadHeader(uint8_t* header) {
  if (next_ > stream_.position()) stream_.Skip(next_ - stream_.position());
  const size_t n = stream_.Read(header, kBlock);
  if (n == 0) return false;
  if (n < kBlock) Fail("the archive ends in a header");
  if (IsZero(header)) return false;
  if (!ChecksumFits(header)) Fail("a header whose checksum does not fit");
  return true;
}

std::string TarReader::ReadText(uint64_t size, const char* what) {
  if (size > kMaximumExtension) Fail(std::string(what) + " of " + std::to_string(size) + " bytes");
  std::string text(size, '\0');
  stream_.ReadFully(text.data(), text.size());
  stream_.Skip(Padded(size) - size);
  return text;
}

void TarReader::ParseRecords(std::string_view text, Records& records) {
  // GNU's sparse format 0.0 repeats two names, which are put together as its 0.1 does.
  std::string map;
  while (!text.empty()) {
    const size_t space = text.find(' ');
    uint64_t length = 0;
    if (space == std::string_view::npos || !ParseDecimal(text.substr(0, space), length) || length <= space + 1 ||
        length > text.size() || text[length - 1] != '\n')
      Fail("a malformed extended header");
    const std::string_view record = text.substr(space + 1, length - space - 2);
    const size_t equals = record.find('=');
    if (equals == std::string_view::npos || equals == 0) Fail("a malformed extended header");
    const std::string_view key = record.substr(0, equals);
    const std::string_view value = record.substr(equals + 1);
    if (key == "GNU.sparse.offset" || key == "GNU.sparse.numbytes") {
      map += map.empty() ? "" : ",";
      map += value;
    } else if (IsKnown(key)) {
      records.insert_or_assign(std::string(key), std::string(value));
    }
    text.remove_prefix(length);
    work_.Take(1, stream_.name());
  }
  if (!map.empty()) records.insert_or_assign("GNU.sparse.map", map);
}

const std::string* TarReader::Find(const Records& own, std::string_view key) const {
  for (const Records* records : {&own, &std::as_const(globals_)})
    if (const auto found = records->find(key); found != records->end()) return &found->second;
  return nullptr;
}

void TarReader::ApplyRecord(const Records& own, const std::string& key, const std::string& value, TarEntry& entry) {
  const auto id = [this, &value] {
    uint32_t number = 0;
    if (!ParseDecimal(value, number)) Fail("a malformed owner");
    return number;
  };
  work_.Take(1 + value.size() / kBytesPerStep, stream_.name());
  if (value.empty() && key != "path" && !key.starts_with(kXattrRecord)) return;
  if (key == "path" || key == "GNU.sparse.name") {
    if (!value.empty()) entry.path = value;
  } else if (key == "linkpath") {
    entry.target = value;
  } else if (key == "uid") {
    entry.uid = id();
  } else if (key == "gid") {
    entry.gid = id();
  } else if (key == "mtime") {
    // To the second, downwards.
    const std::string_view text(value);
    const size_t point = text.find('.');
    if (!ParseDecimal(text.substr(0, point), entry.mtime)) Fail("a malformed time");
    if (point != std::string_view::npos && text.front() == '-' &&
        text.find_first_not_of('0', point + 1) != std::string_view::npos)
      --entry.mtime;
  } else if (key == "size") {
    if (!ParseDecimal(value, entry.stored_size)) Fail("a malformed size");
  } else if (key.starts_with(kXattrRecord)) {
    entry.xattrs.push_back({key.substr(kXattrRecord.size()), value});
  } else if (key.starts_with(kEncodedXattrRecord)) {
    TreeXattr xattr{PercentDecoded(std::string_view(key).substr(kEncodedXattrRecord.size())), ""};
    if (!DecodeBase64(value, xattr.value)) Fail("a malformed extended attribute");
    // Both forms of the same come together.
    if (Find(own, std::string(kXattrRecord) + xattr.name) == nullptr) entry.xattrs.push_back(xattr);
  }
}

void TarReader::ApplyRecords(const Records& own, TarEntry& entry) {
  for (const auto& [key, value] : globals_)
    if (own.find(key) == own.end()) ApplyRecord(own, key, value, entry);
  for (const auto& [key, value] : own) ApplyRecord(own, key, value, entry);
  size_t names = 0;
  for (const TreeXattr& xattr : entry.xattrs) names += xattr.name.size() + 1;
  if (names > kMaximumXattrNames) Fail("too many extended attributes");
  const auto find = [this, &own](const char* key) { return Find(own, key); };
  const std::string* const major = find("GNU.sparse.major");
  const std::string* const map = find("GNU.sparse.map");
  const std::string* size = find("GNU.sparse.realsize");
  if (size == nullptr) size = find("GNU.sparse.size");
  if (entry.type != TarEntry::Type::kFile || (major == nullptr && map == nullptr)) return;
  if (size == nullptr || !ParseDecimal(*size, entry.size)) Fail("a sparse file without a size");
  entry.is_sparse = true;
  if (major != nullptr && *major != "0") {
    if (*major != "1") Fail("a sparse file of an unknown format");
    return;
  }
  if (map == nullptr) Fail("a sparse file without a map");
  work_.Take(map->size() / 2, stream_.name());
  std::string_view rest(*map);
  std::vector<uint64_t> numbers;
  while (!rest.empty()) {
    const size_t comma = std::min(rest.find(','), rest.size());
    uint64_t number = 0;
    if (!ParseDecimal(rest.substr(0, comma), number) || numbers.size() >= 2 * kMaximumSegments)
      Fail("a malformed map of a sparse file");
    numbers.push_back(number);
    rest.remove_prefix(std::min(comma + 1, rest.size()));
  }
  if (numbers.size() % 2 != 0) Fail("a malformed map of a sparse file");
  for (size_t i = 0; i < numbers.size(); i += 2) entry.segments.push_back({numbers[i], numbers[i + 1]});
}

void TarReader::ReadSparse(const uint8_t* header, TarEntry& entry) {
  int64_t size = 0;
  if (!ParseNumber(header + kRealSize.at, kRealSize.size, size) || size < 0) Fail("a malformed sparse file");
  entry.is_sparse = true;
  entry.size = static_cast<uint64_t>(size);
  uint8_t block[kBlock];
  const uint8_t* place = header + kSparseAt;
  size_t count = kSparseInHeader;
  bool more = header[kExtendedAt] != 0;
  for (;;) {
    for (size_t i = 0; i < count; ++i, place += 24) {
      if (place[0] == 0 && place[12] == 0) break;
      int64_t offset = 0;
      int64_t bytes = 0;
      if (!ParseNumber(place, 12, offset) || !ParseNumber(place + 12, 12, bytes) || offset < 0 || bytes < 0 ||
          entry.segments.size() >= kMaximumSegments)
        Fail("a malformed map of a sparse file");
      entry.segments.push_back({static_cast<uint64_t>(offset), static_cast<uint64_t>(bytes)});
    }
    if (!more) return;
    stream_.ReadFully(block, sizeof(block));
    place = block;
    count = kSparseInBlock;
    more = block[kBlockExtendedAt] != 0;
  }
}

/// Format 1.0: the map stands before the data, in decimal lines.
void TarReader::ReadSparseMap(TarEntry& entry) {
  std::string text;
  size_t at = 0;
  const auto number = [&]() {
    size_t end;
    while ((end = text.find('\n', at)) == std::string::npos) {
      if (text.size() - at > 32 || text.size() + kBlock > entry.stored_size || text.size() > kMaximumExtension)
        Fail("a malformed map of a sparse file");
      text.resize(text.size() + kBlock);
      stream_.ReadFully(text.data() + text.size() - kBlock, kBlock);
    }
    uint64_t value = 0;
    if (!ParseDecimal(std::string_view(text).substr(at, end - at), value)) Fail("a malformed map of a sparse file");
    at = end + 1;
    return value;
  };
  const uint64_t count = number();
  if (count > kMaximumSegments) Fail("a malformed map of a sparse file");
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t offset = number();
    entry.segments.push_back({offset, number()});
  }
  entry.stored_size -= text.size();
}

void TarReader::CheckSegments(TarEntry& entry) {
  uint64_t end = 0;
  uint64_t stored = 0;
  for (const SparseSegment& segment : entry.segments) {
    if (segment.offset < end || !RangeFits(segment.offset, segment.size, entry.size))
      Fail("a malformed map of a sparse file");
    end = segment.offset + segment.size;
    stored += segment.size;
  }
  // Whoever looks for the next data would pass by them each time.
  std::erase_if(entry.segments, [](const SparseSegment& segment) { return segment.size == 0; });
  if (stored != entry.stored_size) Fail("a sparse file that has other data than its map says");
}

bool TarReader::Next(TarEntry& entry) {
  entry = {};
  path_.clear();
  work_.Take(kStepsPerEntry, stream_.name());
  Records own;
  bool extended = false;
  std::string longName;
  std::string longTarget;
  uint8_t header[kBlock];
  for (size_t extensions = 0;; ++extensions) {
    if (extensions > kMaximumExtensions) Fail("too many extended headers");
    if (!ReadHeader(header)) {
      if (extended) Fail("the archive ends behind an extended header");
      return false;
    }
    int64_t size = 0;
    if (!ParseNumber(header + kSize.at, kSize.size, size) || size < 0) Fail("a malformed size");
    const char type = static_cast<char>(header[kTypeAt]);
    if (type == 'x' || type == 'X') {
      ParseRecords(ReadText(static_cast<uint64_t>(size), "an extended header"), own);
      extended = true;
      continue;
    }
    if (type == 'g') {
      ParseRecords(ReadText(static_cast<uint64_t>(size), "a global header"), globals_);
      work_.Take(globals_.size(), stream_.name());
      uint64_t bytes = 0;
      for (const auto& [key, value] : globals_) bytes += key.size() + value.size();
      if (bytes > kMaximumExtension) Fail("too many global records");
      continue;
    }
    if (type == 'L' || type == 'K') {
      std::string text = ReadText(static_cast<uint64_t>(size), "a long name");
      text.resize(strnlen(text.c_str(), text.size()));
      (type == 'L' ? longName : longTarget) = std::move(text);
      extended = true;
      continue;
    }
    entry.stored_size = static_cast<uint64_t>(size);
    break;
  }

  entry.path = Text(header, kName);
  if (const std::string_view prefix = Prefix(header); !prefix.empty())
    entry.path = std::string(prefix) + "/" + entry.path;
  entry.target = Text(header, kTarget);
  if (!longName.empty()) entry.path = longName;
  if (!longTarget.empty()) entry.target = longTarget;
  path_ = entry.path;

  const auto number = [this, &header](Field field) {
    int64_t value = 0;
    if (!ParseNumber(header + field.at, field.size, value)) Fail("a malformed number");
    return value;
  };
  const auto id = [this, &number](Field field) {
    const int64_t value = number(field);
    if (value < 0 || value > UINT32_MAX) Fail("an owner out of range");
    return static_cast<uint32_t>(value);
  };
  const char type = static_cast<char>(header[kTypeAt]);
  switch (type) {
    case '0':
    case '\0':
    case '7':
    case 'S':
      // Before POSIX a folder was a name with a slash behind it.
      entry.type = type == '\0' && entry.path.ends_with('/') ? TarEntry::Type::kDirectory : TarEntry::Type::kFile;
      break;
    case '1':
      entry.type = TarEntry::Type::kHardLink;
      break;
    case '2':
      entry.type = TarEntry::Type::kSymlink;
      break;
    case '3':
      entry.type = TarEntry::Type::kCharacterDevice;
      break;
    case '4':
      entry.type = TarEntry::Type::kBlockDevice;
      break;
    case '5':
      entry.type = TarEntry::Type::kDirectory;
      break;
    case '6':
      entry.type = TarEntry::Type::kFifo;
      break;
    default:
      Fail("an entry of unknown type " + std::to_string(static_cast<int>(static_cast<unsigned char>(type))));
  }
  entry.mode = static_cast<uint32_t>(number(kMode)) & 07777;
  if (Find(own, "uid") == nullptr) entry.uid = id(kUid);
  if (Find(own, "gid") == nullptr) entry.gid = id(kGid);
  entry.mtime = number(kMtime);
  if (entry.type == TarEntry::Type::kCharacterDevice || entry.type == TarEntry::Type::kBlockDevice) {
    entry.major = id(kMajor);
    entry.minor = id(kMinor);
  }
  ApplyRecords(own, entry);
  path_ = entry.path;
  if (entry.path.find('\0') != std::string::npos || entry.target.find('\0') != std::string::npos)
    Fail("a name with a zero byte in it");
  if (type == 'S') ReadSparse(header, entry);
  if (entry.type != TarEntry::Type::kFile) {
    // Whatever their size says, nothing follows them.
    entry.stored_size = 0;
    entry.data_offset = stream_.position();
    return true;
  }
  const uint64_t start = stream_.position();
  const uint64_t stored = entry.stored_size;
  if (stored > INT64_MAX - kBlock) Fail("a malformed size");
  const std::string* const major = Find(own, "GNU.sparse.major");
  if (entry.is_sparse && type != 'S' && entry.segments.empty() && major != nullptr && *major == "1")
    ReadSparseMap(entry);
  if (entry.is_sparse)
    CheckSegments(entry);
  else
    entry.size = stored;
  entry.data_offset = stream_.position();
  next_ = start + Padded(stored);
  return true;
}

}  // namespace sifcrypt
