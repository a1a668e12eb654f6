// The sifcrypt command with nothing but what runs a payload: scripts/bundle-command.mjs makes a smaller file of it, from which
// exec, run, shell and test start.
import { actions } from "./commands/run.ts"
import { main } from "./program.ts"

main(actions)
