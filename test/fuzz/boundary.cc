// Libraries that were not built for MemorySanitizer, which takes what they write for not written. Each call that fills memory is wrapped
// (CMakeLists.txt reads the names here) and says what it has filled; compressors are asked to read nothing that was not written.
#include <libdeflate.h>
#include <lz4.h>
#include <lz4hc.h>
#include <lzma.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <sanitizer/msan_interface.h>
#include <zlib.h>
#include <zstd.h>

#include <string>

namespace {

void Filled(const void* data, size_t size) {
  if (data != nullptr) __msan_unpoison(data, size);
}

void Filled(const void* data, int size) {
  if (size > 0) Filled(data, static_cast<size_t>(size));
}

/// While it exists, functions of the system that libraries call look at no argument.
struct Unwatched {
  Unwatched() { __msan_scoped_disable_interceptor_checks(); }
  ~Unwatched() { __msan_scoped_enable_interceptor_checks(); }
  Unwatched(const Unwatched&) = delete;
  Unwatched& operator=(const Unwatched&) = delete;
};

/// What OpenSSL reads when it is first used, it gives to functions of the system, which are watched.
__attribute__((constructor, no_sanitize("memory"))) void StartOpenSsl() {
  const Unwatched unwatched;
  uint8_t bytes[32];
  if (OPENSSL_init_crypto(OPENSSL_INIT_LOAD_CONFIG, nullptr) != 1 || RAND_bytes(bytes, sizeof bytes) != 1 ||
      EVP_Digest(bytes, sizeof bytes, bytes, nullptr, EVP_sha256(), nullptr) != 1)
    abort();
}

}  // namespace

// The libraries call each other by these names as well, and say nothing of their arguments.
#pragma clang diagnostic ignored "-Wreturn-type-c-linkage"
#define WRAP(result, name, parameters)        \
  extern "C" result __real_##name parameters; \
  extern "C" __attribute__((no_sanitize("memory"))) result __wrap_##name parameters

// Of std::to_string, the one part of the C++ library that fills memory and is not in its headers.
#define TEXT(result, name, number)        \
  WRAP(result, name, (number value)) {    \
    result made = __real_##name(value);   \
    Filled(&made, sizeof made);           \
    Filled(made.data(), made.size() + 1); \
    return made;                          \
  }
using text = std::string;
TEXT(text, _ZNSt3__19to_stringEi, int)
TEXT(text, _ZNSt3__19to_stringEj, unsigned)
TEXT(text, _ZNSt3__19to_stringEl, long)
TEXT(text, _ZNSt3__19to_stringEm, unsigned long)
TEXT(text, _ZNSt3__19to_stringEd, double)

#define CIPHER(result, name)                                                                                 \
  WRAP(result, name, (EVP_CIPHER_CTX * context, uint8_t * out, int* written, const uint8_t* in, int size)) { \
    const result done = __real_##name(context, out, written, in, size);                                      \
    Filled(written, sizeof *written);                                                                        \
    if (done == 1) Filled(out, *written);                                                                    \
    return done;                                                                                             \
  }
CIPHER(int, EVP_CipherUpdate)
CIPHER(int, EVP_DecryptUpdate)
CIPHER(int, EVP_EncryptUpdate)

#define CIPHER_END(result, name)                                                \
  WRAP(result, name, (EVP_CIPHER_CTX * context, uint8_t * out, int* written)) { \
    const result done = __real_##name(context, out, written);                   \
    Filled(written, sizeof *written);                                           \
    if (done == 1) Filled(out, *written);                                       \
    return done;                                                                \
  }
CIPHER_END(int, EVP_DecryptFinal_ex)
CIPHER_END(int, EVP_EncryptFinal_ex)

WRAP(int, EVP_CIPHER_CTX_ctrl, (EVP_CIPHER_CTX * context, int type, int argument, void* data)) {
  const int done = __real_EVP_CIPHER_CTX_ctrl(context, type, argument, data);
  if (type == EVP_CTRL_AEAD_GET_TAG) Filled(data, argument);
  return done;
}

WRAP(int, EVP_Digest,
     (const void* data, size_t size, uint8_t* digest, unsigned* length, const EVP_MD* type, ENGINE* engine)) {
  const int done = __real_EVP_Digest(data, size, digest, length, type, engine);
  Filled(digest, EVP_MD_get_size(type));
  Filled(length, sizeof *length);
  return done;
}

WRAP(int, EVP_DigestFinal_ex, (EVP_MD_CTX * context, uint8_t* digest, unsigned* length)) {
  const int done = __real_EVP_DigestFinal_ex(context, digest, length);
  Filled(digest, EVP_MD_get_size(EVP_MD_CTX_get0_md(context)));
  Filled(length, sizeof *length);
  return done;
}

WRAP(int, RAND_bytes, (uint8_t * out, int size)) {
  const int done = __real_RAND_bytes(out, size);
  Filled(out, size);
  return done;
}

WRAP(size_t, ZSTD_compress2, (ZSTD_CCtx * context, void* out, size_t room, const void* in, size_t size)) {
  __msan_check_mem_is_initialized(in, size);
  const size_t done = __real_ZSTD_compress2(context, out, room, in, size);
  if (!ZSTD_isError(done)) Filled(out, done);
  return done;
}

WRAP(size_t, ZSTD_compress, (void* out, size_t room, const void* in, size_t size, int level)) {
  const size_t done = __real_ZSTD_compress(out, room, in, size, level);
  if (!ZSTD_isError(done)) Filled(out, done);
  return done;
}

WRAP(size_t, ZSTD_decompressDCtx, (ZSTD_DCtx * context, void* out, size_t room, const void* in, size_t size)) {
  const size_t done = __real_ZSTD_decompressDCtx(context, out, room, in, size);
  if (!ZSTD_isError(done)) Filled(out, done);
  return done;
}

WRAP(size_t, ZSTD_decompressStream, (ZSTD_DStream * context, ZSTD_outBuffer* out, ZSTD_inBuffer* in)) {
  const size_t before = out->pos, done = __real_ZSTD_decompressStream(context, out, in);
  Filled(out, sizeof *out);
  Filled(in, sizeof *in);
  Filled(static_cast<char*>(out->dst) + before, out->pos - before);
  return done;
}

WRAP(int, LZ4_compress_HC_extStateHC, (void* state, const char* in, char* out, int size, int room, int level)) {
  __msan_check_mem_is_initialized(in, static_cast<size_t>(size));
  const int done = __real_LZ4_compress_HC_extStateHC(state, in, out, size, room, level);
  Filled(out, done);
  return done;
}

WRAP(int, LZ4_compress_fast_extState, (void* state, const char* in, char* out, int size, int room, int acceleration)) {
  __msan_check_mem_is_initialized(in, static_cast<size_t>(size));
  const int done = __real_LZ4_compress_fast_extState(state, in, out, size, room, acceleration);
  Filled(out, done);
  return done;
}

WRAP(int, LZ4_decompress_safe, (const char* in, char* out, int size, int room)) {
  const int done = __real_LZ4_decompress_safe(in, out, size, room);
  Filled(out, done);
  return done;
}

WRAP(size_t, libdeflate_zlib_compress,
     (libdeflate_compressor * context, const void* in, size_t size, void* out, size_t room)) {
  __msan_check_mem_is_initialized(in, size);
  const size_t done = __real_libdeflate_zlib_compress(context, in, size, out, room);
  Filled(out, done);
  return done;
}

WRAP(libdeflate_result, libdeflate_zlib_decompress,
     (libdeflate_decompressor * context, const void* in, size_t size, void* out, size_t room, size_t* written)) {
  const libdeflate_result done = __real_libdeflate_zlib_decompress(context, in, size, out, room, written);
  if (done == LIBDEFLATE_SUCCESS) {
    Filled(written, sizeof *written);
    Filled(out, *written);
  }
  return done;
}

WRAP(int, deflateInit2_,
     (z_stream * stream, int level, int method, int bits, int memory, int strategy, const char* version, int size)) {
  const int done = __real_deflateInit2_(stream, level, method, bits, memory, strategy, version, size);
  Filled(stream, sizeof *stream);
  return done;
}

WRAP(int, deflate, (z_stream * stream, int flush)) {
  const Bytef* before = stream->next_out;
  const int done = __real_deflate(stream, flush);
  Filled(stream, sizeof *stream);
  Filled(before, static_cast<size_t>(stream->next_out - before));
  return done;
}

WRAP(int, inflateInit2_, (z_stream * stream, int bits, const char* version, int size)) {
  const int done = __real_inflateInit2_(stream, bits, version, size);
  Filled(stream, sizeof *stream);
  return done;
}

WRAP(int, inflateReset, (z_stream * stream)) {
  const int done = __real_inflateReset(stream);
  Filled(stream, sizeof *stream);
  return done;
}

WRAP(int, inflate, (z_stream * stream, int flush)) {
  const Bytef* before = stream->next_out;
  const int done = __real_inflate(stream, flush);
  Filled(stream, sizeof *stream);
  Filled(before, static_cast<size_t>(stream->next_out - before));
  return done;
}

WRAP(lzma_ret, lzma_stream_decoder, (lzma_stream * stream, uint64_t memory, uint32_t flags)) {
  const Unwatched unwatched;
  const lzma_ret done = __real_lzma_stream_decoder(stream, memory, flags);
  Filled(stream, sizeof *stream);
  return done;
}

WRAP(lzma_ret, lzma_code, (lzma_stream * stream, lzma_action action)) {
  const Unwatched unwatched;
  const uint8_t* before = stream->next_out;
  const lzma_ret done = __real_lzma_code(stream, action);
  Filled(stream, sizeof *stream);
  Filled(before, static_cast<size_t>(stream->next_out - before));
  return done;
}

WRAP(lzma_bool, lzma_lzma_preset, (lzma_options_lzma * options, uint32_t preset)) {
  const Unwatched unwatched;
  const lzma_bool done = __real_lzma_lzma_preset(options, preset);
  Filled(options, sizeof *options);
  return done;
}

WRAP(lzma_ret, lzma_stream_buffer_encode,
     (lzma_filter * filters, lzma_check check, const lzma_allocator* allocator, const uint8_t* in, size_t size,
      uint8_t* out, size_t* at, size_t room)) {
  const Unwatched unwatched;
  __msan_check_mem_is_initialized(in, size);
  const size_t before = *at;
  const lzma_ret done = __real_lzma_stream_buffer_encode(filters, check, allocator, in, size, out, at, room);
  Filled(out + before, *at - before);
  return done;
}

WRAP(lzma_ret, lzma_easy_buffer_encode,
     (uint32_t preset, lzma_check check, const lzma_allocator* allocator, const uint8_t* in, size_t size, uint8_t* out,
      size_t* at, size_t room)) {
  const Unwatched unwatched;
  const size_t before = *at;
  const lzma_ret done = __real_lzma_easy_buffer_encode(preset, check, allocator, in, size, out, at, room);
  Filled(out + before, *at - before);
  return done;
}

WRAP(lzma_ret, lzma_stream_buffer_decode,
     (uint64_t * memory, uint32_t flags, const lzma_allocator* allocator, const uint8_t* in, size_t* taken, size_t size,
      uint8_t* out, size_t* at, size_t room)) {
  const Unwatched unwatched;
  const size_t before = *at;
  const lzma_ret done = __real_lzma_stream_buffer_decode(memory, flags, allocator, in, taken, size, out, at, room);
  Filled(taken, sizeof *taken);
  Filled(out + before, *at - before);
  return done;
}
