// Streams to standard output, waiting for slow readers and ending quietly when the reader goes away.
import { once } from "node:events"

/** Writes all chunks; returns early when the reader has closed the pipe (`| head`). */
export async function writeAll(
  stream: NodeJS.WriteStream,
  chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
): Promise<void> {
  let closed = false
  const onError = (error: NodeJS.ErrnoException): void => {
    if (error.code !== "EPIPE") throw error
    closed = true
  }
  stream.on("error", onError)
  for await (const chunk of chunks) {
    if (closed) break
    if (!stream.write(chunk))
      await Promise.race([once(stream, "drain"), once(stream, "close"), once(stream, "error")])
  }
  if (!closed)
    await new Promise<void>((resolve) => {
      stream.write("", () => {
        resolve()
      })
    })
}
