import assert from "node:assert/strict"
import { inParallel } from "../../../lib/oci/parallel.ts"

describe("inParallel", () => {
  it("does each once, a few at a time", async () => {
    let now = 0
    let most = 0
    const done: number[] = []
    await inParallel([1, 2, 3, 4, 5, 6, 7], async (item) => {
      most = Math.max(most, ++now)
      await new Promise((resolve) => setImmediate(resolve))
      done.push(item)
      now--
    })
    assert.deepEqual(done.toSorted(), [1, 2, 3, 4, 5, 6, 7])
    assert.equal(most, 3)
  })

  it("begins nothing after a failure, and throws it when what was begun has ended", async () => {
    const begun: number[] = []
    let ended = 0
    await assert.rejects(
      inParallel([1, 2, 3, 4, 5], async (item) => {
        begun.push(item)
        if (item === 2) throw new Error("second")
        await new Promise((resolve) => setImmediate(resolve))
        ended++
      }),
      /second/,
    )
    assert.deepEqual(begun, [1, 2, 3])
    assert.equal(ended, 2)
  })
})
