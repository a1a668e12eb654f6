// A network of the container's own that pasta, of the passt project, connects to the machine's: it needs no privilege there. The
// container has the machine's way out, and of what it listens on only the ports that are published can be reached.
#pragma once

#include <string>
#include <vector>

#include "starter/channel.h"
#include "starter/options.h"
#include "starter/processes.h"

namespace sifcrypt::starter {

/// The process that connects it, to be a child of main's. It waits for the namespaces of the container process at the other end of
/// `container`, answers when they are connected, and ends when that end is closed: pasta with it, as it is in a PID namespace of
/// theirs. SystemError "network", "port" are told to `main`. `keeper`: of its named networks, if it has some. `place`: a folder that
/// something may be mounted over.
int NetworkProcess(const NetworkOptions& options, const SignalQueue& signals, const Channel& main,
                   const Channel& container, const Channel& keeper, const std::string& place);

/// pasta's, for a way out of the network namespace that the file `place` stands for.
std::vector<std::string> UplinkArguments(const std::string& resolver, const std::string& place,
                                         const std::string& interface);

/// Runs it until it is ready, and in the background. SystemError "network".
void RunPasta(const std::string& program, const std::vector<std::string>& arguments);

/// For the container process, which is in its namespaces: hands them over. SystemError "network".
void HandOverNetwork(const Channel& network);

/// Waits until it is connected. False: it is not, and main knows why.
bool WaitForNetwork(const Channel& network);

}  // namespace sifcrypt::starter
