// What a process needs to start another program or become one, and to hand bytes to it without a writer that goes on.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/unique_fd.h"

namespace sifcrypt {

/// A file in memory with these bytes, at its start. Not for secrets: it can be swapped.
UniqueFd MemoryFile(const char* name, const void* bytes, size_t size);

struct Pipe {
  UniqueFd reader;
  UniqueFd writer;
};

/// Both ends are closed in other programs.
Pipe MakePipe();

/// The end of a pipe that gives these bytes, then its end. At most PIPE_BUF (4096) bytes: nobody reads meanwhile.
UniqueFd FilledPipe(const void* bytes, size_t size);

/// Blocks all signals that can be, in the calling thread. The next program finds them blocked, and none is lost.
void BlockSignals();

/// Becomes `file`, with the dispositions of signals that a new program expects. `kept`: descriptors that stay open, besides
/// those that were never to be closed. Comes back only with a SystemError.
[[noreturn]] void ReplaceProcess(const std::string& file, const std::vector<std::string>& arguments,
                                 const std::vector<std::string>& environment, const std::vector<int>& kept);

/// Starts `file` as a child, which has the dispositions of signals that a new program expects. `inherited`: descriptors it gets
/// under their own numbers, besides those that were never to be closed.
pid_t StartProcess(const std::string& file, const std::vector<std::string>& arguments,
                   const std::vector<std::string>& environment, const std::vector<int>& inherited);

/// Returns when this child has ended.
void WaitForProcess(pid_t child);

struct PseudoTerminal {
  UniqueFd controller;
  /// What a program gets as its terminal; raw, nobody's controlling terminal.
  UniqueFd terminal;
};

PseudoTerminal OpenPseudoTerminal(uint16_t columns, uint16_t rows);
/// Either end.
void ResizeTerminal(int terminal, uint16_t columns, uint16_t rows);

}  // namespace sifcrypt
