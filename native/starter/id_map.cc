#include "starter/id_map.h"

#include <unistd.h>

#include "core/system_error.h"
#include "starter/spawn.h"

namespace sifcrypt::starter {

void WriteIdMap(const std::string& program, pid_t process, const std::vector<IdRange>& map) {
  std::vector<std::string> arguments{std::to_string(process)};
  for (const IdRange& range : map)
    for (const uint32_t number : {range.inside, range.outside, range.count})
      arguments.push_back(std::to_string(number));
  RunProgram(FindProgram(program, "userns"), arguments, "userns");
}

}  // namespace sifcrypt::starter
