import { command, type CommandRow } from "../command.ts"
import { versionNumber } from "../name.ts"
import { printLines } from "../output.ts"

export const version: CommandRow = command({
  name: "version",
  description: "Prints the version alone; under a name of the peers, theirs.",
  run: () => printLines([versionNumber()]),
})
