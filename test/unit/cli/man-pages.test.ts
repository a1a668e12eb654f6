// The manual pages as groff reads them, and as npm is told of them.
import assert from "node:assert/strict"
import { execFileSync, spawnSync } from "node:child_process"
import { readFileSync } from "node:fs"
import path from "node:path"
import type { CommandRow } from "../../../lib/cli/command.ts"
import { commands } from "../../../lib/cli/commands.ts"
import { manualFolder, manualPages } from "../../../lib/cli/man-pages.ts"

describe("the manual pages", () => {
  const pages = manualPages()
  const root = path.resolve(import.meta.dirname, "../../..")

  it("are listed in package.json: node --import tsx lib/cli/man-pages.ts --list", () => {
    const { man } = JSON.parse(readFileSync(path.join(root, "package.json"), "utf8")) as { man: string[] }
    assert.deepEqual(
      man,
      [...pages.keys()].map((file) => `${manualFolder}/${file}`),
    )
  })

  it("are such that groff has nothing to warn of", () => {
    const { stderr, status } = spawnSync("groff", ["-ww", "-man", "-Tutf8", "-z"], {
      input: [...pages.values()].join(""),
      encoding: "utf8",
    })
    assert.deepEqual([stderr, status], ["", 0])
  })

  it("have every command with its options, examples and exit statuses", () => {
    const check = (words: readonly string[], row: CommandRow): void => {
      const text = pages.get(`${words.join("-")}.1`)
      assert.ok(text !== undefined, words.join(" "))
      const shown = execFileSync("groff", ["-man", "-Tascii", "-P-c", "-P-b", "-P-u", "-rLL=500n"], {
        input: text,
        encoding: "utf8",
      })
      for (const title of ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "SEE ALSO"])
        assert.match(shown, new RegExp(`^${title}$`, "m"), words.join(" "))
      for (const [flags, help, , more] of Object.values(row.options ?? {})) {
        if (more?.hidden === true) continue
        assert.ok(shown.includes(flags.replace(/[<>]/g, "")), `${words.join(" ")} ${flags}`)
        assert.ok(shown.replace(/\s+/g, " ").includes(help.replaceAll("`", "")), help)
      }
      for (const [, line] of row.examples ?? []) assert.ok(shown.includes(line), line)
    }
    for (const row of commands.filter(({ hidden }) => hidden !== true)) {
      check(["sifcrypt", row.name], row)
      for (const below of row.commands ?? [])
        if (below.hidden !== true) check(["sifcrypt", row.name, below.name], below)
    }
  })
})
