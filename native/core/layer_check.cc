#include "core/layer_check.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "core/system_error.h"

namespace sifcrypt {
namespace {

constexpr size_t kPiece = 1024 * 1024;
constexpr size_t kPiecesAhead = 4;

/// One kind of work on each piece, in order.
using Work = std::function<void(const uint8_t* data, size_t size)>;

/// Pieces that several threads work on, each on all of them, while the next ones are read.
class Pieces {
 public:
  explicit Pieces(std::vector<Work> works) : works_(std::move(works)), done_(works_.size(), 0) {
    for (auto& piece : pieces_) piece.bytes.resize(kPiece);
    for (size_t i = 0; i < works_.size(); ++i) try {
        threads_.emplace_back(&Pieces::Run, this, i);
      } catch (const std::system_error&) {
        // Who may have no more threads does it here.
        here_.push_back(i);
      }
  }
  ~Pieces() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  Pieces(const Pieces&) = delete;
  Pieces& operator=(const Pieces&) = delete;

  /// Where the next piece is read to.
  uint8_t* Free() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return failure_ || made_ - Oldest() < kPiecesAhead; });
    if (failure_) std::rethrow_exception(failure_);
    return pieces_[made_ % kPiecesAhead].bytes.data();
  }
  void Made(size_t size) {
    Piece& piece = pieces_[made_ % kPiecesAhead];
    piece.size = size;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ++made_;
    }
    changed_.notify_all();
    for (const size_t i : here_) {
      works_[i](piece.bytes.data(), size);
      const std::lock_guard<std::mutex> lock(mutex_);
      ++done_[i];
    }
  }
  /// When all of them are done.
  void Finish() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return failure_ || Oldest() == made_; });
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  struct Piece {
    std::vector<uint8_t> bytes;
    size_t size = 0;
  };

  /// With the lock: the first piece that somebody still works on.
  uint64_t Oldest() const { return done_.empty() ? made_ : *std::min_element(done_.begin(), done_.end()); }

  void Run(size_t i) {
    std::unique_lock<std::mutex> lock(mutex_);
    try {
      for (;;) {
        changed_.wait(lock, [&] { return stopping_ || done_[i] < made_; });
        if (stopping_) return;
        const Piece& piece = pieces_[done_[i] % kPiecesAhead];
        lock.unlock();
        works_[i](piece.bytes.data(), piece.size);
        lock.lock();
        ++done_[i];
        changed_.notify_all();
      }
    } catch (...) {
      if (!lock.owns_lock()) lock.lock();
      failure_ = std::current_exception();
      changed_.notify_all();
    }
  }

  std::vector<Work> works_;
  std::array<Piece, kPiecesAhead> pieces_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // Numbers of pieces: behind the last that was read, and for each work the next.
  uint64_t made_ = 0;
  std::vector<uint64_t> done_;
  bool stopping_ = false;
  std::exception_ptr failure_;
  std::vector<size_t> here_;
  // Last, so that they end before what they work on.
  std::vector<std::thread> threads_;
};

struct FreeDigest {
  void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
};
struct FreeKey {
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
struct FreeCipher {
  void operator()(EVP_CIPHER_CTX* context) const { EVP_CIPHER_CTX_free(context); }
};

void Need(int done, const char* call) {
  if (done != 1) throw SystemError(EIO, call);
}

/// HMAC-SHA-256.
class RunningMac {
 public:
  explicit RunningMac(const SecretBuffer& key)
      : key_(EVP_PKEY_new_raw_private_key(EVP_PKEY_HMAC, nullptr, key.data(), key.size())), context_(EVP_MD_CTX_new()) {
    if (!key_ || !context_) throw SystemError(ENOMEM, "EVP_PKEY_new_raw_private_key");
    Need(EVP_DigestSignInit(context_.get(), nullptr, EVP_sha256(), nullptr, key_.get()), "EVP_DigestSignInit");
  }
  void Add(const uint8_t* data, size_t size) {
    Need(EVP_DigestSignUpdate(context_.get(), data, size), "EVP_DigestSignUpdate");
  }
  bool Matches(const std::vector<uint8_t>& mac) {
    std::array<uint8_t, EVP_MAX_MD_SIZE> found;
    size_t size = found.size();
    Need(EVP_DigestSignFinal(context_.get(), found.data(), &size), "EVP_DigestSignFinal");
    return mac.size() == size && CRYPTO_memcmp(mac.data(), found.data(), size) == 0;
  }

 private:
  std::unique_ptr<EVP_PKEY, FreeKey> key_;
  std::unique_ptr<EVP_MD_CTX, FreeDigest> context_;
};

/// The digest of what is deciphered, and nothing else of it.
class PlainDigest {
 public:
  explicit PlainDigest(const LayerSecrets& secrets) : cipher_(EVP_CIPHER_CTX_new()), digest_(EVP_MD_CTX_new()) {
    if (secrets.key.size() != 32) throw SystemError(EINVAL, "ctr", "the key must have 32 bytes");
    if (!cipher_ || !digest_) throw SystemError(ENOMEM, "EVP_CIPHER_CTX_new");
    Need(EVP_DecryptInit_ex(cipher_.get(), EVP_aes_256_ctr(), nullptr, secrets.key.data(), secrets.iv.data()),
         "EVP_DecryptInit");
    Need(EVP_DigestInit_ex(digest_.get(), EVP_sha256(), nullptr), "EVP_DigestInit");
  }
  ~PlainDigest() { OPENSSL_cleanse(plain_.data(), plain_.size()); }
  PlainDigest(const PlainDigest&) = delete;
  PlainDigest& operator=(const PlainDigest&) = delete;

  void Add(const uint8_t* data, size_t size) {
    // As much as stays near the processor until it is hashed.
    for (size_t at = 0; at < size; at += plain_.size()) {
      const int n = static_cast<int>(std::min(plain_.size(), size - at));
      int written = 0;
      Need(EVP_DecryptUpdate(cipher_.get(), plain_.data(), &written, data + at, n), "EVP_DecryptUpdate");
      Need(EVP_DigestUpdate(digest_.get(), plain_.data(), static_cast<size_t>(written)), "EVP_DigestUpdate");
    }
  }
  void Finish(std::array<uint8_t, 32>& digest) {
    unsigned size = 0;
    Need(EVP_DigestFinal_ex(digest_.get(), digest.data(), &size), "EVP_DigestFinal");
  }

 private:
  std::unique_ptr<EVP_CIPHER_CTX, FreeCipher> cipher_;
  std::unique_ptr<EVP_MD_CTX, FreeDigest> digest_;
  std::vector<uint8_t> plain_ = std::vector<uint8_t>(16 * 1024);
};

}  // namespace

CheckedCiphertext CheckCiphertext(const ByteSource& ciphertext, const LayerSecrets& secrets,
                                  const std::vector<uint8_t>& mac, const std::optional<ExpectedDigest>& digest,
                                  const ReadProgress& progress) {
  RunningMac running(secrets.key);
  PlainDigest plain(secrets);
  std::optional<RunningDigest> stored;
  std::vector<Work> works = {[&](const uint8_t* data, size_t size) { running.Add(data, size); },
                             [&](const uint8_t* data, size_t size) { plain.Add(data, size); }};
  if (digest) {
    stored.emplace(*digest);
    works.push_back([&](const uint8_t* data, size_t size) { stored->Add(data, size); });
  }
  {
    Pieces pieces(std::move(works));
    for (uint64_t at = 0; at < ciphertext.Size();) {
      const size_t size = std::min<uint64_t>(kPiece, ciphertext.Size() - at);
      ciphertext.ReadAt(at, pieces.Free(), size);
      pieces.Made(size);
      at += size;
      if (progress) progress(size);
    }
    pieces.Finish();
  }
  CheckedCiphertext checked;
  checked.is_authentic = running.Matches(mac);
  if (stored) checked.matches = stored->Matches();
  plain.Finish(checked.plain_digest);
  return checked;
}

}  // namespace sifcrypt
