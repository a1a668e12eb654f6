// The sifcrypt command.
import { commands } from "./commands.ts"
import { main } from "./program.ts"

main(commands)
