import assert from "node:assert/strict"
import { writeFileSync } from "node:fs"
import path from "node:path"
import { readResources } from "../../../lib/runtime/resources.ts"
import { newFolder } from "../../support/scratch.ts"

const file = path.join(newFolder("resources"), "cgroups.toml")

async function read(text: string | Buffer): Promise<unknown> {
  writeFileSync(file, text)
  return await readResources(file)
}

describe("readResources", () => {
  it("takes integers of 64 bits, as the file that Apptainer installs has them", async () => {
    const most = "9223372036854771712"
    const found = await read(`[[hugepageLimits]]\npageSize = "2MB"\nlimit = ${most}\n[pids]\nlimit = 1024\n`)
    assert.deepEqual(found, {
      hugepageLimits: [{ pageSize: "2MB", limit: Number(most) }],
      pids: { limit: 1024 },
    })
    const extremes = await read("[memory]\nlimit = 9223372036854775807\nswap = -9223372036854775808\n")
    // What the runtime reads are integers of 64 bits again.
    for (const [, digits = ""] of JSON.stringify(extremes).matchAll(/:(-?\d+)/g))
      assert.equal(BigInt.asIntN(64, BigInt(digits)), BigInt(digits))
  })

  for (const [what, text] of [
    ["what is no TOML", "limit = "],
    ["a section that nobody knows", "[processes]\nlimit = 1\n"],
    ["fewer processes than starting a payload takes", "[pids]\nlimit = 7\n"],
    ["nesting without end", `[pids]\nlimit = ${"[".repeat(100_000)}`],
  ] as const)
    it(`has a code for ${what}`, async () => {
      await assert.rejects(read(text), { code: "ERR_RUN_OPTION" })
    })
})
