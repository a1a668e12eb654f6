// Layers made here, byte by byte, applied to each other: every rule, hostile archives, memory, and mutations of all of it.
// Prints what failed and exits 1, or nothing and exits 0.
#include "core/layer_tree.h"

#include <lzma.h>
#include <malloc.h>
#include <openssl/evp.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <functional>
#include <iostream>
#include <map>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "core/squashfs_writer.h"
#include "core/system_error.h"

namespace sifcrypt {
namespace {

class Bytes final : public ByteSource {
 public:
  explicit Bytes(std::string bytes) : bytes_(std::move(bytes)) {}
  uint64_t Size() const override { return bytes_.size(); }
  void ReadAt(uint64_t offset, void* out, size_t size) const override {
    if (!RangeFits(offset, size, bytes_.size())) throw SystemError(EOVERFLOW, "bytes");
    memcpy(out, bytes_.data() + offset, size);
  }

 private:
  std::string bytes_;
};

ExpectedDigest DigestOfText(const std::string& text) {
  ExpectedDigest digest(32);
  EVP_Digest(text.data(), text.size(), digest.data(), nullptr, EVP_sha256(), nullptr);
  return digest;
}

std::string Gzip(const std::string& text) {
  z_stream stream{};
  deflateInit2(&stream, 1, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, text.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(out.size() - stream.avail_out);
  deflateEnd(&stream);
  return out;
}

std::string Zstd(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 1));
  return out;
}

std::string Xz(const std::string& text) {
  std::string out(lzma_stream_buffer_bound(text.size()), '\0');
  size_t size = 0;
  if (lzma_easy_buffer_encode(1, LZMA_CHECK_CRC64, nullptr, reinterpret_cast<const uint8_t*>(text.data()), text.size(),
                              reinterpret_cast<uint8_t*>(out.data()), &size, out.size()) != LZMA_OK)
    throw std::runtime_error("lzma_easy_buffer_encode");
  out.resize(size);
  return out;
}

/// A tar archive under construction.
class Tar {
 public:
  Tar& Header(char type, const std::string& name, uint64_t size, const std::string& target = "", uint32_t mode = 0644,
              const std::function<void(char*)>& change = {}) {
    char header[512] = {};
    memcpy(header, name.data(), std::min<size_t>(name.size(), 100));
    snprintf(header + 100, 8, "%07o", mode);
    snprintf(header + 108, 8, "%07o", 5);
    snprintf(header + 116, 8, "%07o", 6);
    snprintf(header + 124, 12, "%011llo", static_cast<unsigned long long>(size));
    snprintf(header + 136, 12, "%011o", 1000);
    header[156] = type;
    memcpy(header + 157, target.data(), std::min<size_t>(target.size(), 100));
    memcpy(header + 257,
           "ustar\0"
           "00",
           8);
    snprintf(header + 329, 8, "%07o", 1);
    snprintf(header + 337, 8, "%07o", 3);
    if (change) change(header);
    memset(header + 148, ' ', 8);
    unsigned sum = 0;
    for (const char c : header) sum += static_cast<unsigned char>(c);
    snprintf(header + 148, 8, "%06o", sum);
    text_.append(header, sizeof(header));
    return *this;
  }
  Tar& Raw(const std::string& data) {
    text_ += data;
    text_.resize((text_.size() + 511) / 512 * 512);
    return *this;
  }
  Tar& File(const std::string& name, const std::string& data, uint32_t mode = 0644) {
    return Header('0', name, data.size(), "", mode).Raw(data);
  }
  Tar& Directory(const std::string& name, uint32_t mode = 0755) { return Header('5', name, 0, "", mode); }
  Tar& Symlink(const std::string& name, const std::string& target) { return Header('2', name, 0, target, 0777); }
  Tar& HardLink(const std::string& name, const std::string& target) { return Header('1', name, 0, target); }
  Tar& Whiteout(const std::string& name) { return Header('0', name, 0); }
  Tar& Pax(const std::vector<std::pair<std::string, std::string>>& records, char type = 'x') {
    std::string text;
    for (const auto& [key, value] : records) {
      const std::string rest = " " + key + "=" + value + "\n";
      size_t length = rest.size() + 1;
      while (std::to_string(length).size() + rest.size() != length) ++length;
      text += std::to_string(length) + rest;
    }
    return Header(type, "pax", text.size()).Raw(text);
  }
  std::string End() const { return text_ + std::string(1024, '\0'); }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

Layer LayerOf(const std::string& tar, const std::string& blob) {
  Layer layer;
  layer.blob = std::make_shared<Bytes>(blob);
  layer.name = "layer";
  layer.digest = DigestOfText(blob);
  layer.diff_id = DigestOfText(tar);
  return layer;
}

/// What a tree says, a line for each entry.
class Lines final : public TreeVisitor {
 public:
  void EnterDirectory(const TreeEntry& entry) override { Add(entry, "/"); }
  void LeaveDirectory() override {}
  void AddSpecial(const TreeEntry& entry) override { Add(entry, entry.target); }
  void AddFile(const TreeEntry& entry, const TreeFile& file) override { Add(entry, Read(file)); }
  uint64_t StoreContent(const TreeFile& file) override {
    contents.push_back(Read(file));
    return contents.size() - 1;
  }
  void AddStoredFile(const TreeEntry& entry, uint64_t content) override { Add(entry, contents.at(content)); }

  std::map<std::string, std::string> lines;
  std::map<std::string, TreeEntry> entries;
  std::vector<std::string> contents;

 private:
  static std::string Read(const TreeFile& file) {
    std::string text(std::min<uint64_t>(file.Size(), 1 << 20), '\0');
    // In odd pieces, as a reader of streams must bear.
    for (size_t at = 0; at < text.size();) {
      const size_t n = std::min<size_t>(777, text.size() - at);
      file.ReadAt(at, text.data() + at, n);
      at += n;
    }
    return text;
  }
  void Add(const TreeEntry& entry, const std::string& content) {
    const std::string path(entry.path);
    lines[path] = content;
    entries[path] = entry;
  }
};

Lines Walk(std::vector<Layer> layers, const LayerLimits& limits = {}) {
  LayerTree tree(std::move(layers), limits, {});
  Lines lines;
  tree.Walk(lines);
  return lines;
}

Lines Apply(const std::vector<std::string>& tars, const LayerLimits& limits = {}) {
  std::vector<Layer> layers;
  for (size_t i = 0; i < tars.size(); ++i)
    layers.push_back(LayerOf(tars[i], i % 3 == 0 ? tars[i] : i % 3 == 1 ? Gzip(tars[i]) : Zstd(tars[i])));
  return Walk(std::move(layers), limits);
}

using Tree = std::map<std::string, std::string>;

void CheckTree(const std::vector<std::string>& tars, Tree expected, const std::string& what) {
  try {
    expected.try_emplace("", "/");
    const Tree found = Apply(tars).lines;
    if (found == expected) return;
    Check(false, what);
    for (const auto& [path, content] : found) std::cerr << "  " << path << " " << content << "\n";
  } catch (const SystemError& error) {
    Check(false, what + ": " + error.what());
  }
}

void CheckRefused(const std::string& tar, const std::string& what) {
  CheckError(
      EBADMSG, "layer_format", [&] { Apply({tar}); }, what);
}

void TestRules() {
  CheckTree({Tar().File("../../x", "1").File("/abs/y", "2").End()}, {{"x", "1"}, {"abs", "/"}, {"abs/y", "2"}},
            "names are cleaned: upwards ends at the root, absolute is below it");
  CheckTree({Tar().Directory("etc").Symlink("l", "/etc").Symlink("up", "../../..").End(),
             Tar().File("l/new", "n").File("up/top", "t").End()},
            {{"etc", "/"}, {"l", "/etc"}, {"up", "../../.."}, {"etc/new", "n"}, {"top", "t"}},
            "links on the way are followed inside the root");
  CheckTree({Tar().Symlink("d", "nowhere").End(), Tar().File("d/f", "1").End()},
            {{"d", "nowhere"}, {"nowhere", "/"}, {"nowhere/f", "1"}}, "a link to what is not there yet");
  CheckTree({Tar().File("a/b/c", "1").End()}, {{"a", "/"}, {"a/b", "/"}, {"a/b/c", "1"}}, "missing folders are made");
  CheckRefused(Tar().Symlink(".", "/").End(), "S12: a link named . is refused");
  CheckRefused(Tar().File("./", "x").End(), "the root is a folder");
  CheckTree({Tar().Directory("d").File("d/f", "1").End(), Tar().Directory("d", 0700).End()}, {{"d", "/"}, {"d/f", "1"}},
            "a folder over a folder keeps what is in it");
  Check((Apply({Tar().Directory("d").File("d/f", "1").End(), Tar().Directory("d", 0700).End()}).entries["d"].mode &
         07777) == 0700,
        "a folder over a folder replaces its metadata");
  CheckTree({Tar().Directory("d").File("d/f", "1").End(), Tar().File("d", "2").End()}, {{"d", "2"}},
            "a file over a folder");
  CheckTree({Tar().Symlink("d", "x").Directory("x").End(), Tar().Directory("d").End()}, {{"d", "/"}, {"x", "/"}},
            "a folder over a link replaces the link");
  CheckTree({Tar().File("f", "1").End(), Tar().File("f", "22").File("f", "333").End()}, {{"f", "333"}},
            "the last of several wins");
  CheckTree({Tar().Directory("d").File("d/f", "1").End(), Tar().Whiteout(".wh.d").End()}, {}, "a whiteout");
  CheckTree({Tar().Directory("d").File("d/f", "1").End(), Tar().File("d/new", "2").Whiteout(".wh.d").End()},
            {{"d", "/"}, {"d/new", "2"}}, "a whiteout leaves what its own layer made");
  CheckTree({Tar().Directory("d").File("d/a", "1").File("d/b", "2").Directory("d/s").File("d/s/x", "3").End(),
             Tar().File("d/b", "4").Whiteout("d/.wh..wh..opq").File("d/c", "5").End()},
            {{"d", "/"}, {"d/b", "4"}, {"d/c", "5"}}, "an opaque folder, whatever the order");
  CheckTree({Tar().Whiteout(".wh.none").Whiteout("no/where/.wh..wh..opq").Whiteout(".wh..wh.plnk").End()}, {},
            "whiteouts of what is not there, and those of aufs");
  CheckRefused(Tar().Whiteout(".wh.").End(), "a whiteout without a name");
  CheckTree({Tar().Directory("etc").File("etc/f", "1").End(), Tar().HardLink("h", "/etc/f").End()},
            {{"etc", "/"}, {"etc/f", "1"}, {"h", "1"}}, "a hard link to a lower layer");
  Check(Apply({Tar().File("f", "1").HardLink("g", "f").HardLink("h", "g").End(), Tar().Whiteout(".wh.f").End()})
                .entries["g"]
                .links == 2,
        "names that go are not counted");
  CheckRefused(Tar().Directory("d").HardLink("h", "d").End(), "a hard link to a folder");
  CheckRefused(Tar().HardLink("h", "nothing").End(), "a hard link to nothing");
  CheckRefused(Tar().File("f", "1").File("f/g", "2").End(), "a file on the way");
  CheckRefused(Tar().Symlink("a", "b").Symlink("b", "a").File("a/f", "1").End(), "links in a circle");
  CheckRefused(Tar().Header('9', "f", 0).End(), "an unknown type");
  CheckTree({Tar().Header('6', "p", 0).Header('3', "c", 0).Header('4', "b", 0).End()},
            {{"p", ""}, {"c", ""}, {"b", ""}}, "fifos and devices");
  const TreeEntry device = Apply({Tar().Header('3', "c", 0).End()}).entries["c"];
  Check(S_ISCHR(device.mode) && device.rdev == makedev(1, 3) && device.uid == 5 && device.gid == 6,
        "a device and its owner");
}

void TestMetadata() {
  // CVE-2026-33056, RUSTSEC-2026-0113: what a link led to gets the mode of what takes the link's name.
  Lines linked = Apply({Tar()
                            .Directory("x", 0700)
                            .File("x/f", "1", 0600)
                            .Symlink("d", "x")
                            .Directory("d", 0777)
                            .Symlink("e", "x/f")
                            .File("e", "2", 0666)
                            .End()});
  const auto mode = [&linked](const char* path) { return linked.entries[path].mode & 07777; };
  Check(
      mode("x") == 0700 && mode("x/f") == 0600 && mode("d") == 0777 && mode("e") == 0666 && linked.lines["x/f"] == "1",
      "a mode is not set through a link");
  const std::string binary("\x01\0\0\x02\xff\n\x80", 7);
  Lines lines = Apply({Tar()
                           .Pax({{"SCHILY.xattr.security.capability", binary},
                                 {"LIBARCHIVE.xattr.user.a%3Db", "YWJj"},
                                 {"SCHILY.xattr.security.selinux", "x"},
                                 {"SCHILY.xattr.system.posix_acl_access", "z"},
                                 {"SCHILY.xattr.user.overlay.opaque", "y"},
                                 {"uid", "4000000000"},
                                 {"mtime", "1700000000.75"},
                                 {"path", std::string(200, 'd') + "/" + std::string(200, 'f')}})
                           .File("short", "1")
                           .End()});
  const TreeEntry& entry = lines.entries[std::string(200, 'd') + "/" + std::string(200, 'f')];
  Check(entry.uid == 4000000000 && entry.mtime == 1700000000, "pax owner and time");
  Check(entry.xattrs.size() == 2 && entry.xattrs[0].name == "security.capability" && entry.xattrs[0].value == binary &&
            entry.xattrs[1].name == "user.a=b" && entry.xattrs[1].value == "abc",
        "attributes with bytes of every kind; those of other machines are left out");
  CheckTree({Tar().Header('L', "x", 150).Raw(std::string(150, 'n')).File("short", "1").End()},
            {{std::string(150, 'n'), "1"}}, "GNU's long names");
  const auto prefixed = [](const char* magic, size_t magic_size, const std::string& prefix,
                           const std::string& trailer = "") {
    return Tar()
        .Header('0', "n", 1, "", 0644,
                [&](char* h) {
                  memcpy(h + 257, magic, magic_size);
                  memcpy(h + 345, prefix.data(), prefix.size());
                  memcpy(h + 508, trailer.data(), trailer.size());
                })
        .Raw("1")
        .End();
  };
  const std::string times = std::string("14500000000\0", 12) + std::string("14500000001\0", 12);
  CheckTree({prefixed("ustar  ", 8, "usr/share")}, {{"usr", "/"}, {"usr/share", "/"}, {"usr/share/n", "1"}},
            "a prefix as Go before 1.8");
  CheckTree({prefixed("ustar  ", 8, times)}, {{"n", "1"}}, "GNU's times are no prefix");
  CheckTree({prefixed("ustar  ", 8, "\xff\xff\x01")}, {{"n", "1"}}, "GNU's binary times are no prefix");
  CheckTree({prefixed("ustar  ", 8, "usr/\xc3\xa4")}, {{"n", "1"}}, "what is no ASCII is no prefix of Go's");
  CheckTree({prefixed("ustar\0", 6, "usr/\xc3\xa4")}, {{"usr", "/"}, {"usr/\xc3\xa4", "/"}, {"usr/\xc3\xa4/n", "1"}},
            "a prefix as POSIX has it");
  CheckTree({prefixed("ustar\0", 6, std::string(131, 'p') + times, std::string("tar\0", 4))},
            {{std::string(131, 'p'), "/"}, {std::string(131, 'p') + "/n", "1"}}, "star's shorter prefix");
  CheckTree({prefixed("\0\0\0\0\0\0", 6, "usr")}, {{"n", "1"}}, "no prefix before POSIX");
  CheckTree({Tar()
                 .Header('0', "f", 0, "", 0644,
                         [](char* h) {
                           memset(h + 124, 0, 12);
                           h[124] = static_cast<char>(0x80);
                           h[135] = 3;
                         })
                 .Raw("abc")
                 .End()},
            {{"f", "abc"}}, "numbers in base 256");
  CheckTree({Tar()
                 .Pax({{"GNU.sparse.major", "1"},
                       {"GNU.sparse.minor", "0"},
                       {"GNU.sparse.name", "s"},
                       {"GNU.sparse.realsize", "10"}})
                 .Header('0', "x", 512 + 5)
                 .Raw("2\n1\n2\n5\n3\n")
                 .Raw("abcde")
                 .End()},
            {{"s", std::string("\0ab\0\0cde\0\0", 10)}}, "sparse files, format 1.0");
  CheckTree(
      {Tar().Pax({{"GNU.sparse.map", "1,2,5,3"}, {"GNU.sparse.size", "10"}}).Header('0', "s", 5).Raw("abcde").End()},
      {{"s", std::string("\0ab\0\0cde\0\0", 10)}}, "sparse files, format 0.1");
  CheckTree({Tar()
                 .Pax({{"GNU.sparse.offset", "1"},
                       {"GNU.sparse.numbytes", "2"},
                       {"GNU.sparse.offset", "5"},
                       {"GNU.sparse.numbytes", "3"},
                       {"GNU.sparse.size", "10"}})
                 .Header('0', "s", 5)
                 .Raw("abcde")
                 .End()},
            {{"s", std::string("\0ab\0\0cde\0\0", 10)}}, "sparse files, format 0.0");
  CheckTree({Tar()
                 .Header('S', "s", 5, "", 0644,
                         [](char* h) {
                           memcpy(h + 386,
                                  "00000000001\0"
                                  "00000000002\0"
                                  "00000000005\0"
                                  "00000000003\0",
                                  48);
                           memcpy(h + 483, "00000000012\0", 12);
                         })
                 .Raw("abcde")
                 .End()},
            {{"s", std::string("\0ab\0\0cde\0\0", 10)}}, "sparse files, GNU's old format");
}

void TestData() {
  // What is handed over, in order. Base first, as layers come.
  const auto check = [](const std::vector<std::string>& tars, const std::vector<std::string>& stored, Tree expected,
                        const std::string& what) {
    const Lines lines = Apply(tars);
    expected.try_emplace("", "/");
    Check(lines.contents == stored, "data: " + what + ": other data was stored");
    Check(lines.lines == expected, "data: " + what + ": another tree");
  };
  check({Tar().File("a", "1").File("b", "2").End(), Tar().File("b", "3").File("c", "4").End()}, {"3", "4", "1"},
        {{"a", "1"}, {"b", "3"}, {"c", "4"}}, "newest first, and what was replaced never");
  check({Tar().File("d/a", "1").File("e/a", "2").End(), Tar().Whiteout("d/.wh.a").Whiteout(".wh.e").End()}, {},
        {{"d", "/"}}, "what was removed never, and nothing below it");
  check({Tar().File("d/a", "1").File("e", "2").End(), Tar().Whiteout("d/.wh..wh..opq").Directory("e").End()}, {},
        {{"d", "/"}, {"e", "/"}}, "nothing in an opaque folder, nor what has become a folder");
  check({Tar().File("a", "1").File("d/a", "2").End(), Tar().Whiteout(".wh..wh..opq").File("b", "3").End()}, {"3"},
        {{"b", "3"}}, "nothing below an opaque root");
  check({Tar().File("d/x", "1").File("e/x", "2").File("f", "3").End(), Tar().File("d/x", "4").End()}, {"4", "3", "2"},
        {{"d", "/"}, {"d/x", "4"}, {"e", "/"}, {"e/x", "2"}, {"f", "3"}}, "another file of the same name waits");
  check({Tar().File("usr/lib/x", "1").Symlink("lib", "usr/lib").End(), Tar().File("lib/x", "2").End()}, {"2"},
        {{"usr", "/"}, {"usr/lib", "/"}, {"usr/lib/x", "2"}, {"lib", "usr/lib"}}, "replaced through a link");
  check({Tar().Symlink("b", "c").Directory("c").File("b/x", "1").File("c/y", "2").End(),
         Tar().Whiteout(".wh.b").File("b/x", "3").End()},
        {"3", "2", "1"}, {{"b", "/"}, {"b/x", "3"}, {"c", "/"}, {"c/x", "1"}, {"c/y", "2"}},
        "what only looked replaced is read again");
  const std::string large(3 << 20, 'l');
  const Lines lines = Apply({Tar().File("d/x", large).File("e/x", "1").End(), Tar().File("x", "2").End()});
  Check(lines.contents.size() == 3 && lines.contents[2].size() == 1 << 20 && lines.lines.at("e/x") == "1",
        "data: what is too large to wait is read again");
  check({Tar().File("a", "1").HardLink("b", "a").End(), Tar().File("a", "2").End()}, {"2", "1"},
        {{"a", "2"}, {"b", "1"}}, "what another name keeps");
}

/// What is long is decoded by a thread of its own, which must end whatever happens, and hand its errors over.
void TestAhead() {
  std::mt19937 random(3);
  std::string noise(3 << 20, '\0');
  for (char& byte : noise) byte = static_cast<char>(random());
  const std::string tar = Tar().File("a", noise).File("b", "end").End();
  for (const std::string& packed : {tar, Gzip(tar), Zstd(tar), Xz(tar)}) {
    const Lines lines = Walk({LayerOf(tar, packed)});
    Check(lines.lines.at("a") == noise.substr(0, 1 << 20) && lines.lines.at("b") == "end", "ahead: the content");
    CheckError(
        EBADMSG, "layer_format",
        [&] { Walk({LayerOf(tar.substr(0, tar.size() / 2), packed.substr(0, packed.size() / 2))}); },
        "ahead: what ends early");
    LayerLimits limits;
    limits.bytes = 1 << 20;
    CheckError(
        EFBIG, "layer_limit", [&] { Walk({LayerOf(tar, packed)}, limits); }, "ahead: more than is allowed");
    std::string damaged = packed;
    damaged[damaged.size() / 2] ^= 1;
    try {
      Walk({LayerOf(tar, damaged)});
      Check(false, "ahead: damage is not seen");
    } catch (const SystemError& error) {
      Check(error.error() == EBADMSG, std::string("ahead: damage: ") + error.what());
    }
    class Refusing final : public TreeVisitor {
      void EnterDirectory(const TreeEntry&) override {}
      void LeaveDirectory() override {}
      void AddSpecial(const TreeEntry&) override {}
      void AddFile(const TreeEntry&, const TreeFile&) override {}
      uint64_t StoreContent(const TreeFile&) override { throw SystemError(ECANCELED, "test"); }
      void AddStoredFile(const TreeEntry&, uint64_t) override {}
    } refusing;
    CheckError(
        ECANCELED, "test", [&] { LayerTree({LayerOf(tar, packed)}, {}, {}).Walk(refusing); }, "ahead: nobody reads on");
  }
}

void TestHostile() {
  // Where readers do not agree which size counts, one of them takes a file's data for further entries.
  const std::string inner = Tar().Header('0', "inner", 0).text();
  CheckTree({Tar().Pax({{"size", "512"}}).Header('0', "outer", 0).Raw(inner).End()}, {{"outer", inner}},
            "the size of an extended header counts");
  CheckTree({Tar().Pax({{"size", "0"}}).Header('0', "outer", 512).Raw(inner).End()}, {{"inner", ""}, {"outer", ""}},
            "also where it is nothing");
  // RUSTSEC-2026-0145: that size is the file's, and not that of the long name between.
  CheckTree({Tar()
                 .Pax({{"size", "1024"}})
                 .Header('L', "././@LongLink", 6)
                 .Raw(std::string("outer\0", 6))
                 .Header('0', "short", 0)
                 .Raw(inner + inner)
                 .End()},
            {{"outer", inner + inner}}, "a long name has a size of its own");
  CheckTree({Tar()
                 .Pax({{"size", "0"}})
                 .Header('K', "././@LongLink", 6)
                 .Raw(std::string("target", 6))
                 .Header('L', "././@LongLink", 6)
                 .Raw(std::string("outer\0", 6))
                 .Header('0', "short", 512)
                 .Raw(inner)
                 .End()},
            {{"inner", ""}, {"outer", ""}}, "as has a long target");
  CheckTree({Tar().Pax({{"size", "1024"}}).Pax({{"path", "outer"}}).Header('0', "short", 0).Raw(inner + inner).End()},
            {{"outer", inner + inner}}, "and another extended header");
  CheckRefused(Tar().File("f", "1").End().replace(0, 1, "g"), "a wrong checksum");
  const auto folders = [](int depth) {
    std::string path;
    for (int i = 0; i < depth; ++i) path += "d/";
    return Tar().Pax({{"path", path}}).Directory("short").End();
  };
  Check(Apply({folders(2048)}).lines.size() >= 2048, "as deep as an image is unpacked");
  CheckRefused(folders(2049), "what could not be unpacked again");
  CheckRefused(Tar().Header('0', "f", 5000).Raw("short").text(), "a layer that ends early");
  for (const char type : {'K', 'L'})
    CheckRefused(Tar().Header(type, "././@LongLink", 300).text() + "short", "one that ends within a long name");
  CheckRefused(Tar().Pax({{"path", "x"}}).End(), "an extended header and nothing behind it");
  CheckRefused(Tar().Header('x', "x", 4).Raw("9 a=").File("f", "1").End(), "a malformed extended header");
  CheckRefused(Tar().Header('x', "x", 2 << 20).End(), "an extended header that is too large");
  CheckRefused(Tar().Pax({{"path", std::string("a\0b", 3)}}).File("f", "1").End(), "a zero byte in a name");
  CheckRefused(Tar().Pax({{"path", std::string(256, 'a')}}).File("f", "1").End(), "a name that no file system takes");
  CheckRefused(
      Tar().Pax({{"GNU.sparse.map", "5,3,1,2"}, {"GNU.sparse.size", "10"}}).Header('0', "s", 5).Raw("abcde").End(),
      "a sparse map that goes back");
  CheckRefused(Tar().Pax({{"GNU.sparse.map", "1,2"}, {"GNU.sparse.size", "10"}}).Header('0', "s", 5).Raw("abcde").End(),
               "a sparse map for other data");

  const std::string tar = Tar().File("f", std::string(100000, 'x')).End();
  Layer layer = LayerOf(tar, Gzip(tar));
  layer.digest[0] ^= 1;
  CheckError(
      EBADMSG, "layer_digest", [&] { Walk({layer}); }, "S16: a blob with another digest");
  layer = LayerOf(tar, Gzip(tar));
  layer.diff_id[0] ^= 1;
  CheckError(
      EBADMSG, "layer_digest", [&] { Walk({layer}); }, "a layer with another diff_id");
  const std::string packed = Gzip(tar);
  CheckError(
      EBADMSG, "layer_format", [&] { Walk({LayerOf(tar, packed.substr(0, packed.size() - 9))}); },
      "gzip that ends early");
  CheckError(
      EBADMSG, "layer_format", [&] { Walk({LayerOf(tar, Zstd(tar).substr(0, 20))}); }, "zstd that ends early");
  for (const std::string& damaged : {Xz(tar).substr(0, 20), Xz(tar) + "junk"})
    CheckError(
        EBADMSG, "layer_format", [&] { Walk({LayerOf(tar, damaged)}); }, "xz that ends early, or goes on otherwise");
  Walk({LayerOf(tar, Xz(tar.substr(0, 5000)) + Xz(tar.substr(5000)))});
  const std::string two = Gzip(tar.substr(0, 5000)) + Gzip(tar.substr(5000));
  Walk({LayerOf(tar, two)});
  const std::string skippable("\x52\x2a\x4d\x18\x03\0\0\0abc", 11);
  Walk({LayerOf(tar, skippable + Zstd(tar) + skippable)});
  CheckError(
      ENOTSUP, "layer_unsupported", [] { Walk({LayerOf("", "BZh91A")}); }, "bzip2");
  // What other readers of archives find out by themselves, and were led into by a first word.
  for (const std::string& word :
       {std::string("Rar!\x1a\x07\0", 7), std::string("Rar!\x1a\x07\1\0", 8), std::string("WARC/1.0\r\n"),
        std::string("7z\xbc\xaf\x27\x1c"), std::string("PK\3\4"), std::string("070701"), std::string("xar!"),
        std::string("MSCF"), std::string("!<arch>\n"), std::string("#mtree\n"), std::string("ustar")})
    CheckRefused(word + std::string(4096 - word.size(), 'x'), "no archive but tar: " + word);
  CheckTree({std::string(32769, '\0') + "CD001" + std::string(2042, 'x')}, {}, "an ISO 9660 image starts as tar ends");

  LayerLimits limits;
  limits.bytes = 50000;
  CheckError(
      EFBIG, "layer_limit", [&] { Apply({tar}, limits); }, "more bytes than allowed");
  const std::string bomb =
      Tar().Pax({{"GNU.sparse.map", "0,1"}, {"GNU.sparse.size", "1099511627776"}}).Header('0', "s", 1).Raw("x").End();
  CheckError(
      EFBIG, "layer_limit", [&] { Apply({bomb}); }, "a terabyte of holes");
  limits = {};
  limits.memory = 100000;
  Tar many;
  for (int i = 0; i < 1000; ++i) many.File("f" + std::to_string(i), "");
  CheckError(
      EFBIG, "layer_names", [&] { Apply({many.End()}, limits); }, "more names than allowed");
}

/// Takes a squashfs and keeps nothing.
class Nowhere final : public ByteSink {
 public:
  uint64_t Size() const override { return size_; }
  void WriteAt(uint64_t offset, const void*, size_t size) override { size_ = std::max(size_, offset + size); }
  void ReadAt(uint64_t, void* out, size_t size) override { memset(out, 0, size); }
  void Truncate(uint64_t size) override { size_ = size; }
  void Finish() override {}

 private:
  uint64_t size_ = 0;
};

// GCC has a word for each, clang asks.
#ifndef __has_feature
#define __has_feature(feature) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || __has_feature(memory_sanitizer)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

/// Looks at the heap while a tree is walked.
class Meter final : public TreeVisitor {
 public:
  void EnterDirectory(const TreeEntry& entry) override {
    Look();
    if (entry.path.empty()) names_ = mallinfo2().uordblks - before_;
  }
  void LeaveDirectory() override {}
  void AddSpecial(const TreeEntry&) override {}
  void AddFile(const TreeEntry&, const TreeFile&) override {}
  uint64_t StoreContent(const TreeFile&) override {
    if (contents_ % 1000 == 999) Look();
    return contents_++;
  }
  void AddStoredFile(const TreeEntry&, uint64_t) override {}
  size_t most() const { return most_; }
  size_t names() const { return names_; }

 private:
  void Look() { most_ = std::max(most_, mallinfo2().uordblks - before_); }
  const size_t before_ = mallinfo2().uordblks;
  size_t most_ = 0;
  size_t names_ = 0;
  uint64_t contents_ = 0;
};

void TestMemory() {
  // Names as they are: /usr/share/doc/PACKAGE/changelog.gz and so on, a quarter of them long.
  constexpr int kEntries = 50000;
  Tar tar;
  for (int i = 0; i < kEntries; ++i)
    tar.File("usr/share/some-folder-" + std::to_string(i / 50) + "/" +
                 (i % 4 == 0 ? "a-rather-long-name-of-a-file-" : "f") + std::to_string(i),
             i % 2 == 0 ? "x" + std::to_string(i) : "");
  const std::string text = tar.End();
  const std::string empty = Tar().End();
  // In the base, and waiting for one.
  for (const std::vector<Layer>& layers : {std::vector<Layer>{LayerOf(text, Gzip(text))},
                                           std::vector<Layer>{LayerOf(empty, empty), LayerOf(text, Gzip(text))}}) {
    malloc_trim(0);
    LayerTree tree(layers, {}, {});
    Meter meter;
    tree.Walk(meter);
    if (kSanitized) continue;
    const double each = static_cast<double>(meter.most()) / kEntries;
    Check(each < 400, "memory: " + std::to_string(each) + " bytes for an entry");
    Check(tree.memory() > meter.names() / 2 && tree.memory() < meter.names() * 2,
          "memory: its own account is " + std::to_string(tree.memory()));
    if (getenv("SIFCRYPT_SHOW_MEMORY") != nullptr)
      std::cout << each << " bytes for an entry, " << static_cast<double>(meter.names()) / kEntries << " at the end\n";
  }
}

/// A file of 2 GiB in a gzip of 2 MiB: nothing of that size may be held.
class LargeLayer final : public ByteSource {
 public:
  LargeLayer(std::string head, std::string zeros, uint64_t repeats, std::string tail)
      : head_(std::move(head)), zeros_(std::move(zeros)), repeats_(repeats), tail_(std::move(tail)) {}
  uint64_t Size() const override { return head_.size() + zeros_.size() * repeats_ + tail_.size(); }
  void ReadAt(uint64_t offset, void* out, size_t size) const override {
    auto* to = static_cast<char*>(out);
    for (size_t i = 0; i < size;) {
      uint64_t at = offset + i;
      const std::string* part = &head_;
      if (at >= head_.size()) {
        at -= head_.size();
        part = at < zeros_.size() * repeats_ ? &zeros_ : &tail_;
        at = part == &zeros_ ? at % zeros_.size() : at - zeros_.size() * repeats_;
      }
      const size_t n = std::min<size_t>(size - i, part->size() - at);
      memcpy(to + i, part->data() + at, n);
      i += n;
    }
  }

 private:
  std::string head_, zeros_;
  uint64_t repeats_;
  std::string tail_;
};

void TestLarge() {
  // Members of gzip, one after the other. Under sanitizers less, for time.
  const uint64_t megabytes = kSanitized ? 64 : 1024;
  const std::string piece(1 << 20, 'z');
  Tar tar;
  tar.Header('0', "large", megabytes << 20);
  auto blob = std::make_shared<LargeLayer>(Gzip(tar.text()), Gzip(piece), megabytes, Gzip(std::string(1024, '\0')));
  Layer layer;
  layer.blob = blob;
  layer.name = "large";
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  EVP_DigestInit_ex(context, EVP_sha256(), nullptr);
  EVP_DigestUpdate(context, tar.text().data(), tar.text().size());
  for (uint64_t i = 0; i < megabytes; ++i) EVP_DigestUpdate(context, piece.data(), piece.size());
  EVP_DigestUpdate(context, std::string(1024, '\0').data(), 1024);
  layer.diff_id.resize(32);
  EVP_DigestFinal_ex(context, layer.diff_id.data(), nullptr);
  EVP_MD_CTX_free(context);
  LayerTree tree({layer}, {}, {});
  Nowhere sink;
  SquashfsWriteOptions options;
  options.codec.level = 1;
  size_t highest = 0;
  const size_t before = mallinfo2().uordblks + mallinfo2().hblkhd;
  const SquashfsWritten written = WriteSquashfs(tree, sink, options, [&](uint64_t) {
    const auto info = mallinfo2();
    highest = std::max(highest, static_cast<size_t>(info.uordblks + info.hblkhd) - before);
    return true;
  });
  Check(written.input_bytes == megabytes << 20, "a large layer: all of it");
  if (!kSanitized) {
    Check(highest < (64U << 20), "a large layer: " + std::to_string(highest) + " bytes of memory");
    if (getenv("SIFCRYPT_SHOW_MEMORY") != nullptr) std::cout << highest << " bytes for a large layer\n";
  }
}

/// Seconds of this process that a build of an image takes, the best of three.
double SecondsFor(const std::vector<Layer>& layers) {
  double best = 1e9;
  for (int i = 0; i < 3; ++i) {
    const clock_t start = clock();
    LayerTree tree(layers, {}, {});
    Nowhere sink;
    SquashfsWriteOptions options;
    options.codec.level = 1;
    options.threads = 1;
    WriteSquashfs(tree, sink, options, {});
    best = std::min(best, static_cast<double>(clock() - start) / CLOCKS_PER_SEC);
  }
  return best;
}

/// Four times as much takes about four times as long, and not sixteen.
void CheckLinear(const std::function<std::vector<Layer>(int)>& make, int count, const std::string& what) {
  const double few = SecondsFor(make(count));
  const double many = SecondsFor(make(4 * count));
  Check(many < 8 * few + 0.1, what + ": " + std::to_string(few) + " s, and four times as much " + std::to_string(many));
}

std::vector<Layer> LayersOf(const std::vector<std::string>& tars) {
  std::vector<Layer> layers;
  layers.reserve(tars.size());
  for (const std::string& tar : tars) layers.push_back(LayerOf(tar, tar));
  return layers;
}

void TestWorkIsLinear() {
  CheckLinear(
      [](int count) {
        std::vector<std::pair<std::string, std::string>> records;
        for (int i = 0; i < count; ++i) records.emplace_back("comment." + std::to_string(i), "v");
        Tar tar;
        tar.Pax(records, 'g');
        for (int i = 0; i < count; ++i) tar.File("f", "");
        return LayersOf({tar.End()});
      },
      kSanitized ? 500 : 2000, "records of a global header, and entries that have nothing to do with them");
  CheckLinear(
      [](int count) {
        Tar tar;
        for (int i = 0; i < count; ++i) tar.File("d/" + std::to_string(i), "");
        for (int i = 0; i < count; ++i) tar.Whiteout("d/.wh..wh..opq");
        return LayersOf({Tar().End(), tar.End()});
      },
      kSanitized ? 500 : 2000, "a folder that is made opaque again and again");
  CheckLinear(
      [](int count) {
        Tar tar;
        for (int i = 0; i < count; ++i) tar.File("d/" + std::to_string(i), "");
        for (int i = 0; i < count; ++i) tar.Whiteout(".wh.d");
        return LayersOf({Tar().End(), tar.End()});
      },
      kSanitized ? 500 : 2000, "a folder that is removed again and again, and made by the same layer");
  CheckLinear(
      [](int count) {
        Tar large;
        for (int i = 0; i < 8 * count; ++i) large.File(std::to_string(i), "");
        std::vector<std::string> tars(static_cast<size_t>(count), Tar().File("f", "1").End());
        tars.push_back(large.End());
        return LayersOf(tars);
      },
      kSanitized ? 50 : 200, "small layers below a large one");
  CheckLinear(
      [](int count) {
        std::string map = "0,1";
        for (int i = 1; i < count; ++i) map += ",2,0";
        const std::string size = std::to_string(uint64_t{1} << 30);
        return LayersOf(
            {Tar().Pax({{"GNU.sparse.map", map}, {"GNU.sparse.size", size}}).Header('0', "f", 1).Raw("x").End()});
      },
      10000, "a sparse file whose map says nothing");
}

void TestWorkEnds() {
  LayerLimits limits;
  limits.work = 1 << 18;
  const auto refused = [&limits](const std::vector<std::string>& tars, const std::string& what) {
    CheckError(
        EFBIG, "layer_work", [&] { Apply(tars, limits); }, what);
  };
  std::vector<std::pair<std::string, std::string>> records;
  for (int i = 0; i < 2000; ++i) records.emplace_back("SCHILY.xattr.user." + std::to_string(i), "v");
  Tar attributes;
  attributes.Pax(records, 'g');
  for (int i = 0; i < 500; ++i) attributes.File("f", "");
  refused({attributes.End()}, "attributes of a global header, for each entry");

  std::string deep;
  for (int i = 0; i < 2000; ++i) deep += "a/";
  Tar names;
  names.Pax({{"path", deep}}, 'g');
  for (int i = 0; i < 1000; ++i) names.File("f", "");
  refused({names.Directory("f").End()}, "a deep name of a global header, for each entry");

  std::string map = "0,1";
  for (int i = 1; i < 20000; ++i) map += ",2,0";
  Tar sparse;
  sparse.Pax({{"GNU.sparse.map", map}, {"GNU.sparse.size", "10"}}, 'g');
  for (int i = 0; i < 500; ++i) sparse.Header('0', "f", 1).Raw("x");
  refused({sparse.End()}, "a map of a sparse file of a global header, for each entry");

  Tar same;
  for (int i = 0; i < 1 << 15; ++i) same.File("f", "");
  refused({same.End()}, "one name again and again");
  Tar links;
  for (int i = 0; i < 40; ++i) {
    std::string target;
    for (int k = 0; k < 100; ++k) target += "./";
    links.Pax({{"linkpath", target + "l" + std::to_string(i + 1)}}).Symlink("l" + std::to_string(i), "");
  }
  links.Directory("l40");
  for (int i = 0; i < 8000; ++i) links.File("l0/f", "");
  refused({links.End()}, "a chain of links, for each entry");

  limits.work = LayerLimits().work;
  Tar walk;
  walk.Directory("d");
  for (int i = 0; i < 200; ++i) {
    std::string target;
    for (int k = 0; k < 600; ++k) target += "d/../";
    walk.Pax({{"linkpath", target + "l" + std::to_string(i + 1)}}).Symlink("l" + std::to_string(i), "");
  }
  CheckRefused(walk.Directory("l200").File("l0/f", "").End(), "a way of a hundred thousand names");
  Tar many;
  for (int i = 0; i < 12000; ++i) records.emplace_back("SCHILY.xattr.user.more" + std::to_string(i), "v");
  CheckRefused(many.Pax(records).File("f", "").End(), "more names of attributes than Linux has");
  limits.bytes = 2 << 20;
  const std::string padded = Tar().File("f", "1").End() + std::string(1 << 20, '\0');
  CheckError(
      EFBIG, "layer_limit",
      [&] {
        Apply({padded, padded, padded}, limits);
      },
      "layers that are short one by one");

  // What is usual is far below.
  Tar usual;
  usual.Pax({{"comment", std::string(40, 'c')}}, 'g');
  for (int i = 0; i < 20000; ++i) usual.File("usr/share/doc/package-" + std::to_string(i % 500) + "/f", "");
  LayerTree tree(LayersOf({usual.End(), usual.End()}), {}, {});
  Lines lines;
  tree.Walk(lines);
  Check(tree.work() < 40000 * 64, "two million files take a fourth: " + std::to_string(tree.work()));
}

/// Members of gzip that hold nothing, more than anybody waits for.
class Nothing final : public ByteSource {
 public:
  uint64_t Size() const override { return uint64_t{1} << 40; }
  void ReadAt(uint64_t offset, void* out, size_t size) const override {
    for (size_t i = 0; i < size; ++i) static_cast<char*>(out)[i] = member_[(offset + i) % member_.size()];
  }

 private:
  std::string member_ = Gzip("");
};

void TestStopping() {
  Layer layer;
  layer.blob = std::make_shared<Nothing>();
  layer.name = "nothing";
  layer.diff_id = DigestOfText("");
  int asked = 0;
  const auto stop = [&asked](uint64_t) {
    if (++asked == 3) throw SystemError(ECANCELED, "test");
  };
  CheckError(
      ECANCELED, "test",
      [&] {
        LayerTree tree({layer}, {}, stop);
        Lines lines;
        tree.Walk(lines);
      },
      "a layer that decodes to nothing is stopped");
  // The same around the layer, which lies far behind.
  asked = 0;
  layer.decoded = std::make_shared<ReadProgress>();
  layer.blob = std::make_shared<DecompressedSource>(std::make_shared<Nothing>(), uint64_t{1} << 40, layer.decoded);
  CheckError(
      ECANCELED, "test",
      [&] {
        LayerTree tree({layer}, {}, stop);
        Lines lines;
        tree.Walk(lines);
      },
      "an archive that decodes to nothing is stopped");
}

void TestMutations() {
  const std::string seed =
      Tar()
          .Directory("etc")
          .File("etc/passwd", "root\n")
          .Symlink("l", "/etc")
          .HardLink("h", "etc/passwd")
          .Pax({{"path", "some/longer/name"}, {"SCHILY.xattr.user.a", "b"}, {"mtime", "1.5"}})
          .File("x", "content")
          .Pax({{"GNU.sparse.map", "1,2,5,3"}, {"GNU.sparse.size", "10"}})
          .Header('0', "s", 5)
          .Raw("abcde")
          .Pax({{"GNU.sparse.major", "1"}, {"GNU.sparse.minor", "0"}, {"GNU.sparse.realsize", "10"}})
          .Header('0', "t", 517)
          .Raw("2\n1\n2\n5\n3\n")
          .Raw("abcde")
          .Whiteout("etc/.wh.gone")
          .Whiteout("etc/.wh..wh..opq")
          .Header('3', "dev", 0)
          .End();
  std::mt19937 random(7);
  int accepted = 0;
  const auto attempt = [&](const std::string& tar, const std::string& blob) {
    Layer layer = LayerOf(tar, blob);
    layer.digest.clear();
    LayerLimits limits;
    limits.bytes = 1 << 20;
    limits.memory = 1 << 20;
    try {
      LayerTree tree({LayerOf(seed, seed), layer}, limits, {});
      Nowhere sink;
      SquashfsWriteOptions options;
      options.threads = 1;
      WriteSquashfs(tree, sink, options, {});
      ++accepted;
    } catch (const SystemError&) {
    }
  };
  for (int i = 0; i < 3000; ++i) {
    std::string tar = seed;
    const int changes = 1 + static_cast<int>(random() % 3);
    for (int k = 0; k < changes; ++k) tar[random() % tar.size()] = static_cast<char>(random());
    if (random() % 8 == 0) tar.resize(random() % tar.size());
    // Wrong checksums are refused early: most get right ones.
    for (size_t at = 0; random() % 4 != 0 && at + 512 <= tar.size(); at += 512) {
      if (memcmp(tar.data() + at + 257, "ustar", 5) != 0) continue;
      memset(tar.data() + at + 148, ' ', 8);
      unsigned sum = 0;
      for (size_t j = 0; j < 512; ++j) sum += static_cast<unsigned char>(tar[at + j]);
      snprintf(tar.data() + at + 148, 8, "%06o", sum);
    }
    attempt(tar, tar);
  }
  for (const std::string& packed : {Gzip(seed), Zstd(seed), Xz(seed)})
    for (int i = 0; i < 1000; ++i) {
      std::string blob = packed;
      blob[random() % blob.size()] = static_cast<char>(random());
      if (random() % 8 == 0) blob.resize(random() % blob.size());
      attempt(seed, blob);
    }
  Check(accepted > 100, "mutations: some are still archives, " + std::to_string(accepted));
}

}  // namespace
}  // namespace sifcrypt

int main() {
  try {
    sifcrypt::TestRules();
    sifcrypt::TestMetadata();
    sifcrypt::TestData();
    sifcrypt::TestAhead();
    sifcrypt::TestHostile();
    sifcrypt::TestMemory();
    sifcrypt::TestLarge();
    sifcrypt::TestWorkIsLinear();
    sifcrypt::TestWorkEnds();
    sifcrypt::TestStopping();
    sifcrypt::TestMutations();
  } catch (const std::exception& error) {
    std::cerr << "FAILED: " << error.what() << "\n";
    return 1;
  }
  return sifcrypt::failures == 0 ? 0 : 1;
}
