#include "starter/bundle.h"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <utility>

#include "core/system_error.h"

namespace sifcrypt::starter {
namespace {

constexpr uint64_t kMaxRecordSize = uint64_t{4} << 20;
constexpr size_t kMaxRecordHeader = 256;

BundleReader::Record ParseRecord(const std::string& line) {
  BundleReader::Record record;
  const char* end = line.data() + line.size();
  unsigned mode = 0;
  const auto [after_mode, mode_error] = std::from_chars(line.data(), end, mode, 8);
  if (mode_error != std::errc{} || mode > 0777 || after_mode == end || *after_mode != ' ')
    throw FormatError("bundle", "a record's mode is malformed");
  const auto [after_size, size_error] = std::from_chars(after_mode + 1, end, record.size);
  if (size_error != std::errc{} || record.size > kMaxRecordSize || after_size == end || *after_size != ' ')
    throw FormatError("bundle", "a record's size is malformed or too large");
  record.mode = mode;
  record.name.assign(after_size + 1, end);
  const bool plain = std::all_of(record.name.begin(), record.name.end(),
                                 [](unsigned char c) { return std::isalnum(c) || c == '.' || c == '_' || c == '-'; });
  if (!plain || record.name.empty() || record.name == "." || record.name == "..")
    throw FormatError("bundle", "a record's name is not a plain one");
  return record;
}

}  // namespace

std::optional<BundleReader::Record> BundleReader::NextRecord() {
  std::string line;
  for (;;) {
    if (at_ == end_ && !Fill()) {
      if (line.empty()) return std::nullopt;
      throw FormatError("bundle", "a record ends early");
    }
    const char c = buffer_[at_++];
    if (c == '\n') break;
    line += c;
    if (line.size() > kMaxRecordHeader) throw FormatError("bundle", "a record's first line is too long");
  }
  return ParseRecord(line);
}

std::string_view BundleReader::Rest(uint64_t size) {
  if (at_ == end_ && !Fill()) throw FormatError("bundle", "a record ends early");
  return {buffer_.data() + at_, static_cast<size_t>(std::min<uint64_t>(size, end_ - at_))};
}

void BundleReader::CopyTo(int fd, uint64_t size) {
  while (size > 0) {
    const std::string_view part = Rest(size);
    const ssize_t written = CheckErrno(write(fd, part.data(), part.size()), "bundle");
    at_ += static_cast<size_t>(written);
    size -= static_cast<uint64_t>(written);
  }
}

std::string BundleReader::Take(uint64_t size) {
  std::string text;
  while (text.size() < size) {
    const std::string_view part = Rest(size - text.size());
    text += part;
    at_ += part.size();
  }
  return text;
}

bool BundleReader::Fill() {
  ssize_t n;
  do n = read(pipe_.get(), buffer_.data(), buffer_.size());
  while (n < 0 && errno == EINTR);
  at_ = 0;
  end_ = static_cast<size_t>(CheckErrno(n, "bundle"));
  return end_ > 0;
}

std::vector<std::string> SplitWords(const std::string& text) {
  std::vector<std::string> words;
  for (size_t at = 0; at < text.size();) {
    const size_t end = text.find('\0', at);
    if (end == std::string::npos) throw FormatError("bundle", "a word ends early");
    words.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return words;
}

std::vector<BindSource> ParseBinds(const std::string& text, size_t images) {
  const std::vector<std::string> words = SplitWords(text);
  if (words.size() % 3 != 0 || words.size() / 3 > kMaxBinds) throw FormatError("bundle", "not a list of binds");
  std::vector<BindSource> binds;
  for (size_t i = 0; i < words.size(); i += 3) {
    const auto has = [flags = words[i + 2]](char flag) { return flags.find(flag) != std::string::npos; };
    BindSource bind{std::nullopt, words[i + 1], has('d'), has('r')};
    if (!words[i].empty()) {
      const char* end = words[i].data() + words[i].size();
      size_t number = 0;
      const auto [after, error] = std::from_chars(words[i].data(), end, number);
      if (error != std::errc{} || after != end || number >= images)
        throw FormatError("bundle", "a bind names no image");
      bind.image = number;
    }
    if (!bind.path.starts_with('/')) throw FormatError("bundle", "a bind's path is not absolute");
    binds.push_back(std::move(bind));
  }
  return binds;
}

}  // namespace sifcrypt::starter
