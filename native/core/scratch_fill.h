// Fills a folder of a scratch with what a squashfs holds that lies in the same scratch, where both are: whoever unpacked it through
// the kernel would take half a dozen requests for each file.
#pragma once

#include <linux/ioctl.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "core/scratch_tree.h"

namespace sifcrypt {

/// What a folder of a scratch is told by ioctl(2): the inode number of the squashfs. The answer comes when it is filled. Any other
/// file system says ENOTTY. The kernel lets whoever may read a folder ask, whatever he may do otherwise, and what comes of it is root's.
/// So only root of the scratch may ask, and both have to be at its top, where nothing is that who is in one of its folders could name.
constexpr unsigned long kScratchFill = _IOW('s', 1, uint64_t);

/// Says whether anything in a scratch has, or has had, an extended attribute.
constexpr unsigned long kScratchXattrs = _IOR('s', 2, uint32_t);

/// What those may do for whom a scratch is.
struct ScratchRights {
  struct Range {
    uint32_t first = 0;
    uint32_t count = 0;
  };
  /// They are root of the machine: all owners, device nodes and any extended attribute.
  bool is_root = false;
  /// Otherwise the ids that their user namespace knows. There are none: everything is root's.
  std::vector<Range> users;
  std::vector<Range> groups;
};

/// SystemError: EPERM for what is not at the top, EINVAL for an owner whom nobody knows, ENOTEMPTY when the folder has something in it,
/// ECANCELED when `is_stopped` says so, EBADMSG when the image breaks its format, ENOSPC. What was made until then stays.
void FillScratch(ScratchTree& tree, ScratchTree::Id folder, ScratchTree::Id image, const ScratchRights& rights,
                 const std::function<bool()>& is_stopped);

}  // namespace sifcrypt
