import assert from "node:assert/strict"
import { Readable } from "node:stream"
import { decodeFrames, encodeFrame } from "../../../lib/definition/frames.ts"

async function decoded(...chunks: readonly Buffer[]): Promise<unknown[]> {
  const values: unknown[] = []
  for await (const value of decodeFrames(Readable.from(chunks))) values.push(value)
  return values
}

describe("frames", () => {
  const values = [{ a: 1, b: ["x"] }, "text", undefined, 7n]
  const whole = Buffer.concat(values.map(encodeFrame))

  it("come out as they went in, however the pipe cuts them", async () => {
    for (const size of [1, 2, 3, 5, 64, whole.length]) {
      const chunks: Buffer[] = []
      for (let at = 0; at < whole.length; at += size) chunks.push(whole.subarray(at, at + size))
      assert.deepEqual(await decoded(...chunks), values)
    }
  })

  it("leave out what the end cut off, and refuse a length that nobody sends", async () => {
    assert.equal((await decoded(whole.subarray(0, -1))).length, values.length - 1)
    await assert.rejects(decoded(Buffer.from([255, 255, 255, 255])), RangeError)
  })
})
