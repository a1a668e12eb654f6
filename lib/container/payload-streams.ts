// A payload's standard streams as its starter gets them, and what is kept of what nobody has read yet.
import { PassThrough, type Readable, type Writable } from "node:stream"
import { pipeline } from "node:stream/promises"
import type { ChildProcess } from "node:child_process"
import type { Stdio, StdioOption } from "../runtime/stdio.ts"
import type { Bytes } from "../units.ts"

/** Kept of each output until somebody reads it; then the payload waits, as it does for any pipe that is full. */
const KEPT: Bytes = 1 << 20
/** The most that a pipe holds for an ordinary user: what the payload wrote last. */
const PIPE: Bytes = 1 << 20

type Three<T> = readonly [stdin: T, stdout: T, stderr: T]

/** As spawn takes them. */
export function spawnable(stdio: Exclude<StdioOption, "pty">): Three<Stdio | number> {
  if (typeof stdio === "string") return [stdio, stdio, stdio]
  const [stdin, stdout, stderr] = stdio
  const one = (given: Stdio | number | Readable | Writable): Stdio | number =>
    typeof given === "object" ? "pipe" : given
  return [one(stdin), one(stdout), one(stderr)]
}

/**
 * All that an output gives, whether it is read before or after the payload has ended. Node throws away what nobody has read when
 * a process ends.
 */
function kept(child: ChildProcess, source: Readable): Readable {
  const output = new PassThrough({ readableHighWaterMark: KEPT })
  source.pipe(output)
  source.once("error", (error) => output.destroy(error))
  child.once("exit", () => {
    if (source.readableEnded) return
    // No waiting any more: the pipe has an end. Unless something that the payload left behind goes on writing.
    source.unpipe(output)
    source.on("data", (chunk: Buffer) => {
      output.write(chunk)
      if (output.readableLength + output.writableLength > KEPT + PIPE) source.destroy()
    })
    source.once("close", () => output.end())
    source.resume()
  })
  return output
}

/** The caller's ends of a payload's streams. */
export interface PayloadStreams {
  readonly stdin: Writable | null
  readonly stdout: Readable | null
  readonly stderr: Readable | null
  /** Resolves when all was written to the streams that the caller gave. */
  readonly written: Promise<unknown>
}

/** Joins the streams of a started child with those that the caller gave. */
export function joinStreams(child: ChildProcess, stdio: StdioOption): PayloadStreams {
  const [stdin, stdout, stderr] = typeof stdio === "string" ? [stdio, stdio, stdio] : stdio
  const input = child.stdin
  if (typeof stdin === "object" && input !== null)
    // A payload need not read to the end.
    pipeline(stdin, input).catch(() => undefined)
  const written: Promise<void>[] = []
  const output = (source: Readable | null, given: unknown): Readable | null => {
    if (source === null) return null
    if (typeof given !== "object") return kept(child, source)
    written.push(pipeline(source, given as Writable, { end: false }))
    return null
  }
  return {
    stdin: typeof stdin === "object" ? null : input,
    stdout: output(child.stdout, stdout),
    stderr: output(child.stderr, stderr),
    // Whoever gave a stream hears of its errors there.
    written: Promise.allSettled(written),
  }
}

/**
 * Reads a stream to its end.
 *
 * @returns undefined: it is more than `most`.
 */
export async function readOutput(source: Readable, most: Bytes): Promise<Buffer | undefined> {
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of source as AsyncIterable<Buffer>) {
    size += chunk.length
    if (size > most) return undefined
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}
