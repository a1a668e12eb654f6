import assert from "node:assert/strict"
import { accumulated, alignUp } from "../../lib/units.ts"

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

describe("accumulated", () => {
  it("only grows, though each piece of work counts from nothing", () => {
    const told: (readonly [number, number | undefined])[] = []
    const onProgress = accumulated((done, total) => told.push([done, total]))
    for (const [done, total] of [[3], [7], [2], [5, 6], [6, 6], [1, 1]] as const) onProgress(done, total)
    assert.deepEqual(told, [
      [3, undefined],
      [7, undefined],
      [9, undefined],
      [12, 13],
      [13, 13],
      [14, 14],
    ])
  })
})
