// Named networks of one user: netavark's bridges and aardvark-dns in a network namespace of their own, which pasta connects to the
// machine's. Who keeps them is the first process of a PID namespace, with a mount namespace and, unless it is root's, a user namespace:
// with it all of that ends. It ends with the last container, and leaves a network with the last one in it: each holds a connection,
// which the kernel closes however that container ends.
#pragma once

#include <string>
#include <vector>

#include "starter/channel.h"
#include "starter/options.h"

namespace sifcrypt::starter {

/// A connection to whom keeps this user's networks.
struct KeeperConnection {
  Channel channel;
  /// Its user namespace: those of containers have to be children of it.
  UniqueFd user;
};

/// Starts it if it does not run. To be called before this process gets the orphans of its children. SystemError "network".
KeeperConnection ConnectToKeeper(const NetworkOptions& options);

/// For a container whose network namespace this is, in `keeper`'s networks until the connection is closed. SystemError "network".
void JoinNetworks(const NetworkOptions& options, const Channel& keeper, int network);

/// What one that was killed has left in the folder.
void ClearUpKeeper(const std::string& folder);

/// `sifcrypt-starter keep`: keeps them.
int KeepCommand(const KeepOptions& options);

}  // namespace sifcrypt::starter
