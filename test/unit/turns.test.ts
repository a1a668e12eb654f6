// Work from many sides, some of it at once.
import assert from "node:assert/strict"
import { Turns } from "../../lib/turns.ts"

describe("Turns", () => {
  it("lets so many work at once, and the others in the order in which they came, also after one has failed", async () => {
    const turns = new Turns(2)
    const begun: number[] = []
    const ends: { readonly resolve: () => void; readonly reject: (reason: Error) => void }[] = []
    const all = [0, 1, 2, 3].map((number) =>
      turns.take(async () => {
        begun.push(number)
        await new Promise<void>((resolve, reject) => ends.push({ resolve, reject }))
        return number
      }),
    )
    assert.deepEqual(begun, [0, 1])
    assert.equal(turns.waiting, 2)
    ends[1]?.reject(new Error("no"))
    await assert.rejects(all[1] ?? assert.fail(), /no/)
    assert.deepEqual(begun, [0, 1, 2])
    ends[0]?.resolve()
    assert.equal(await all[0], 0)
    assert.deepEqual(begun, [0, 1, 2, 3])
    assert.equal(turns.waiting, 0)
    for (const { resolve } of ends) resolve()
    assert.deepEqual(await Promise.all(all.slice(2)), [2, 3])
    assert.equal(await turns.take(() => Promise.resolve("free")), "free")
  })
})
