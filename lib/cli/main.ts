// The sifcrypt command.
import { addAbsentCommands } from "./commands/absent.ts"
import { addBuildCommand } from "./commands/build.ts"
import { addCacheCommands } from "./commands/cache.ts"
import { addCertCommands } from "./commands/cert.ts"
import { addContentCommands } from "./commands/content.ts"
import { addConvertCommands } from "./commands/convert.ts"
import { addEclCommands } from "./commands/ecl.ts"
import { addInspectCommand } from "./commands/inspect.ts"
import { addInstanceCommands } from "./commands/instance.ts"
import { addKeyCommands } from "./commands/key.ts"
import { addMountCommands } from "./commands/mount.ts"
import { addOverlayCommands } from "./commands/overlay.ts"
import { addRecipientCommands } from "./commands/recipient.ts"
import { actionTable } from "./commands/run.ts"
import { addSifCommands } from "./commands/sif.ts"
import { addSignCommand } from "./commands/sign.ts"
import { addVerifyCommand } from "./commands/verify.ts"
import { main, type CommandTable } from "./program.ts"

const commands: CommandTable = [
  [["build"], addBuildCommand],
  [["encrypt", "decrypt", "reencrypt"], addConvertCommands],
  [["recipient"], addRecipientCommands],
  [["overlay"], addOverlayCommands],
  [["sif"], addSifCommands],
  [["sign"], addSignCommand],
  [["verify"], addVerifyCommand],
  [["ls", "cat", "extract", "info"], addContentCommands],
  [["inspect", "run-help"], addInspectCommand],
  [["mount", "unmount", "mounts"], addMountCommands],
  ...actionTable,
  [["instance"], addInstanceCommands],
  [["cert"], addCertCommands],
  [["capability", "config", "plugin", "oci", "checkpoint"], addAbsentCommands],
  [["key"], addKeyCommands],
  [["ecl"], addEclCommands],
  [["cache"], addCacheCommands],
]

main(commands)
