#include "core/layer_stream.h"

#include <lzma.h>
#include <openssl/evp.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "core/system_error.h"

namespace sifcrypt {
namespace {

// A search for inputs that break something, which has small ones, gets to the edges of small pieces.
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
constexpr size_t kInputPiece = 1024;
constexpr size_t kOutputPiece = 4 * 1024;
#else
constexpr size_t kInputPiece = 256 * 1024;
constexpr size_t kOutputPiece = 1024 * 1024;
#endif
// What is decoded ahead of the reader.
constexpr size_t kPiecesAhead = 4;
// Who waits for a piece says so this often: what is decoded may come to nothing for long.
constexpr std::chrono::milliseconds kWait{50};
// A zstd frame may ask for so much memory to be decoded: 128 MiB, as its own command takes.
constexpr int kZstdWindowLog = 27;

// What decoding takes of what `xz -9` makes is half of it.
constexpr uint64_t kXzMemory = 128 << 20;

[[noreturn]] void FailFormat(const std::string& name, const std::string& what) {
  throw FormatError("layer_format", name + ": " + what);
}

enum class Kind { kPlain, kGzip, kZstd, kXz, kBzip2 };

Kind KindOf(const ByteSource& blob) {
  uint8_t magic[6] = {};
  blob.ReadAt(0, magic, std::min<uint64_t>(sizeof(magic), blob.Size()));
  const auto starts = [&magic](std::initializer_list<uint8_t> bytes) {
    return std::equal(bytes.begin(), bytes.end(), magic);
  };
  if (starts({0x1f, 0x8b})) return Kind::kGzip;
  if (starts({0x28, 0xb5, 0x2f, 0xfd})) return Kind::kZstd;
  // A frame to be skipped, which comes before the others in some.
  if ((magic[0] & 0xf0) == 0x50 && magic[1] == 0x2a && magic[2] == 0x4d && magic[3] == 0x18) return Kind::kZstd;
  if (starts({0xfd, '7', 'z', 'X', 'Z', 0})) return Kind::kXz;
  if (starts({'B', 'Z', 'h'})) return Kind::kBzip2;
  return Kind::kPlain;
}

}  // namespace

struct RunningDigest::Context {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~Context() { EVP_MD_CTX_free(context); }
};

RunningDigest::RunningDigest(const ExpectedDigest& expected)
    : expected_(expected), context_(std::make_unique<Context>()) {
  const EVP_MD* kind = expected.size() == 32 ? EVP_sha256() : expected.size() == 64 ? EVP_sha512() : nullptr;
  if (kind == nullptr) throw SystemError(EINVAL, "layer_digest", "a digest has 32 or 64 bytes");
  if (context_->context == nullptr || EVP_DigestInit_ex(context_->context, kind, nullptr) != 1)
    throw SystemError(EIO, "EVP_DigestInit");
}
RunningDigest::~RunningDigest() = default;

void RunningDigest::Add(const void* data, size_t size) {
  if (EVP_DigestUpdate(context_->context, data, size) != 1) throw SystemError(EIO, "EVP_DigestUpdate");
}

bool RunningDigest::Matches() {
  uint8_t digest[EVP_MAX_MD_SIZE];
  unsigned size = 0;
  if (EVP_DigestFinal_ex(context_->context, digest, &size) != 1) throw SystemError(EIO, "EVP_DigestFinal");
  return size == expected_.size() && memcmp(digest, expected_.data(), size) == 0;
}

void VerifyBlob(const ByteSource& blob, const ExpectedDigest& expected, const std::string& name,
                const ReadProgress& progress) {
  RunningDigest digest(expected);
  std::vector<uint8_t> piece(kOutputPiece);
  for (uint64_t at = 0; at < blob.Size();) {
    const size_t n = std::min<uint64_t>(piece.size(), blob.Size() - at);
    blob.ReadAt(at, piece.data(), n);
    digest.Add(piece.data(), n);
    at += n;
    if (progress) progress(n);
  }
  if (!digest.Matches()) throw FormatError("layer_digest", name + ": its content is not what its digest says");
}

/// Input is read in pieces.
struct LayerStream::Decoder {
  Decoder(const ByteSource& blob, const std::string& name) : blob(blob), name(name) {}
  virtual ~Decoder() = default;
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;
  /// 0 at the end.
  virtual size_t Decode(uint8_t* out, size_t room) = 0;
  /// False: there is no more.
  bool Refill() {
    const uint64_t left = blob.Size() - read;
    if (left == 0) return false;
    if (stopped) throw SystemError(ECANCELED, "layer_read");
    input.resize(std::min<uint64_t>(kInputPiece, left));
    blob.ReadAt(read, input.data(), input.size());
    read += input.size();
    return true;
  }

  const ByteSource& blob;
  const std::string& name;
  uint64_t read = 0;
  std::vector<uint8_t> input;
  /// Nobody wants the rest any more.
  std::atomic<bool> stopped = false;
};

struct LayerStream::PlainDecoder final : Decoder {
  using Decoder::Decoder;
  size_t Decode(uint8_t* out, size_t room) override {
    const size_t n = std::min<uint64_t>(room, blob.Size() - read);
    if (n > 0) blob.ReadAt(read, out, n);
    read += n;
    return n;
  }
};

struct LayerStream::GzipDecoder final : Decoder {
  GzipDecoder(const ByteSource& blob, const std::string& name) : Decoder(blob, name) {
    if (inflateInit2(&stream, 15 + 16) != Z_OK) throw SystemError(ENOMEM, "inflateInit");
  }
  ~GzipDecoder() override { inflateEnd(&stream); }
  size_t Decode(uint8_t* out, size_t room) override {
    stream.next_out = out;
    stream.avail_out = static_cast<uInt>(room);
    while (stream.avail_out > 0) {
      if (stream.avail_in == 0) {
        if (!Refill()) {
          if (between) break;
          FailFormat(name, "the compressed data ends early");
        }
        stream.next_in = input.data();
        stream.avail_in = static_cast<uInt>(input.size());
      }
      // What follows a member is another one.
      if (between && inflateReset(&stream) != Z_OK) throw SystemError(EIO, "inflateReset");
      between = false;
      const int result = inflate(&stream, Z_NO_FLUSH);
      if (result == Z_STREAM_END)
        between = true;
      else if (result != Z_OK && result != Z_BUF_ERROR)
        FailFormat(name, std::string("gzip: ") + (stream.msg != nullptr ? stream.msg : "damaged"));
    }
    return room - stream.avail_out;
  }
  z_stream stream{};
  /// Nothing of a member has been read yet.
  bool between = false;
};

struct LayerStream::ZstdDecoder final : Decoder {
  ZstdDecoder(const ByteSource& blob, const std::string& name) : Decoder(blob, name), context(ZSTD_createDCtx()) {
    if (context == nullptr) throw SystemError(ENOMEM, "ZSTD_createDCtx");
    ZSTD_DCtx_setParameter(context, ZSTD_d_windowLogMax, kZstdWindowLog);
  }
  ~ZstdDecoder() override { ZSTD_freeDCtx(context); }
  size_t Decode(uint8_t* out, size_t room) override {
    ZSTD_outBuffer output{out, room, 0};
    while (output.pos < output.size) {
      // The decoder may hold bytes back although all input is taken.
      if (in.pos == in.size && !held) {
        if (!Refill()) {
          if (pending != 0) FailFormat(name, "the compressed data ends early");
          break;
        }
        in = {input.data(), input.size(), 0};
      }
      pending = ZSTD_decompressStream(context, &output, &in);
      if (ZSTD_isError(pending)) FailFormat(name, std::string("zstd: ") + ZSTD_getErrorName(pending));
      held = output.pos == output.size && pending != 0;
    }
    return output.pos;
  }
  ZSTD_DCtx* context;
  ZSTD_inBuffer in{nullptr, 0, 0};
  size_t pending = 0;
  bool held = false;
};

struct LayerStream::XzDecoder final : Decoder {
  XzDecoder(const ByteSource& blob, const std::string& name) : Decoder(blob, name) {
    if (lzma_stream_decoder(&stream, kXzMemory, LZMA_CONCATENATED) != LZMA_OK)
      throw SystemError(ENOMEM, "lzma_stream_decoder");
  }
  ~XzDecoder() override { lzma_end(&stream); }
  size_t Decode(uint8_t* out, size_t room) override {
    stream.next_out = out;
    stream.avail_out = room;
    while (stream.avail_out > 0 && !ended) {
      if (stream.avail_in == 0 && Refill()) {
        stream.next_in = input.data();
        stream.avail_in = input.size();
      }
      // Only who is told that there is no more knows whether another stream could follow.
      const bool is_last = stream.avail_in == 0;
      switch (lzma_code(&stream, is_last ? LZMA_FINISH : LZMA_RUN)) {
        case LZMA_OK:
          break;
        case LZMA_STREAM_END:
          ended = true;
          break;
        case LZMA_MEMLIMIT_ERROR:
          throw SystemError(ENOTSUP, "layer_unsupported", name + ": xz: it takes more memory than xz -9 makes use of");
        case LZMA_BUF_ERROR:
          FailFormat(name, "the compressed data ends early");
        default:
          FailFormat(name, "xz: damaged");
      }
    }
    return room - stream.avail_out;
  }
  lzma_stream stream = LZMA_STREAM_INIT;
  bool ended = false;
};

class LayerStream::Ahead {
 public:
  explicit Ahead(LayerStream& stream) : stream_(stream) {
    for (Piece& piece : pieces_) piece.bytes.resize(kOutputPiece);
    thread_ = std::thread(&Ahead::Work, this);
  }
  ~Ahead() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    stream_.decoder_->stopped = true;
    taken_.notify_one();
    thread_.join();
  }
  Ahead(const Ahead&) = delete;
  Ahead& operator=(const Ahead&) = delete;

  /// Gives a piece for one that was read. 0 at the end, from then on.
  size_t Next(std::vector<uint8_t>& bytes) {
    std::unique_lock<std::mutex> lock(mutex_);
    // By the wall clock: a wait by the steady one is a function that glibc has since 2.30. If the clock is set, a report comes late.
    while (!made_.wait_until(lock, std::chrono::system_clock::now() + kWait,
                             [this] { return next_ < end_ || failure_; })) {
      lock.unlock();
      if (stream_.progress_) stream_.progress_(0);
      lock.lock();
    }
    if (next_ == end_) std::rethrow_exception(failure_);
    Piece& piece = pieces_[next_ % kPiecesAhead];
    if (piece.size == 0) return 0;
    std::swap(bytes, piece.bytes);
    ++next_;
    taken_.notify_one();
    return piece.size;
  }

 private:
  struct Piece {
    std::vector<uint8_t> bytes;
    size_t size = 0;
  };

  void Work() {
    std::unique_lock<std::mutex> lock(mutex_);
    try {
      for (;;) {
        taken_.wait(lock, [this] { return stopping_ || end_ - next_ < kPiecesAhead; });
        if (stopping_) return;
        Piece& piece = pieces_[end_ % kPiecesAhead];
        lock.unlock();
        const size_t size = stream_.Decode(piece.bytes);
        lock.lock();
        piece.size = size;
        ++end_;
        made_.notify_one();
        if (size == 0) return;
      }
    } catch (...) {
      lock.lock();
      failure_ = std::current_exception();
      made_.notify_one();
    }
  }

  LayerStream& stream_;
  std::array<Piece, kPiecesAhead> pieces_;
  std::mutex mutex_;
  std::condition_variable made_;
  std::condition_variable taken_;
  // Numbers of pieces: the next to be read, and behind the last that was made.
  uint64_t next_ = 0;
  uint64_t end_ = 0;
  bool stopping_ = false;
  std::exception_ptr failure_;
  std::thread thread_;
};

LayerStream::LayerStream(const ByteSource& blob, std::string name, ReadProgress progress)
    : name_(std::move(name)), progress_(std::move(progress)), buffer_(kOutputPiece) {
  switch (KindOf(blob)) {
    case Kind::kPlain:
      decoder_ = std::make_unique<PlainDecoder>(blob, name_);
      return;
    case Kind::kGzip:
      decoder_ = std::make_unique<GzipDecoder>(blob, name_);
      return;
    case Kind::kZstd:
      decoder_ = std::make_unique<ZstdDecoder>(blob, name_);
      return;
    case Kind::kXz:
      decoder_ = std::make_unique<XzDecoder>(blob, name_);
      return;
    case Kind::kBzip2:
      throw SystemError(ENOTSUP, "layer_unsupported", name_ + ": compressed with bzip2; gzip, xz and zstd are read");
  }
}
LayerStream::~LayerStream() = default;

void LayerStream::Expect(const ExpectedDigest& digest) { digest_.emplace(digest); }

size_t LayerStream::Decode(std::vector<uint8_t>& out) { return decoder_->Decode(out.data(), out.size()); }

bool LayerStream::Fill() {
  begin_ = end_ = 0;
  if (!ahead_ && produced_ == 0 && decoder_->blob.Size() >= kLong) try {
      ahead_ = std::make_unique<Ahead>(*this);
    } catch (const std::system_error&) {
      // A limit on processes: without it, it only takes longer.
    }
  end_ = ahead_ ? ahead_->Next(buffer_) : Decode(buffer_);
  // Here, since decoding takes longer than all else that is done meanwhile.
  if (digest_ && end_ > 0) digest_->Add(buffer_.data(), end_);
  produced_ += end_;
  if (produced_ > limit_ || before_ > limit_ - produced_)
    throw SystemError(EFBIG, "layer_limit", name_ + ": more than " + std::to_string(limit_) + " bytes uncompressed");
  if (progress_) progress_(end_);
  return end_ > 0;
}

size_t LayerStream::Read(void* out, size_t size) {
  auto* to = static_cast<uint8_t*>(out);
  size_t done = 0;
  while (done < size && (begin_ < end_ || Fill())) {
    const size_t n = std::min(size - done, end_ - begin_);
    memcpy(to + done, buffer_.data() + begin_, n);
    begin_ += n;
    done += n;
  }
  position_ += done;
  return done;
}

void LayerStream::FailShort() const { FailFormat(name_, "the layer ends early"); }

void LayerStream::ReadFully(void* out, size_t size) {
  if (Read(out, size) < size) FailShort();
}

void LayerStream::Skip(uint64_t size) {
  while (size > 0) {
    if (begin_ == end_ && !Fill()) FailShort();
    const size_t n = std::min<uint64_t>(size, end_ - begin_);
    begin_ += n;
    position_ += n;
    size -= n;
  }
}

void LayerStream::Finish() {
  position_ += end_ - begin_;
  while (Fill()) position_ += end_;
  begin_ = end_ = 0;
  if (digest_ && !digest_->Matches())
    throw FormatError("layer_digest", name_ + ": its uncompressed content is not what the image's configuration says");
}

DecompressedSource::DecompressedSource(std::shared_ptr<const ByteSource> compressed, uint64_t size,
                                       std::shared_ptr<const ReadProgress> progress)
    : compressed_(std::move(compressed)), size_(size), progress_(std::move(progress)) {}

void DecompressedSource::ReadAt(uint64_t offset, void* out, size_t size) const {
  if (!RangeFits(offset, size, size_)) throw SystemError(EOVERFLOW, "layer_format");
  if (!stream_ || stream_->position() > offset)
    stream_ = std::make_unique<LayerStream>(*compressed_, "the archive", progress_ ? *progress_ : ReadProgress());
  stream_->Skip(offset - stream_->position());
  stream_->ReadFully(out, size);
}

bool IsCompressed(const ByteSource& blob) { return KindOf(blob) != Kind::kPlain; }

}  // namespace sifcrypt
