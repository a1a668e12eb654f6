// Writing to standard output, waiting for slow readers and ending quietly when the reader goes away.
import { Readable } from "node:stream"
import { pipeline } from "node:stream/promises"
import { interruption } from "./interrupt.ts"

/** Writes all chunks; returns early when the reader has closed the pipe (`| head`). */
export async function writeAll(
  stream: NodeJS.WriteStream,
  chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
): Promise<void> {
  try {
    await pipeline(Readable.from(chunks, { objectMode: false }), stream, { end: false, signal: interruption })
  } catch (error) {
    interruption.throwIfAborted()
    if ((error as NodeJS.ErrnoException).code !== "EPIPE") throw error
  }
}

/** Writes a text to standard output. */
export async function print(text: string): Promise<void> {
  await writeAll(output(), [Buffer.from(text)])
}

const used = new Set<NodeJS.WriteStream>()

function use(stream: NodeJS.WriteStream): NodeJS.WriteStream {
  used.add(stream)
  return stream
}

/** Standard output. Node makes the stream when it is first asked for, which a payload's own output never needs. */
export function output(): NodeJS.WriteStream {
  return use(process.stdout)
}

/** Standard error. */
export function errors(): NodeJS.WriteStream {
  return use(process.stderr)
}

/** Waits until everything that was written has gone, or nobody wants it any more. */
export async function flush(): Promise<void> {
  for (const stream of used) {
    if (stream.destroyed || stream.writableLength === 0) continue
    await new Promise<void>((resolve) => {
      stream.once("error", () => {
        resolve()
      })
      stream.write("", () => {
        resolve()
      })
    })
  }
}
