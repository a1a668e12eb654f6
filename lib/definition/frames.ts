// Values between this process and the one in the workspace: each a length and what v8 makes of the value.
import { deserialize, serialize } from "node:v8"
import type { Bytes } from "../units.ts"

const LENGTH: Bytes = 4
const MAX_FRAME: Bytes = 256 << 20

/** A value as it goes through a pipe. */
export function encodeFrame(value: unknown): Buffer {
  const body = serialize(value)
  const frame = Buffer.alloc(LENGTH + body.length)
  frame.writeUInt32LE(body.length)
  body.copy(frame, LENGTH)
  return frame
}

/** The values that come through a pipe, until it ends. */
export async function* decodeFrames(stream: AsyncIterable<Buffer>): AsyncGenerator {
  let chunks: Buffer[] = []
  let size = 0
  let wanted = LENGTH
  for await (const chunk of stream) {
    chunks.push(chunk)
    size += chunk.length
    if (size < wanted) continue
    let bytes = Buffer.concat(chunks)
    for (;;) {
      if (bytes.length < LENGTH) break
      const length = bytes.readUInt32LE()
      if (length > MAX_FRAME) throw new RangeError(`a message of ${length} bytes`)
      if (bytes.length < LENGTH + length) break
      yield deserialize(bytes.subarray(LENGTH, LENGTH + length))
      bytes = bytes.subarray(LENGTH + length)
    }
    wanted = bytes.length < LENGTH ? LENGTH : LENGTH + bytes.readUInt32LE()
    chunks = [bytes]
    size = bytes.length
  }
}
