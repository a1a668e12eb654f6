import assert from "node:assert/strict"
import { madeOf } from "../../lib/disposal.ts"

describe("what is made of a resource", () => {
  let disposed = 0
  const open: AsyncDisposable = {
    [Symbol.asyncDispose]: () => {
      disposed++
      return Promise.resolve()
    },
  }

  const nothing = (): void => undefined

  beforeEach(() => {
    disposed = 0
  })

  it("has it from then on", async () => {
    const made = { open }
    assert.equal(await madeOf(open, () => made), made)
    assert.equal(disposed, 0)
  })

  it("leaves nothing where it fails or comes to nothing", async () => {
    await assert.rejects(
      madeOf(open, () => Promise.reject(new RangeError("too much"))),
      RangeError,
    )
    assert.equal(disposed, 1)
    await madeOf(open, nothing)
    assert.equal(disposed, 2)
  })

  it("leaves nothing of what is disposed of at once", async () => {
    const wiped: string[] = []
    const secret: Disposable = { [Symbol.dispose]: () => wiped.push("secret") }
    await madeOf(secret, nothing)
    assert.deepEqual(wiped, ["secret"])
  })
})
