// Writing to standard output, waiting for slow readers and ending quietly when the reader goes away.
import { Readable } from "node:stream"
import { pipeline } from "node:stream/promises"
import { printable, printableLines } from "../printable.ts"
import { interruption } from "./interrupt.ts"
import { flag, type Reader } from "./values.ts"

let begun = false

/** Has anything been written to standard output? Then no error can stand there in place of a result. */
export function hasPrinted(): boolean {
  return begun
}

async function* noticed(
  chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
): AsyncGenerator<Uint8Array, void, undefined> {
  for await (const chunk of chunks) {
    begun = true
    yield chunk
  }
}

/** Writes all chunks; returns early when the reader has closed the pipe (`| head`). */
export async function writeAll(
  stream: NodeJS.WriteStream,
  chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
): Promise<void> {
  try {
    await pipeline(Readable.from(noticed(chunks), { objectMode: false }), stream, {
      end: false,
      signal: interruption,
    })
  } catch (error) {
    interruption.throwIfAborted()
    if ((error as NodeJS.ErrnoException).code !== "EPIPE") throw error
  }
}

/** Writes one piece of many; false: the reader has closed the pipe. Whoever calls it listens for errors of the stream. */
export async function writePiece(stream: NodeJS.WriteStream, data: Uint8Array): Promise<boolean> {
  return await new Promise((resolve, reject) => {
    stream.write(data, (error) => {
      if (!error) resolve(true)
      else if ((error as NodeJS.ErrnoException).code === "EPIPE") resolve(false)
      else reject(error)
    })
  })
}

/** Writes lines, or JSON, to standard output. */
export async function print(text: string): Promise<void> {
  await writeAll(output(), [Buffer.from(printableLines(text))])
}

/** The option that asks for {@link printJson}. */
export const jsonRow: readonly [flags: "--json", help: string, value: Reader<true>] = [
  "--json",
  "print the result as JSON",
  flag,
]

/** Writes one value as a line. */
export async function printJson(value: unknown): Promise<void> {
  await print(`${JSON.stringify(value)}\n`)
}

/** Writes lines that have words of others in them: each stays one. */
export async function printLines(lines: readonly string[]): Promise<void> {
  await print(lines.map((line) => `${printable(line)}\n`).join(""))
}

/** Writes what came of a command: as JSON where that is asked for, else the lines that `told` makes of it. */
export async function printResult<T>(
  { json }: { readonly json?: true },
  value: T,
  told: (value: T) => readonly string[],
): Promise<void> {
  if (json === true) await printJson(value)
  else await printLines(told(value))
}

/** Between columns, as the peers lay tables out. */
export const GAP = "    "

/** What is longer stands out of its column. */
const MAX_WIDTH = 200

/** Lines with cells below each other. There may be any number of them, and one of them may be as long as an image likes. */
export function columns(
  rows: readonly (readonly string[])[],
  gap = "  ",
  align: "left" | "right" = "left",
): string[] {
  const widths: number[] = []
  for (const row of rows)
    for (const [i, cell] of row.entries())
      widths[i] = Math.max(widths[i] ?? 0, Math.min(cell.length, MAX_WIDTH))
  const aligned = (cell: string, i: number, { length }: readonly string[]): string => {
    if (align === "right") return cell.padStart(widths[i] ?? 0)
    return i === length - 1 ? cell : cell.padEnd(widths[i] ?? 0)
  }
  return rows.map((row) => row.map(aligned).join(gap).trimEnd())
}

const used = new Set<NodeJS.WriteStream>()
let unwritten: Error | undefined

/** A stream whose errors are told of at the end: by then nobody listens where they happened. */
function use(stream: NodeJS.WriteStream): NodeJS.WriteStream {
  if (used.has(stream)) return stream
  used.add(stream)
  stream.on("error", (error: NodeJS.ErrnoException) => {
    // A reader that goes away has read enough, and there is no other place to complain of standard error.
    if (error.code === "EPIPE" || stream === process.stderr) return
    error.message = `standard output: ${error.message}`
    unwritten ??= error
  })
  return stream
}

/** Standard output. Node makes the stream when it is first asked for, which a payload's own output never needs. */
export function output(): NodeJS.WriteStream {
  try {
    return use(process.stdout)
  } catch (error) {
    if (error instanceof Error) error.message = `standard output: ${error.message}`
    throw error
  }
}

/** Standard error. */
export function errors(): NodeJS.WriteStream {
  return use(process.stderr)
}

/**
 * Waits until everything that was written has gone, or nobody wants it any more.
 *
 * @returns What kept it from standard output.
 */
export async function flush(): Promise<Error | undefined> {
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
  // Errors of what was written at once are on their way.
  if (used.size > 0) await new Promise((resolve) => setImmediate(resolve))
  return unwritten
}
