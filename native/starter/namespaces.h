// The namespaces that sessions and workspaces are made in.
#pragma once

#include <optional>
#include <vector>

#include "starter/channel.h"
#include "starter/options.h"

namespace sifcrypt::starter {

/// A mount namespace of this process's own, from which no mount gets out, and, unless it is root's, a user namespace: the caller
/// alone becomes root there, or with `many_ids` the process at the other end of `main` is asked to map what MapIds does.
/// `more`: flags of unshare(2) for others. SystemError "userns". True: there is a user namespace.
bool EnterNamespaces(bool many_ids, const Channel& main, int more = 0);

/// The same with a user namespace that is a child of `parent`, one of this user's: the ids are those of that one.
void EnterNamespacesBelow(int parent, const std::vector<IdRange>& uids, const std::vector<IdRange>& gids, int more);

/// The answer to kMapIds: more than one's own id is written from outside, by programs that know who may have which.
/// SystemError "userns".
void MapIds(pid_t process, const std::vector<IdRange>& uids, const std::vector<IdRange>& gids,
            const Channel& process_channel);

/// A session's user namespace knows the caller by other numbers: root's.
void TranslateOwner(std::optional<Owner>& owner);

/// Where version 1 and version 2 of cgroups are mounted side by side, crun (1.8) refuses to start even though it is told to leave
/// cgroups alone; so it gets to see version 2 only.
void ShowUnifiedCgroups();

}  // namespace sifcrypt::starter
