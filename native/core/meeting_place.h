// Where processes of one user meet who have something in common: a socket in a folder that is his alone, with a lock. Who connects holds
// the lock meanwhile; who listens takes it before it leaves. So nobody connects to what is about to end.
#pragma once

#include <string>

#include "core/unique_fd.h"

namespace sifcrypt::meeting {

/// A connection to who listens there; none: nobody does. SystemError `operation`.
UniqueFd Connect(int folder, const std::string& name, const char* operation);

/// A socket that listens there, for those who keep the boundaries of what they send. SystemError `operation`.
UniqueFd Listen(int folder, const std::string& name, const char* operation);

/// The next one who has connected, if it is this user's process; none: errno says why, EPERM for another user's.
UniqueFd Accept(int listener);

/// Takes the lock where nobody has connected since, and nobody is about to. False: it was not taken.
bool LockDeserted(int lock, int listener);

}  // namespace sifcrypt::meeting
