#include "core/squashfs_compress.h"

#include <libdeflate.h>
#include <lz4.h>
#include <lz4hc.h>
#include <lzma.h>
#include <openssl/evp.h>
#include <string.h>
#include <zstd.h>

#include <algorithm>
#include <bit>
#include <new>
#include <string>

#include "core/byte_range.h"
#include "core/system_error.h"

namespace sifcrypt {
namespace {

constexpr uint32_t kMinimumBlock = 4096;
constexpr uint32_t kMaximumBlock = 1024 * 1024;
// Blocks in flight for each thread: enough that none waits while another thread's block is slow.
constexpr size_t kSlotsPerThread = 4;
constexpr size_t kRingMemory = size_t{96} << 20;

// What a reader takes for granted when the image has no compressor options.
constexpr int kImpliedGzipLevel = 9;
constexpr int kImpliedZstdLevel = 15;
constexpr uint32_t kLz4Version = 1;
constexpr uint32_t kLz4SlowEncoder = 1;
constexpr uint16_t kGzipWindowBits = 15;

struct Levels {
  int lowest, highest, preset;
};

Levels LevelsOf(SquashfsCompression compression) {
  switch (compression) {
    case SquashfsCompression::kGzip:
      return {1, 12, 6};
    case SquashfsCompression::kZstd:
      return {1, 22, 3};
    case SquashfsCompression::kLz4:
      return {0, LZ4HC_CLEVEL_MAX, 0};
    case SquashfsCompression::kXz:
      return {0, 9, 6};
    case SquashfsCompression::kLzma:
    case SquashfsCompression::kLzo:
      break;
  }
  throw SystemError(ENOTSUP, "squashfs_compress",
                    std::string(SquashfsCompressionName(static_cast<uint16_t>(compression))) + " is not written");
}

void AppendLittleEndian(std::vector<uint8_t>& out, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out.push_back(static_cast<uint8_t>(value >> (8 * i)));
}

}  // namespace

SquashfsCodec SquashfsCodec::Checked() const {
  const Levels levels = LevelsOf(compression);
  SquashfsCodec checked = *this;
  if (level == -1) checked.level = levels.preset;
  if (checked.level < levels.lowest || checked.level > levels.highest)
    throw SystemError(EINVAL, "squashfs_compress",
                      std::string("levels of ") + SquashfsCompressionName(static_cast<uint16_t>(compression)) +
                          " run from " + std::to_string(levels.lowest) + " to " + std::to_string(levels.highest));
  if (!std::has_single_bit(block_size) || block_size < kMinimumBlock || block_size > kMaximumBlock)
    throw SystemError(EINVAL, "squashfs_compress", "the block size must be a power of two from 4 KiB to 1 MiB");
  return checked;
}

std::vector<uint8_t> SquashfsCodec::Options() const {
  std::vector<uint8_t> options;
  if (compression == SquashfsCompression::kLz4) {
    AppendLittleEndian(options, kLz4Version, 4);
    AppendLittleEndian(options, level > 0 ? kLz4SlowEncoder : 0, 4);
  } else if (compression == SquashfsCompression::kGzip && level != kImpliedGzipLevel) {
    // Readers know zlib's levels only.
    AppendLittleEndian(options, static_cast<uint64_t>(std::min(level, 9)), 4);
    AppendLittleEndian(options, kGzipWindowBits, 2);
    AppendLittleEndian(options, 0, 2);
  } else if (compression == SquashfsCompression::kZstd && level != kImpliedZstdLevel) {
    AppendLittleEndian(options, static_cast<uint64_t>(level), 4);
  }
  return options;
}

struct SquashfsCompressor::Context {
  explicit Context(const SquashfsCodec& codec) {
    switch (codec.compression) {
      case SquashfsCompression::kGzip:
        deflate.reset(libdeflate_alloc_compressor(codec.level));
        if (!deflate) throw std::bad_alloc();
        break;
      case SquashfsCompression::kZstd:
        zstd.reset(ZSTD_createCCtx());
        if (!zstd) throw std::bad_alloc();
        ZSTD_CCtx_setParameter(zstd.get(), ZSTD_c_compressionLevel, codec.level);
        break;
      case SquashfsCompression::kLz4:
        lz4.resize(static_cast<size_t>(std::max(LZ4_sizeofState(), LZ4_sizeofStateHC())) / sizeof(uint64_t) + 1);
        break;
      case SquashfsCompression::kXz:
        if (lzma_lzma_preset(&xz, static_cast<uint32_t>(codec.level))) throw SystemError(EINVAL, "lzma_lzma_preset");
        // The kernel keeps a window of one block.
        xz.dict_size = codec.block_size;
        break;
      case SquashfsCompression::kLzma:
      case SquashfsCompression::kLzo:
        break;
    }
  }
  struct FreeDeflate {
    void operator()(libdeflate_compressor* context) const { libdeflate_free_compressor(context); }
  };
  struct FreeZstd {
    void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
  };
  std::unique_ptr<libdeflate_compressor, FreeDeflate> deflate;
  std::unique_ptr<ZSTD_CCtx, FreeZstd> zstd;
  /// The encoders want 8-byte alignment.
  std::vector<uint64_t> lz4;
  lzma_options_lzma xz{};
};

SquashfsCompressor::SquashfsCompressor(const SquashfsCodec& codec)
    : codec_(codec.Checked()), context_(std::make_unique<Context>(codec_)) {}

SquashfsCompressor::~SquashfsCompressor() = default;

size_t SquashfsCompressor::Encode(const uint8_t* in, size_t size, uint8_t* out) {
  if (size < 2) return 0;
  // One byte less than the input: what would not pay is given up early.
  const size_t room = size - 1;
  switch (codec_.compression) {
    case SquashfsCompression::kGzip:
      return libdeflate_zlib_compress(context_->deflate.get(), in, size, out, room);
    case SquashfsCompression::kZstd: {
      const size_t n = ZSTD_compress2(context_->zstd.get(), out, room, in, size);
      return ZSTD_isError(n) ? 0 : n;
    }
    case SquashfsCompression::kLz4: {
      const auto* from = reinterpret_cast<const char*>(in);
      auto* to = reinterpret_cast<char*>(out);
      const int length = static_cast<int>(size);
      const int limit = static_cast<int>(room);
      void* state = context_->lz4.data();
      const int n = codec_.level > 0 ? LZ4_compress_HC_extStateHC(state, from, to, length, limit, codec_.level)
                                     : LZ4_compress_fast_extState(state, from, to, length, limit, 1);
      return n > 0 ? static_cast<size_t>(n) : 0;
    }
    case SquashfsCompression::kXz: {
      lzma_filter filters[] = {{LZMA_FILTER_LZMA2, &context_->xz}, {LZMA_VLI_UNKNOWN, nullptr}};
      size_t n = 0;
      // The kernel's decoder knows no longer checksum than CRC32.
      const lzma_ret result = lzma_stream_buffer_encode(filters, LZMA_CHECK_CRC32, nullptr, in, size, out, &n, room);
      if (result == LZMA_BUF_ERROR) return 0;
      if (result == LZMA_MEM_ERROR) throw std::bad_alloc();
      if (result != LZMA_OK) throw SystemError(EIO, "lzma_stream_buffer_encode", "the encoder failed");
      return n;
    }
    case SquashfsCompression::kLzma:
    case SquashfsCompression::kLzo:
      break;
  }
  return 0;
}

SquashfsDigest DigestOf(const uint8_t* data, size_t size) {
  SquashfsDigest digest{};
  if (EVP_Digest(data, size, digest.data(), nullptr, EVP_sha256(), nullptr) != 1)
    throw SystemError(EIO, "EVP_Digest", "SHA-256 failed");
  return digest;
}

struct SquashfsBlockPipeline::Slot {
  Buffer data;
  Buffer packed;
  Block block{};
  bool hole = false;
  bool done = false;
  std::exception_ptr failure;
};

SquashfsBlockPipeline::SquashfsBlockPipeline(const SquashfsCodec& codec, unsigned threads, Deliver deliver)
    : codec_(codec.Checked()), deliver_(std::move(deliver)) {
  size_t count = threads > 0 ? threads : std::max(1U, std::thread::hardware_concurrency());
  const size_t most = kRingMemory / (size_t{2} * codec_.block_size);
  slots_ = std::vector<Slot>(std::min(count * kSlotsPerThread, most));
  count = std::min(count, slots_.size());
  for (Slot& slot : slots_) {
    slot.data = NewBuffer();
    slot.packed = NewBuffer();
  }
  try {
    while (threads_.size() < count) threads_.emplace_back(&SquashfsBlockPipeline::Work, this);
  } catch (const std::system_error&) {
    // A limit on processes: fewer threads only take longer.
    if (threads_.empty()) throw SystemError(EAGAIN, "pthread_create");
  }
}

SquashfsBlockPipeline::~SquashfsBlockPipeline() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  work_added_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

SquashfsBlockPipeline::Buffer SquashfsBlockPipeline::NewBuffer() const {
  return Buffer(new uint8_t[codec_.block_size]);
}

SquashfsBlockPipeline::Slot& SquashfsBlockPipeline::At(uint64_t number) { return slots_[number % slots_.size()]; }

void SquashfsBlockPipeline::MakeRoom() {
  if (next_ - oldest_ == slots_.size()) DeliverOldest();
}

SquashfsBlockPipeline::Buffer& SquashfsBlockPipeline::Next() {
  MakeRoom();
  return At(next_).data;
}

void SquashfsBlockPipeline::Submit(Kind kind, size_t size) {
  Slot& slot = At(next_);
  slot.block = {.kind = kind, .size = size};
  slot.hole = slot.done = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++next_;
  }
  work_added_.notify_one();
}

void SquashfsBlockPipeline::SubmitHole(size_t size) {
  MakeRoom();
  Slot& slot = At(next_);
  slot.block = {.kind = Kind::kFileBlock, .size = size};
  slot.hole = slot.done = true;
  const std::lock_guard<std::mutex> lock(mutex_);
  ++next_;
}

bool SquashfsBlockPipeline::DeliverOldest() {
  if (oldest_ == next_) return false;
  Slot& slot = At(oldest_);
  {
    std::unique_lock<std::mutex> lock(mutex_);
    work_done_.wait(lock, [&slot] { return slot.done; });
    // A hole may be passed before a worker has looked at it; none must come to its slot later.
    next_work_ = std::max(next_work_, oldest_ + 1);
  }
  if (slot.failure) std::rethrow_exception(slot.failure);
  deliver_(slot.block);
  ++oldest_;
  return true;
}

void SquashfsBlockPipeline::Work() {
  std::unique_ptr<SquashfsCompressor> compressor;
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    work_added_.wait(lock, [this] { return stopping_ || next_work_ < next_; });
    if (stopping_) return;
    Slot& slot = At(next_work_++);
    if (slot.hole) continue;
    lock.unlock();
    try {
      if (!compressor) compressor = std::make_unique<SquashfsCompressor>(codec_);
      Compress(*compressor, slot);
    } catch (...) {
      slot.failure = std::current_exception();
    }
    lock.lock();
    slot.done = true;
    work_done_.notify_one();
  }
}

void SquashfsBlockPipeline::Compress(SquashfsCompressor& compressor, Slot& slot) {
  Block& block = slot.block;
  if (block.kind == Kind::kFileBlock && IsZero(slot.data.get(), block.size)) return;
  const size_t packed = compressor.Encode(slot.data.get(), block.size, slot.packed.get());
  block.compressed = packed > 0;
  block.stored = block.compressed ? slot.packed.get() : slot.data.get();
  block.stored_size = block.compressed ? packed : block.size;
  if (block.kind == Kind::kFileBlock) block.digest = DigestOf(block.stored, block.stored_size);
}

}  // namespace sifcrypt
