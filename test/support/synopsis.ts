// The synopsis of docs/cli.md, from the tables of commands; puts it there: `node --import tsx test/support/synopsis.ts`.
import { readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import type { CommandRow } from "../../lib/cli/command.ts"
import { commands } from "../../lib/cli/commands.ts"

function usage({ name, options = {}, arguments: words = [], commands: below }: CommandRow): string {
  if (below !== undefined) return `sifcrypt ${name} COMMAND ...`
  const upper = words.map(([word]) => word.replace(/[<>]/g, "").toUpperCase())
  return ["sifcrypt", name, ...(Object.keys(options).length === 0 ? [] : ["[options]"]), ...upper].join(" ")
}

/** A line for each command that --help lists. */
export function synopsis(): string {
  const shown = commands.filter(({ hidden }) => hidden !== true)
  const width = Math.max(...shown.map((command) => usage(command).length))
  return shown
    .map((command) => `${usage(command).padEnd(width)}  ${command.summary ?? command.description}\n`)
    .join("")
}

if (process.argv[1] === import.meta.filename) {
  const file = path.resolve(import.meta.dirname, "../../docs/cli.md")
  const place = /(?<=<!-- made by test\/support\/synopsis\.ts -->\n)[^]*?(?=<!-- end -->)/
  writeFileSync(
    file,
    readFileSync(file, "utf8").replace(place, () => `\n\`\`\`\n${synopsis()}\`\`\`\n\n`),
  )
}
