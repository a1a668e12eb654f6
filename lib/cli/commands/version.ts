import { command, type CommandRow } from "../command.ts"
import { versionNumber } from "../name.ts"
import { jsonRow, printJson, printLines } from "../output.ts"

export const version: CommandRow = command({
  name: "version",
  examples: [["for a program", "sifcrypt version --json"]],
  heading: "This command",
  description: "Prints the version alone; under a name of the peers, theirs.",
  options: { json: jsonRow },
  run: async ({ json }) => {
    if (json === true) await printJson({ version: versionNumber() })
    else await printLines([versionNumber()])
  },
})
