// Serves a file system that lies in memory and, encrypted, in a file: the scratch of a build.
#pragma once

#include <memory>

#include "core/scratch_fill.h"
#include "core/scratch_tree.h"
#include "starter/fuse_session.h"

namespace sifcrypt::starter {

/// `device` is as a FuseSession takes it; `rights`: of those whose scratch it is.
std::unique_ptr<FuseSession> ServeScratchTree(std::unique_ptr<ScratchTree> tree, ScratchRights rights, UniqueFd device);

}  // namespace sifcrypt::starter
