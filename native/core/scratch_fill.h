// Fills a folder of a scratch with what a squashfs holds that lies in the same scratch, where both are: whoever unpacked it through
// the kernel would take half a dozen requests for each file.
#pragma once

#include <linux/ioctl.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "core/scratch_tree.h"

namespace sifcrypt {

/// What a folder of a scratch is asked by ioctl(2); the answer comes when it is filled. Any other file system says ENOTTY.
struct ScratchFillMessage {
  /// The squashfs: an inode number.
  uint64_t image = 0;
  /// Owners are kept; otherwise everything is root's.
  uint32_t preserve_owner = 0;
  /// Root of the machine may make device nodes and set any extended attribute.
  uint32_t is_real_root = 0;
};
constexpr unsigned long kScratchFill = _IOW('s', 1, ScratchFillMessage);

/// Says whether anything in a scratch has, or has had, an extended attribute.
constexpr unsigned long kScratchXattrs = _IOR('s', 2, uint32_t);

/// Of a user namespace; empty: it knows all of them.
struct KnownIds {
  struct Range {
    uint32_t first = 0;
    uint32_t count = 0;
  };
  std::vector<Range> users;
  std::vector<Range> groups;
};

/// SystemError: EINVAL for an owner whom nobody knows, ENOTEMPTY when the folder has something in it, ECANCELED when `is_stopped`
/// says so, EBADMSG when the image breaks its format, ENOSPC. What was made until then stays.
void FillScratch(ScratchTree& tree, ScratchTree::Id folder, const ScratchFillMessage& message, const KnownIds& known,
                 const std::function<bool()>& is_stopped);

}  // namespace sifcrypt
