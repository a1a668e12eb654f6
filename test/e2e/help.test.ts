// Help that fits a terminal, and help that has everything.
import assert from "node:assert/strict"
import type { CommandRow } from "../../lib/cli/command.ts"
import { commands } from "../../lib/cli/commands.ts"
import { sifcryptOk } from "../support/cli.ts"

/** Two screens of a terminal as it has always been. */
const ROWS = 2 * 24
const COLUMNS = 80

const action = (row: CommandRow): boolean => ["exec", "run", "shell", "test"].includes(row.name)

describe("--help", () => {
  it("of what runs payloads fits two screens, with examples and exit statuses", async () => {
    for (const { name, examples = [] } of commands.filter(action)) {
      const { text } = await sifcryptOk([name, "--help"])
      const lines = text.trimEnd().split("\n")
      assert.ok(lines.length <= ROWS, `${name}: ${lines.length}`)
      for (const line of lines) assert.ok(line.length <= COLUMNS, line)
      for (const [what, line] of examples) assert.ok(text.includes(`  # ${what}\n  ${line}\n`))
      assert.match(text, /^Exit status: 0 done, 20 usage,[^]*255 not started, or the payload's own$/m)
    }
  })

  it("has every option with --help-all", async () => {
    for (const { name, options = {} } of commands.filter(({ common }) => common !== undefined)) {
      const { text } = await sifcryptOk([name, "--help-all"])
      for (const [flags, , , more] of Object.values(options))
        if (more?.hidden !== true) assert.ok(text.includes(`  ${flags}`), `${name} ${flags}`)
    }
  })

  it("groups commands and options", async () => {
    const { text } = await sifcryptOk(["--help"])
    const headings = text.match(/^[A-Z].*:$/gm)
    assert.deepEqual(headings, [
      ...["Options:", "Make and change images:", "Registries:", "Signatures:", "Look into images:"],
      ...["Run images:", "This command:"],
    ])
    assert.match((await sifcryptOk(["ls", "--help"])).text, /^Keys and signatures:\n {2}--pem-path/m)
  })
})
