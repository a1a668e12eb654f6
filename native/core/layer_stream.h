// The bytes of a layer as they were before compression: plain, gzip or zstd, front to back, hashed on the way.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/byte_range.h"

namespace sifcrypt {

/// A digest that is expected: SHA-256 has 32 bytes, SHA-512 has 64.
using ExpectedDigest = std::vector<uint8_t>;

/// A running digest of the kind that is expected.
class RunningDigest {
 public:
  explicit RunningDigest(const ExpectedDigest& expected);
  ~RunningDigest();
  RunningDigest(const RunningDigest&) = delete;
  RunningDigest& operator=(const RunningDigest&) = delete;
  void Add(const void* data, size_t size);
  /// Once.
  bool Matches();

 private:
  struct Context;
  ExpectedDigest expected_;
  std::unique_ptr<Context> context_;
};

/// Gets how many bytes more were read, which may be none for a while; throws to stop.
using ReadProgress = std::function<void(uint64_t)>;

/// Reads all of a blob. FormatError "layer_digest" if it is not what is expected.
void VerifyBlob(const ByteSource& blob, const ExpectedDigest& expected, const std::string& name,
                const ReadProgress& progress);

/// A decoder that is read front to back. What is long is decoded by a thread of its own, a little ahead. SystemError: EBADMSG "layer_format", ENOTSUP "layer_unsupported".
class LayerStream {
 public:
  /// What is long, of what is compressed.
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
  static constexpr size_t kLong = 8 * 1024;
#else
  static constexpr size_t kLong = 512 * 1024;
#endif
  /// `name` is for messages.
  LayerStream(const ByteSource& blob, std::string name, ReadProgress progress = {});
  ~LayerStream();
  LayerStream(const LayerStream&) = delete;
  LayerStream& operator=(const LayerStream&) = delete;

  /// From now on all that is read is hashed.
  void Expect(const ExpectedDigest& digest);
  /// Fewer than `size` only at the end.
  size_t Read(void* out, size_t size);
  /// EBADMSG if there are fewer.
  void ReadFully(void* out, size_t size);
  void Skip(uint64_t size);
  /// Of the next byte.
  uint64_t position() const { return position_; }
  /// Reads the rest; whether all is what Expect said.
  void Finish();
  /// More than this and it is a bomb (EFBIG "layer_limit"); `before`: what others have taken of it.
  void Limit(uint64_t bytes, uint64_t before = 0) {
    limit_ = bytes;
    before_ = before;
  }
  const std::string& name() const { return name_; }

 private:
  struct Decoder;
  struct PlainDecoder;
  struct GzipDecoder;
  struct ZstdDecoder;
  struct XzDecoder;
  class Ahead;
  bool Fill();
  size_t Decode(std::vector<uint8_t>& out);
  [[noreturn]] void FailShort() const;

  std::string name_;
  ReadProgress progress_;
  std::unique_ptr<Decoder> decoder_;
  std::optional<RunningDigest> digest_;
  std::vector<uint8_t> buffer_;
  size_t begin_ = 0;
  size_t end_ = 0;
  uint64_t position_ = 0;
  uint64_t produced_ = 0;
  uint64_t limit_ = UINT64_MAX;
  uint64_t before_ = 0;
  /// Once it works, decoder_ and digest_ are its own until the end of the layer. Last, so that it ends first.
  std::unique_ptr<Ahead> ahead_;
};

/// A compressed file as random-access bytes: going back starts again, so it is meant to be read front to back. For one
/// thread.
class DecompressedSource final : public ByteSource {
 public:
  /// `size`: of the decompressed bytes, as they were once counted.
  /// `progress`: of what is decoded, whether it is asked for or passed by. It may be set until reading starts.
  DecompressedSource(std::shared_ptr<const ByteSource> compressed, uint64_t size,
                     std::shared_ptr<const ReadProgress> progress = {});
  uint64_t Size() const override { return size_; }
  void ReadAt(uint64_t offset, void* out, size_t size) const override;

 private:
  std::shared_ptr<const ByteSource> compressed_;
  uint64_t size_;
  std::shared_ptr<const ReadProgress> progress_;
  mutable std::unique_ptr<LayerStream> stream_;
};

/// Is it gzip or zstd?
bool IsCompressed(const ByteSource& blob);

}  // namespace sifcrypt
