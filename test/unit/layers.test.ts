// The order of lib's folders: one list, which lint enforces and docs/architecture.md draws.
import assert from "node:assert/strict"
import { readdirSync, readFileSync } from "node:fs"
import path from "node:path"
import { pathToFileURL } from "node:url"

const root = path.resolve(import.meta.dirname, "../..")

describe("the order of folders", () => {
  let order: readonly (readonly string[])[]

  before(async () => {
    ;({ order } = (await import(pathToFileURL(path.join(root, "eslint.config.js")).href)) as {
      order: typeof order
    })
  })

  it("names everything in lib", () => {
    const there = readdirSync(path.join(root, "lib")).map((name) => name.replace(/\.ts$/, ""))
    assert.deepEqual(order.flat().toSorted(), there.toSorted())
  })

  it("is the one that docs/architecture.md draws, top to bottom", () => {
    const text = readFileSync(path.join(root, "docs/architecture.md"), "utf8")
    const picture = /^```\n(cli [^]*?)\n\n/m.exec(text)?.[1] ?? ""
    const drawn = picture
      .split("\n")
      .map((line) => /^[a-z-]+(?:, [a-z-]+)*/.exec(line)?.[0].split(", ") ?? [])
    const rows = order.toReversed().map((row) => row.toSorted())
    let at = 0
    for (const row of rows) {
      const here = []
      while (here.length < row.length && at < drawn.length) here.push(...(drawn[at++] ?? []))
      assert.deepEqual(here.toSorted(), row)
    }
    assert.equal(at, drawn.length)
  })
})
