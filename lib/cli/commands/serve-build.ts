import { serveBuild } from "../../index.ts"
import { command, type CommandRow } from "../command.ts"
import { interruption, waitForHelpers } from "../interrupt.ts"
import { isTerminal } from "../terminal.ts"
import { flag, text } from "../values.ts"
import { variable } from "../variables.ts"

export const serve: CommandRow = command({
  name: "serve-build",
  examples: [
    ["what `build --remote` has ssh start on this machine", "sifcrypt serve-build --tmpdir /scratch"],
  ],
  heading: "Make and change images",
  summary: "build for another machine's `build --remote`",
  description:
    "Builds what `sifcrypt build --remote` of another machine asks for over standard input and output, once. ssh starts it there; in " +
    'an authorized_keys, restrict,command="sifcrypt serve-build" before a key lets its owner do nothing else. Nothing of the build ' +
    "is left behind: what does not fit in memory lies encrypted in unnamed files, and the end of standard input ends it.",
  options: {
    tmpFolder: ["--tmpdir <dir>", "for temporary files (default TMPDIR)", text],
    allowUnconfined: [
      "--allow-unconfined",
      "build as root, too, or where scripts see this account's processes: whoever asks has the account then",
      flag,
    ],
  },
  run: async ({ allowUnconfined, tmpFolder = variable("TMPDIR") }, _, made) => {
    if (isTerminal(0) || isTerminal(1))
      made.error("error: ssh starts it: a build is not asked for at a terminal")
    waitForHelpers()
    await serveBuild({
      input: process.stdin,
      output: process.stdout,
      tmpFolder,
      allowUnconfined,
      signal: interruption,
    })
  },
})
