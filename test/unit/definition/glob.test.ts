import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { expandBraces, expandGlob, partMatcher } from "../../../lib/definition/glob.ts"
import { matcher } from "../../../lib/definition/glob-match.ts"
import { newFolder } from "../../support/scratch.ts"

describe("expandGlob", () => {
  let folder: string
  const expand = (pattern: string): Promise<string[]> =>
    expandGlob(pattern, { resolve: (name) => Promise.resolve(path.resolve(folder, name)) })

  before(() => {
    folder = newFolder("glob")
    for (const name of [
      "a.txt",
      "b.txt",
      "c.log",
      ".hidden.txt",
      "with space.txt",
      "d/e.txt",
      "d/f/g.txt",
      "[x]",
    ]) {
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
    assert.deepEqual(expandBraces("\\{a,b}"), ["\\{a,b}"])
  })

  it("bounds what a pattern may ask for", async () => {
    await assert.rejects(expand("x".repeat(5000)), /a pattern of more than 4096 bytes/)
    assert.throws(() => expandBraces("{a,b}".repeat(11)), /more than 1024 alternatives/)
  })

  it("means by a pattern what a shell means", () => {
    const names = ["", "a", "b", "ab", "ba", "aab", "abc", "a.b", "é", "a*b", "x]", "ab\\"].concat(
      "ab".repeat(9),
    )
    const patterns = [
      "*",
      "a*",
      "*b",
      "?",
      "??",
      "[ab]",
      "[!a]*",
      "[]x]*",
      "a\\*b",
      "@(a|b)",
      "*(a|b)",
      "+(ab)",
      "?(a)b",
    ].concat([
      "!(a)",
      "!(a)b",
      "!(a)*",
      "!(*b)",
      "!(a|!(b))",
      "@(a|ab)@(b|)",
      "+(a|b|ab)c",
      "*(!(a))",
      "a!(b)",
      "+(+(a)b)",
    ])
    const script =
      'while read -r pattern; do for name in "$@"; do [[ $name == $pattern ]] && printf 1 || printf 0; done; echo; done'
    const said = execFileSync("bash", ["--norc", "-O", "extglob", "-c", script, "bash", ...names], {
      input: patterns.map((pattern) => `${pattern}\n`).join(""),
      encoding: "utf8",
      env: { LC_ALL: "C.UTF-8" },
    })
    const ours = patterns.map((pattern) => names.map((name) => (matcher(pattern)(name) ? 1 : 0)).join(""))
    assert.deepEqual(ours, said.trimEnd().split("\n"))
  })

  it("comes to an end whatever the pattern is", () => {
    // Who goes back and tries again does not see the end of any of these.
    const name = `${"a".repeat(250)}b`
    for (const pattern of [
      "!(!(".repeat(8) + "a" + "))".repeat(8),
      "*(a|*(a|a))".repeat(4),
      "*a".repeat(200),
      "+(+(+(a)))c",
    ])
      assert.equal(typeof matcher(pattern)(name), "boolean")
  })

  it("refuses a range that ends before it begins, with a code", () => {
    for (const pattern of ["[z-a]*", "@(a|[!9-0])"])
      assert.throws(() => matcher(pattern), { code: "ERR_BUILD_SOURCE" })
  })

  it("refuses groups in groups that no stack holds, with a code", () => {
    for (const nested of [1365, 65])
      assert.throws(() => matcher("@(".repeat(nested) + "a" + ")".repeat(nested)), {
        code: "ERR_BUILD_SOURCE",
      })
    assert.equal(matcher("@(".repeat(64) + "a" + ")".repeat(64))("a"), true)
  })

  it("matches a leading dot only when asked to", () => {
    assert.equal(partMatcher("*")(".x"), false)
    assert.equal(partMatcher(".*")(".x"), true)
  })
})
