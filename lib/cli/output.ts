// Streams to standard output, waiting for slow readers and ending quietly when the reader goes away.
import { Readable } from "node:stream"
import { pipeline } from "node:stream/promises"

/** Writes all chunks; returns early when the reader has closed the pipe (`| head`). */
export async function writeAll(
  stream: NodeJS.WriteStream,
  chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
): Promise<void> {
  try {
    await pipeline(Readable.from(chunks, { objectMode: false }), stream, { end: false })
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EPIPE") throw error
  }
}
