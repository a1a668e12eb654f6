#include "starter/serve.h"

#include <malloc.h>

#include <utility>

#include "starter/image.h"

namespace sifcrypt::starter {
namespace {

/// Of another C library than glibc the heap is as it is.
void LimitHeap() {
#ifdef M_ARENA_MAX
  // More of them hold more of what is free, each a part of it.
  constexpr int kArenas = 1;
  // Decoded blocks take the place of blocks that were dropped. Fresh pages for each would cost as much time as decoding.
  constexpr int kOwnPagesFrom = 32 << 20;
  constexpr int kKeptFree = 1 << 20;
  mallopt(M_ARENA_MAX, kArenas);
  mallopt(M_MMAP_THRESHOLD, kOwnPagesFrom);
  mallopt(M_TRIM_THRESHOLD, kKeptFree);
#endif
}

}  // namespace

OpenSquashfs::OpenSquashfs(const ImageOptions& options) {
  LimitHeap();
  SquashfsReader::Limits limits;
  limits.block_cache = static_cast<size_t>(options.cache_mib) << 20;
  reader_ = std::make_shared<SquashfsReader>(OpenImage(options), limits);
  settings_.owner = options.owner;
  settings_.has_xattrs = reader_->info().has_xattrs;
}

std::unique_ptr<FuseServer> OpenSquashfs::Serve(UniqueFd device) const {
  auto server = std::make_unique<FuseServer>(reader_, settings_, std::move(device));
  server->Start();
  return server;
}

}  // namespace sifcrypt::starter
