import assert from "node:assert/strict"
import { realpathSync } from "node:fs"
import { scratchesFor, temporaryFolder } from "../../../lib/definition/scratch.ts"
import { newFolder } from "../../support/scratch.ts"

describe("scratchesFor", () => {
  it("refuses sizes that are none", () => {
    for (const size of [0, -1, 1.5, NaN, Infinity])
      for (const name of ["scratchMemory", "scratchDisk"])
        assert.throws(() => scratchesFor({ [name]: size }), RangeError)
  })

  it("needs no folder for memory alone", () => {
    const tmpFolder = "/nonexistent"
    assert.deepEqual(scratchesFor({ scratch: "memory", scratchMemory: 5, tmpFolder }), [
      { kind: "memory", memory: 5 },
    ])
    assert.throws(() => scratchesFor({ tmpFolder }), { code: "ERR_BUILD_SCRATCH", path: tmpFolder })
  })

  it("ends with memory, whatever the machine has", () => {
    const tmpFolder = newFolder("tmp")
    const kinds = scratchesFor({ tmpFolder }).map(({ kind }) => kind)
    assert.deepEqual(
      kinds,
      ["kernel", "userspace", "memory"].filter((kind) => kinds.some((found) => found === kind)),
    )
    assert.equal(kinds.at(-1), "memory")
    assert.equal(temporaryFolder({ tmpFolder }), realpathSync(tmpFolder))
  })
})
