// What this program does under the name squashfuse_ll: mounts a plain squashfs for whoever calls squashfuse, with our reader.
#pragma once

namespace sifcrypt::starter {

/// Is this the name that it was called by (argv[0])?
bool IsSquashfuse(const char* program);

/// Gives the exit status. Looks at the caller's environment for one thing only: where there is a squashfuse_ll that reads
/// what ours cannot, and becomes that.
int SquashfuseCommand(int argc, char** argv);

}  // namespace sifcrypt::starter
