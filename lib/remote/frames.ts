// What goes through a connection to another machine: a word that says what this is, then frames. A frame is its length, its kind and
// its body, and each kind has its most.
import type { Bytes } from "../units.ts"

/** Comes first, from either side. A shell that prints something before it is told apart by it. */
export const GREETING: Buffer = Buffer.from("\0sifcrypt-remote\n", "latin1")

export const FrameKind = {
  /** JSON. */
  message: 1,
  /** Of the stream that a message or the order of things has announced. */
  data: 2,
  /** The stream is complete. */
  end: 3,
  /** I am still here. */
  ping: 4,
  /** What scripts print. */
  stdout: 5,
  stderr: 6,
} as const
export type FrameKind = (typeof FrameKind)[keyof typeof FrameKind]

export interface Frame {
  readonly kind: FrameKind
  readonly body: Buffer
}

export const MAX_DATA: Bytes = 256 << 10

const most: ReadonlyMap<number, Bytes> = new Map<number, Bytes>([
  [FrameKind.message, 1 << 20],
  [FrameKind.data, MAX_DATA],
  [FrameKind.end, 0],
  [FrameKind.ping, 0],
  [FrameKind.stdout, MAX_DATA],
  [FrameKind.stderr, MAX_DATA],
])

const LENGTH: Bytes = 4
const HEADER: Bytes = 5

const NOTHING = Buffer.alloc(0)

/** @throws RangeError: nobody would take it. */
export function encodeFrame(kind: FrameKind, body: Buffer = NOTHING): Buffer {
  if (body.length > (most.get(kind) ?? 0))
    throw new RangeError(`a frame of kind ${kind} with ${body.length} bytes`)
  const frame = Buffer.alloc(HEADER + body.length)
  frame.writeUInt32LE(body.length)
  frame.writeUInt8(kind, LENGTH)
  body.copy(frame, HEADER)
  return frame
}

/** What comes is no frame, or too long a one. */
export class FrameError extends Error {}

/** Bytes in the pieces in which they are wanted. */
class Pieces {
  readonly #chunks: AsyncIterator<Buffer>
  #have: Buffer[] = []
  #size = 0

  constructor(stream: AsyncIterable<Buffer>) {
    this.#chunks = stream[Symbol.asyncIterator]()
  }

  /** Fewer only where there are no more. */
  async take(wanted: Bytes): Promise<Buffer> {
    while (this.#size < wanted) {
      const next = await this.#chunks.next()
      if (next.done === true) break
      this.#have.push(next.value)
      this.#size += next.value.length
    }
    const all = this.#have.length === 1 ? (this.#have[0] ?? NOTHING) : Buffer.concat(this.#have)
    const taken = all.subarray(0, wanted)
    const rest = all.subarray(taken.length)
    this.#have = rest.length === 0 ? [] : [rest]
    this.#size = rest.length
    return taken
  }

  /** The caller needs no more. */
  async release(): Promise<void> {
    await this.#chunks.return?.()
  }
}

/**
 * The frames of a stream, until it ends between two of them.
 *
 * @param onStranger - Makes an error of what came instead of {@link GREETING}.
 * @throws FrameError; what `onStranger` makes.
 */
export async function* decodeFrames(
  stream: AsyncIterable<Buffer>,
  onStranger: (start: Buffer) => Error,
): AsyncGenerator<Frame, void, undefined> {
  const pieces = new Pieces(stream)
  try {
    const start = await pieces.take(GREETING.length)
    if (!start.equals(GREETING)) throw onStranger(start)
    for (;;) {
      const header = await pieces.take(HEADER)
      if (header.length === 0) return
      if (header.length < HEADER) throw new FrameError("it ends in the middle of a frame")
      const length = header.readUInt32LE()
      const kind = header.readUInt8(LENGTH)
      const limit = most.get(kind)
      if (limit === undefined) throw new FrameError(`a frame of kind ${kind}, which there is not`)
      if (length > limit)
        throw new FrameError(`a frame of kind ${kind} with ${length} bytes, more than ${limit}`)
      const body = await pieces.take(length)
      if (body.length < length) throw new FrameError("it ends in the middle of a frame")
      yield { kind: kind as FrameKind, body }
    }
  } finally {
    await pieces.release()
  }
}
