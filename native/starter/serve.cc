#include "starter/serve.h"

#include <malloc.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>

#include "core/composed_source.h"
#include "core/file_range.h"
#include "core/memory_source.h"
#include "core/slice_source.h"
#include "core/system_error.h"
#include "starter/image.h"

namespace sifcrypt::starter {
namespace {

/// Of a SIF with 65,536 objects.
constexpr size_t kMaxHead = size_t{40} << 20;

}  // namespace

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

OpenSquashfs::OpenSquashfs(const ImageOptions& options) {
  LimitHeap();
  SquashfsReader::Limits limits;
  limits.block_cache = static_cast<size_t>(options.cache_mib) << 20;
  reader_ = std::make_shared<SquashfsReader>(OpenImage(options), limits);
  if (options.owner) view_.uid = options.owner->uid, view_.gid = options.owner->gid;
  view_.has_xattrs = reader_->info().has_xattrs;
}

std::unique_ptr<FuseSession> OpenSquashfs::Serve(UniqueFd device) const {
  return ServeSquashfs(reader_, view_, std::move(device));
}

OpenView::OpenView(const ViewOptions& view, const ImageOptions& image)
    : owner_(image.owner.value_or(Owner{geteuid(), getegid()})) {
  const std::shared_ptr<const ByteSource> root = OpenImage(image);
  const int image_fd = image.range.fd;
  const auto head = std::make_shared<const MemorySource>(ReadPipe(view.head_fd, kMaxHead));
  std::vector<ComposedSource::Piece> pieces;
  pieces.reserve(view.pieces.size());
  for (const auto& [from, at, extent] : view.pieces) {
    const std::shared_ptr<const ByteSource> whole = from == ViewPiece::From::kHead ? head : root;
    pieces.push_back({at, from == ViewPiece::From::kImage ? OpenDescriptor(image_fd, extent)
                                                          : std::make_shared<SliceSource>(whole, extent)});
  }
  // A launch line makes an image a program.
  files_.push_back({"image.sif", 0500, std::make_shared<ComposedSource>(std::move(pieces), view.size)});
  files_.push_back({"root.squashfs", 0400, std::make_shared<SliceSource>(root, Extent{0, view.root_size})});
  struct stat status {};
  CheckErrno(fstat(image_fd, &status), "fstat");
  time_ = status.st_mtime;
}

std::unique_ptr<FuseSession> OpenView::Serve(UniqueFd device) const {
  return ServeFiles(files_, owner_, time_, std::move(device));
}

}  // namespace sifcrypt::starter
