// The OCI runtime as a program: how it is started, and what it says of itself.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

#include "starter/session.h"

namespace sifcrypt::starter {

/// Starts it with the session as its place for temporary files, and nothing else of the environment. `arguments`: from the
/// program's path on. `prepare` is called in the new process. SystemError "crun" when it cannot be executed.
pid_t StartCrun(std::vector<std::string> arguments, const Session& session, const sigset_t& mask,
                const std::function<void()>& prepare);

/// In the new process: of what lies above the standard streams it passes these on, in ascending order.
void PassOn(const std::vector<int>& descriptors);
/// The same in its words.
std::string PassedOn(const std::vector<int>& descriptors);

/// The signal that its exit status stands for, or 0: 128 and more is taken for one that ends a process by default.
int SignalOfStatus(int status);

/// The first error that its log holds; empty when there is none.
std::string CrunError(const std::string& log);

/// pidfd_open(2), which is younger than the headers that some of the systems we build on have.
int OpenProcess(pid_t process);

}  // namespace sifcrypt::starter
