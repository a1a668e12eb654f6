#include "core/squashfs_decompress.h"

#include <libdeflate.h>
#include <lz4.h>
#include <lzma.h>
#include <zstd.h>

#include <climits>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "core/system_error.h"

namespace sifcrypt {

namespace {

// A dictionary is never larger than a block (1 MiB); the rest of this is liblzma's own state.
constexpr uint64_t kXzMemoryLimit = uint64_t{16} << 20;
// More threads than this decode at once only for a moment: what they need beyond is freed again.
constexpr size_t kKeptContexts = 8;

}  // namespace

const char* SquashfsCompressionName(uint16_t id) {
  switch (static_cast<SquashfsCompression>(id)) {
    case SquashfsCompression::kGzip:
      return "gzip";
    case SquashfsCompression::kLzma:
      return "lzma";
    case SquashfsCompression::kLzo:
      return "lzo";
    case SquashfsCompression::kXz:
      return "xz";
    case SquashfsCompression::kLz4:
      return "lz4";
    case SquashfsCompression::kZstd:
      return "zstd";
  }
  return "unknown";
}

struct SquashfsDecompressor::Context {
  explicit Context(SquashfsCompression compression) {
    if (compression == SquashfsCompression::kGzip) {
      inflate.reset(libdeflate_alloc_decompressor());
      if (!inflate) throw std::bad_alloc();
    } else if (compression == SquashfsCompression::kZstd) {
      zstd.reset(ZSTD_createDCtx());
      if (!zstd) throw std::bad_alloc();
    }
  }
  struct FreeInflate {
    void operator()(libdeflate_decompressor* context) const { libdeflate_free_decompressor(context); }
  };
  struct FreeZstd {
    void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
  };
  std::unique_ptr<libdeflate_decompressor, FreeInflate> inflate;
  std::unique_ptr<ZSTD_DCtx, FreeZstd> zstd;
};

struct SquashfsDecompressor::Pool {
  std::mutex mutex;
  std::vector<std::unique_ptr<Context>> free;

  std::unique_ptr<Context> Take(SquashfsCompression compression) {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!free.empty()) {
        std::unique_ptr<Context> context = std::move(free.back());
        free.pop_back();
        return context;
      }
    }
    return std::make_unique<Context>(compression);
  }
  void Give(std::unique_ptr<Context> context) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (free.size() < kKeptContexts) free.push_back(std::move(context));
  }
};

SquashfsDecompressor::SquashfsDecompressor(uint16_t id)
    : compression_(static_cast<SquashfsCompression>(id)), pool_(std::make_unique<Pool>()) {
  switch (compression_) {
    case SquashfsCompression::kGzip:
    case SquashfsCompression::kXz:
    case SquashfsCompression::kLz4:
    case SquashfsCompression::kZstd:
      pool_->free.reserve(kKeptContexts);
      return;
    case SquashfsCompression::kLzma:
    case SquashfsCompression::kLzo:
      throw SystemError(
          ENOTSUP, "squashfs_open",
          std::string("compressed with ") + SquashfsCompressionName(id) + ", which only the kernel engine can read");
  }
  throw FormatError("squashfs_open", "compressor " + std::to_string(id) + " is unknown");
}

SquashfsDecompressor::~SquashfsDecompressor() = default;

size_t SquashfsDecompressor::Decode(const uint8_t* in, size_t size, uint8_t* out, size_t room) const {
  std::unique_ptr<Context> context = pool_->Take(compression_);
  size_t got = 0;
  bool good = false;
  switch (compression_) {
    case SquashfsCompression::kGzip:
      good = libdeflate_zlib_decompress(context->inflate.get(), in, size, out, room, &got) == LIBDEFLATE_SUCCESS;
      break;
    case SquashfsCompression::kZstd:
      got = ZSTD_decompressDCtx(context->zstd.get(), out, room, in, size);
      good = !ZSTD_isError(got);
      break;
    case SquashfsCompression::kLz4: {
      if (size > INT_MAX || room > INT_MAX) break;
      const int result = LZ4_decompress_safe(reinterpret_cast<const char*>(in), reinterpret_cast<char*>(out),
                                             static_cast<int>(size), static_cast<int>(room));
      good = result >= 0;
      got = good ? static_cast<size_t>(result) : 0;
      break;
    }
    case SquashfsCompression::kXz: {
      uint64_t limit = kXzMemoryLimit;
      size_t taken = 0;
      const lzma_ret result = lzma_stream_buffer_decode(&limit, 0, nullptr, in, &taken, size, out, &got, room);
      if (result == LZMA_MEM_ERROR) throw std::bad_alloc();
      good = result == LZMA_OK;
      break;
    }
    case SquashfsCompression::kLzma:
    case SquashfsCompression::kLzo:
      break;
  }
  pool_->Give(std::move(context));
  if (!good) {
    throw FormatError(
        "squashfs_decompress",
        std::string("a damaged ") + SquashfsCompressionName(static_cast<uint16_t>(compression_)) + " block");
  }
  return got;
}

}  // namespace sifcrypt
