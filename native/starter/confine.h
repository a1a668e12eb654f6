// What a process is left with that reads what strangers have written: a view of a few places, no privilege, and a filter of
// system calls. For our own servers and for the programs of others.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sifcrypt::starter {

/// A folder or file of this mount namespace, with all that is mounted below it, that is seen at `target`.
struct SeenPlace {
  /// Empty: an empty folder.
  std::string source;
  std::string target;
  /// Read-only and nosuid, or as it is mounted.
  bool as_it_is = false;
};

/// Enters a mount namespace of its own in which there are these places and nothing else. Needs CAP_SYS_ADMIN in the user
/// namespace. SystemError of `operation`.
void EnterOwnRoot(const std::vector<SeenPlace>& places, const char* operation);

/// For EnterOwnRoot: what a dynamically linked program needs to start.
std::vector<SeenPlace> LibraryPlaces();

enum class Calls {
  /// Serves with what it has open, and opens its device once more for each thread.
  kServer,
  /// Also looks at and changes trees, and becomes another program.
  kProgram
};

/// Gives up all capabilities but a set of `kept` ones, for ever, and the system calls that `calls` does not need. To be
/// called before there are threads. SystemError "prctl", "capset".
void GiveUpPrivileges(Calls calls, uint64_t kept = 0);

/// Adds nosuid, and these flags of mount(2), to what a mount has already; a user namespace may not take any of that away.
void RestrictMount(const std::string& path, unsigned long flags, const char* operation);

}  // namespace sifcrypt::starter
