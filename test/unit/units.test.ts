import assert from "node:assert/strict"
import { alignUp } from "../../lib/units.ts"

describe("alignUp", () => {
  for (const [value, unit, expected] of [
    [0, 4096, 0],
    [1, 4096, 4096],
    [4096, 4096, 4096],
    [4097, 4096, 8192],
    [32181, 1, 32181],
    [2 ** 52 + 1, 4096, 2 ** 52 + 4096],
  ] as const)
    it(`takes ${value} to ${expected} for multiples of ${unit}`, () => {
      assert.equal(alignUp(value, unit), expected)
    })
})
