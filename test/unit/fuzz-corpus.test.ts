// What fuzz targets start from: small enough, and it is known where each input comes from.
import assert from "node:assert/strict"
import { readdirSync, readFileSync, statSync } from "node:fs"
import path from "node:path"
import { expandBraces } from "../../lib/definition/glob.ts"
import { matcher } from "../../lib/definition/glob-match.ts"

const fuzz = path.join(import.meta.dirname, "..", "fuzz")
const corpus = path.join(fuzz, "corpus")
const inputs = readdirSync(corpus, { recursive: true, encoding: "utf8" }).filter((name) => name.includes("/"))
const byLibFuzzer = (name: string): boolean => /\/[0-9a-f]{40}$/.test(name)

describe("the corpus of fuzz targets", () => {
  it("has a megabyte at most", () => {
    const bytes = inputs.reduce((sum, name) => sum + statSync(path.join(corpus, name)).size, 0)
    assert.ok(bytes <= 1e6, `${bytes} bytes`)
  })

  it("says of each input where it comes from, and of none that is not there", () => {
    const text = readFileSync(path.join(corpus, "README.md"), "utf8")
    const rows = [...text.matchAll(/^\| ([a-z]+\/\S+) +\|/gm)].map(([, name = ""]) =>
      name.replaceAll("\\", ""),
    )
    const told = rows.flatMap((row) => {
      const found = expandBraces(row).flatMap((pattern) => {
        const some = inputs.filter(matcher(pattern))
        assert.ok(some.length > 0, `${pattern} is not there`)
        return some
      })
      return found
    })
    assert.deepEqual(told.sort(), inputs.filter((name) => !byLibFuzzer(name)).sort())
  })

  it("is of targets that there are", () => {
    const targets = readdirSync(fuzz).flatMap((name) => /^([a-z]+)_fuzz\.cc$/.exec(name)?.[1] ?? [])
    const folders = new Set(inputs.map((name) => path.dirname(name)))
    assert.deepEqual([...folders].sort(), [...targets, "keys"].sort())
  })
})
