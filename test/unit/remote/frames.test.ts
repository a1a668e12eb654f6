// Frames between two machines, from whoever is there.
import assert from "node:assert/strict"
import {
  decodeFrames,
  encodeFrame,
  FrameError,
  FrameKind,
  GREETING,
  MAX_DATA,
} from "../../../lib/remote/frames.ts"

async function* inPieces(bytes: Buffer, size: number): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size)
}

async function decoded(bytes: Buffer, size = bytes.length): Promise<[number, string][]> {
  const found: [number, string][] = []
  const stranger = (start: Buffer): Error => new Error(`stranger: ${start.toString("latin1")}`)
  for await (const { kind, body } of decodeFrames(inPieces(bytes, Math.max(size, 1)), stranger))
    found.push([kind, body.toString("latin1")])
  return found
}

const hello = Buffer.concat([
  GREETING,
  encodeFrame(FrameKind.message, Buffer.from("{}")),
  encodeFrame(FrameKind.ping),
  encodeFrame(FrameKind.data, Buffer.alloc(1000, "x")),
  encodeFrame(FrameKind.end),
])

/** A frame that we would not make. */
function frame(length: number, kind: number, body = ""): Buffer {
  const header = Buffer.alloc(5)
  header.writeUInt32LE(length)
  header.writeUInt8(kind, 4)
  return Buffer.concat([GREETING, header, Buffer.from(body)])
}

describe("decodeFrames", () => {
  it("reads what encodeFrame wrote, however it is cut", async () => {
    const whole = await decoded(hello)
    assert.deepEqual(
      whole.map(([kind, body]) => [kind, body.length]),
      [
        [FrameKind.message, 2],
        [FrameKind.ping, 0],
        [FrameKind.data, 1000],
        [FrameKind.end, 0],
      ],
    )
    for (const size of [1, 2, 7, 16, 999]) assert.deepEqual(await decoded(hello, size), whole)
  })

  it("refuses every stream that ends inside of a frame, and no other", async () => {
    const ends = new Set<number>()
    for (let length = GREETING.length; length <= hello.length; length++)
      try {
        await decoded(hello.subarray(0, length))
        ends.add(length)
      } catch (error) {
        assert.ok(error instanceof FrameError, String(error))
      }
    const start = GREETING.length
    assert.deepEqual([...ends], [start, start + 7, start + 12, start + 1017, start + 1022])
  })

  it("refuses kinds that there are not, and lengths beyond their most, before it reads on", async () => {
    for (const bad of [
      frame(0, 0),
      frame(0, 7),
      frame(0, 255),
      frame(MAX_DATA + 1, FrameKind.data),
      frame((1 << 20) + 1, FrameKind.message),
      frame(1, FrameKind.ping, "x"),
      frame(1, FrameKind.end, "x"),
      frame(0xffffffff, FrameKind.stdout),
    ])
      await assert.rejects(decoded(bad), FrameError)
    assert.throws(() => encodeFrame(FrameKind.data, Buffer.alloc(MAX_DATA + 1)), RangeError)
  })

  it("tells who is no sifcrypt by what he says first", async () => {
    await assert.rejects(decoded(Buffer.from("Welcome to builder, today is Monday\n")), {
      message: "stranger: Welcome to builde",
    })
    await assert.rejects(decoded(Buffer.alloc(0)), { message: "stranger: " })
    await assert.rejects(decoded(GREETING.subarray(0, 5)), /stranger/)
  })
})
