import assert from "node:assert/strict"
import { setImmediate } from "node:timers/promises"
import { writePieces } from "../../../lib/oci/temporary-file.ts"

describe("writePieces", () => {
  const pieces = ["one", "two", "three"].map((text) => Buffer.from(text))

  it("writes each behind the other, one at a time, while the next one comes", async () => {
    const done: string[] = []
    function* read(): Generator<Buffer> {
      for (const piece of pieces) {
        done.push(`read ${piece.toString()}`)
        yield piece
      }
    }
    let writing = 0
    const end = await writePieces(
      read(),
      async (piece, position) => {
        assert.equal(++writing, 1)
        // What is read meanwhile is read before this goes on.
        await setImmediate()
        done.push(`write ${piece.toString()} at ${position}`)
        writing--
      },
      10,
    )
    assert.equal(end, 21)
    assert.deepEqual(done, [
      ...["read one", "read two", "write one at 10", "read three", "write two at 13", "write three at 16"],
    ])
  })

  it("has written what came when the next one does not, and tells of a write that failed", async () => {
    let written = 0
    const slowly = async (piece: Buffer): Promise<void> => {
      await setImmediate()
      written += piece.length
    }
    function* broken(): Generator<Buffer> {
      yield Buffer.from("one")
      throw new Error("the connection broke")
    }
    await assert.rejects(writePieces(broken(), slowly), /the connection broke/)
    assert.equal(written, 3)
    const full = (): Promise<void> => Promise.reject(new Error("no room"))
    await assert.rejects(writePieces(pieces, full), /no room/)
    await assert.rejects(writePieces(pieces.slice(0, 1), full), /no room/)
  })
})
