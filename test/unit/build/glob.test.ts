import assert from "node:assert/strict"
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { expandBraces, expandGlob, partMatcher } from "../../../lib/build/glob.ts"
import { newFolder } from "../../support/scratch.ts"

describe("expandGlob", () => {
  let folder: string
  const expand = (pattern: string): Promise<string[]> =>
    expandGlob(pattern, { resolve: (name) => Promise.resolve(path.resolve(folder, name)) })

  before(() => {
    folder = newFolder("glob")
    for (const name of ["a.txt", "b.txt", "c.log", ".hidden.txt", "with space.txt", "d/e.txt", "d/f/g.txt", "[x]"]) {
      mkdirSync(path.dirname(path.join(folder, name)), { recursive: true })
      writeFileSync(path.join(folder, name), "")
    }
    // ** does not follow it.
    symlinkSync("..", path.join(folder, "d", "back"))
  })

  it("leaves a name without a pattern as it is, whether it exists or not", async () => {
    assert.deepEqual(await expand("nothing"), ["nothing"])
    assert.deepEqual(await expand("d/"), ["d/"])
  })

  for (const [pattern, names] of [
    ["*.txt", ["a.txt", "b.txt", "with space.txt"]],
    [".*.txt", [".hidden.txt"]],
    ["?.txt", ["a.txt", "b.txt"]],
    ["[ac].*", ["a.txt", "c.log"]],
    ["[!a].*", ["b.txt", "c.log"]],
    ["{a,c}.*", ["a.txt", "c.log"]],
    ["{a,b}.txt", ["a.txt", "b.txt"]],
    ["*/*.txt", ["d/e.txt"]],
    ["**/*.txt", ["a.txt", "b.txt", "with space.txt", "d/e.txt", "d/f/g.txt"]],
    ["@(a|b).txt", ["a.txt", "b.txt"]],
    ["!(a|b).txt", ["with space.txt"]],
    ["+([a-c]).@(txt|log)", ["a.txt", "b.txt", "c.log"]],
    ["\\[x\\]", ["[x]"]],
    ["*.none", []],
  ] as const)
    it(`expands ${pattern}`, async () => {
      assert.deepEqual(await expand(pattern), names)
    })

  it("expands braces in braces, and leaves single ones alone", () => {
    assert.deepEqual(expandBraces("a{b,{c,d}e}f"), ["abf", "acef", "adef"])
    assert.deepEqual(expandBraces("{a}{b,c}"), ["{a}b", "{a}c"])
    assert.deepEqual(expandBraces("{a"), ["{a"])
  })

  it("bounds what a pattern may ask for", async () => {
    await assert.rejects(expand("x".repeat(5000)), /a pattern of more than 4096 bytes/)
    assert.throws(() => expandBraces("{a,b}".repeat(11)), /more than 1024 alternatives/)
  })

  it("matches a leading dot only when asked to", () => {
    assert.equal(partMatcher("*")(".x"), false)
    assert.equal(partMatcher(".*")(".x"), true)
  })
})
