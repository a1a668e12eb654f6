#include "starter/serve.h"

#include <malloc.h>

#include <utility>

#include "starter/image.h"

namespace sifcrypt::starter {
namespace {

/// Where the superblock says that there are extended attributes: all ones for none (squashfs 4.0).
constexpr uint64_t kXattrTableField = 80;
/// More of them hold more of what is free, each a part of it.
constexpr int kArenas = 1;
/// Decoded blocks take the place of blocks that were dropped. Fresh pages for each would cost as much time as decoding.
constexpr int kOwnPagesFrom = 32 << 20;
constexpr int kKeptFree = 1 << 20;

bool HasXattrs(const ByteSource& image) {
  uint64_t table = 0;
  image.ReadAt(kXattrTableField, &table, sizeof table);
  return table != UINT64_MAX;
}

}  // namespace

OpenSquashfs::OpenSquashfs(const ImageOptions& options) {
  mallopt(M_ARENA_MAX, kArenas);
  mallopt(M_MMAP_THRESHOLD, kOwnPagesFrom);
  mallopt(M_TRIM_THRESHOLD, kKeptFree);
  const std::shared_ptr<const ByteSource> image = OpenImage(options);
  SquashfsReader::Limits limits;
  limits.block_cache = static_cast<size_t>(options.cache_mib) << 20;
  reader_ = std::make_shared<SquashfsReader>(image, limits);
  settings_.owner = options.owner;
  settings_.has_xattrs = HasXattrs(*image);
}

std::unique_ptr<FuseServer> OpenSquashfs::Serve(UniqueFd device) const {
  auto server = std::make_unique<FuseServer>(reader_, settings_, std::move(device));
  server->Start();
  return server;
}

}  // namespace sifcrypt::starter
