// Every option of a live Apptainer is known here, with a value where it has one: what it amounts to is said by docs/cli.md.
import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import path from "node:path"
import type { CommandRow } from "../../lib/cli/command.ts"
import { commands } from "../../lib/cli/commands.ts"
import { isRoot } from "../support/cli.ts"
import { skip } from "../support/skip.ts"
import { folder, inSurroundings, makeImages } from "./images.ts"

const names = [
  ...["build", "exec", "run", "shell", "test", "pull", "inspect", "run-help", "sign", "verify"],
  ...["instance start", "instance run", "instance list", "instance stop", "instance stats"],
  ...["overlay create", "cache list", "cache clean"],
  ...[
    "key list",
    "key newpair",
    "key import",
    "key export",
    "key remove",
    "key pull",
    "key push",
    "key search",
  ],
  ...["sif dump", "sif header", "sif info", "sif list"],
] as const

/** What we do not have, on purpose. */
const missing: Readonly<Record<string, readonly string[]>> = {
  // A private key is recognised as one.
  sign: ["--secret"],
  // --keyserver asks one; a certificate's revocation is not asked for.
  verify: ["--url", "--ocsp-verify"],
  "overlay create": ["--fakeroot"],
}

function find(name: string): CommandRow | undefined {
  return name
    .split(" ")
    .reduce<CommandRow | undefined>((above, word) => above?.commands?.find((row) => row.name === word), {
      name: "",
      description: "",
      commands,
    })
}

describe("options of a live Apptainer", function () {
  this.timeout(300_000)
  before(async function () {
    if (!isRoot) skip(this, "making the surroundings needs root")
    await makeImages()
    const helps = names.map((name) => `apptainer ${name} --help >'help-${name}' 2>/dev/null\n`).join("")
    await inSurroundings("peer", helps, "helps")
  })

  for (const name of names)
    it(`${name} has them all`, () => {
      const row = find(name)
      assert.ok(row !== undefined)
      const flags = Object.values(row.options ?? {}).map(([flag]) => flag)
      const help = readFileSync(path.join(folder, `help-${name}`), "utf8")
      const listed = [...help.matchAll(/^ +(?:(-\w), )?(--[\w-]+)(?: (\w+))? {2,}/gm)]
      assert.ok(listed.length > 0)
      for (const [, short, long = "", value] of listed) {
        if (long === "--help" || missing[name]?.includes(long)) continue
        const flag = flags.find((one) => one.split(/[ ,]+/).includes(long))
        assert.ok(flag !== undefined, long)
        if (short !== undefined) assert.ok(flag.startsWith(`${short}, `), `${flag} is ${short}`)
        if (value !== undefined) assert.ok(flag.includes("<"), `${flag} takes a value`)
      }
    })
})
