// The ids of a user namespace beyond the caller's own: newuidmap and newgidmap write them if /etc/subuid and /etc/subgid
// allow it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace sifcrypt::starter {

/// A line of a user or group map, as user_namespaces(7) has them.
struct IdRange {
  uint32_t inside = 0;
  uint32_t outside = 0;
  uint32_t count = 0;
};

/// `program`: newuidmap or newgidmap. SystemError "userns" with what it complained about, ENOENT when it is missing.
void WriteIdMap(const std::string& program, pid_t process, const std::vector<IdRange>& map);

}  // namespace sifcrypt::starter
