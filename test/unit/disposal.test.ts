import assert from "node:assert/strict"
import { madeOf, thenUndone } from "../../lib/disposal.ts"

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

describe("what is undone in the end", () => {
  const refuse = (what: string) => (): Promise<never> => Promise.reject(new Error(what))

  it("is undone whatever happens, and hides no failure before it", async () => {
    let undone = 0
    const undo = (): Promise<void> => {
      undone++
      return Promise.resolve()
    }
    assert.equal(await thenUndone(() => Promise.resolve("made"), undo), "made")
    await assert.rejects(thenUndone(refuse("work"), undo), { message: "work" })
    assert.equal(undone, 2)
    await assert.rejects(thenUndone(refuse("work"), refuse("undo")), { message: "work" })
    await assert.rejects(
      thenUndone(() => Promise.resolve("made"), refuse("undo")),
      { message: "undo" },
    )
  })
})
