// A pseudo terminal for a payload of a program: the program has the end that people look at and type on.
import { closeSync } from "node:fs"
import { Duplex } from "node:stream"
import { ReadStream } from "node:tty"
import { loadAddon } from "../native/load.ts"

/** Columns and rows, each 1 to 65535. */
export interface TerminalSize {
  readonly columns: number
  readonly rows: number
}

const MAX_CELLS = 65_535

function check({ columns, rows }: TerminalSize): void {
  for (const [name, value] of Object.entries({ columns, rows }))
    if (!Number.isInteger(value) || value < 1 || value > MAX_CELLS)
      throw new RangeError(`${name} is 1 to ${MAX_CELLS}, not ${value}`)
}

/**
 * What a payload shows, and what is typed for it. It ends when the payload has; ending it types nothing (write `\x04` for
 * an end of file).
 */
export class Terminal extends Duplex {
  readonly #fd: number
  readonly #stream: ReadStream

  /** @internal Use `stdio: "pty"`. */
  constructor(fd: number) {
    super()
    this.#fd = fd
    this.#stream = new ReadStream(fd)
    this.#stream.on("data", (chunk: Buffer) => {
      if (!this.push(chunk)) this.#stream.pause()
    })
    this.#stream.on("end", () => this.push(null))
    this.#stream.on("error", (error: NodeJS.ErrnoException) => {
      // So the kernel says that nobody has the other end any more.
      if (error.code === "EIO") this.push(null)
      else this.destroy(error)
    })
    this.#stream.pause()
  }

  /** Tells the payload of another size, as a window does that is resized. */
  resize(size: TerminalSize): void {
    check(size)
    if (this.#stream.destroyed) return
    loadAddon().setTerminalSize({ fd: this.#fd, ...size })
    this.emit("resize", size)
  }

  /** @internal */
  override _read(): void {
    this.#stream.resume()
  }

  /** @internal */
  override _write(chunk: Buffer, _: BufferEncoding, done: (error?: Error | null) => void): void {
    if (this.#stream.destroyed) {
      // The payload has ended: what is typed now nobody reads.
      done()
      return
    }
    // Its error is told by the stream itself.
    this.#stream.write(chunk, () => {
      done()
    })
  }

  /** @internal */
  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#stream.destroy()
    done(error)
  }
}

/** The two ends: a stream, and the descriptor that becomes the payload's standard streams. */
export function openTerminal(size: TerminalSize): {
  readonly terminal: Terminal
  readonly fd: number
  close(): void
} {
  check(size)
  const ends = loadAddon().openTerminal({ columns: size.columns, rows: size.rows })
  return {
    terminal: new Terminal(ends.controller),
    fd: ends.terminal,
    close: () => {
      closeSync(ends.terminal)
    },
  }
}
