// Tables for people.
import assert from "node:assert/strict"
import { columns } from "../../../lib/cli/output.ts"

describe("columns", () => {
  it("lays cells below each other, and leaves nothing behind the last", () => {
    const rows = [
      ["NAME", "PID", "IMAGE"],
      ["a", "12345", ""],
      ["longer", "-", "/image"],
    ]
    assert.deepEqual(columns(rows), ["NAME    PID    IMAGE", "a       12345", "longer  -      /image"])
    assert.deepEqual(columns([["A", "B"]], " | "), ["A | B"])
  })

  it("has no lines where there are no rows", () => {
    assert.deepEqual(columns([]), [])
  })

  it("take any number of rows and a cell of any length", () => {
    const long = "x".repeat(2_000_000)
    const rows = [["key", long], ...Array.from({ length: 300_000 }, () => ["other", "value"])]
    const lines = columns(rows)
    assert.equal(lines[0], `key    ${long}`)
    assert.equal(lines.at(-1), "other  value")
    const inner = columns([
      [long, "a"],
      ["b", "c"],
    ])
    assert.equal(inner[1], `${"b".padEnd(200)}  c`)
  })
})
