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
})
