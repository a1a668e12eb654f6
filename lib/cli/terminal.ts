// How the command talks to people. Results go to stdout; prompts to the terminal itself; everything else to stderr with
// the program's name in front. Progress shows on a terminal only and leaves no trace.
import { once } from "node:events"
import { closeSync, constants, fstatSync, openSync, readSync, writeSync } from "node:fs"
import { createInterface } from "node:readline"
import { isatty, ReadStream } from "node:tty"
import { allocateSecret, KeyError } from "../index.ts"
import { humanBytes, printable } from "../printable.ts"
import { Interrupted } from "./interrupt.ts"
import { programName } from "./name.ts"
import { errors } from "./output.ts"
import { tellsNews, tellsWarnings } from "./verbosity.ts"

export { humanBytes, printable }

/** Asked of what can be one only: node:tty takes longer to load than most of what asks. */
export function isTerminal(fd: number): boolean {
  return fstatSync(fd).isCharacterDevice() && isatty(fd)
}

/** Takes the progress line away that the cursor is in. */
let clearLine: (() => void) | undefined

/** Says that the cursor is in a line that goes before anything is told, or no longer. */
export function occupyLine(clear: (() => void) | undefined): void {
  clearLine = clear
}

/** Writes a line to stderr, prefixed; whatever is in it, it stays one line. What went wrong is told however little is asked for. */
export function complain(text: string): void {
  clearLine?.()
  errors().write(`${programName}: ${printable(text)}\n`)
}

/** What the user should know. */
export function notice(text: string): void {
  if (tellsWarnings()) complain(text)
}

/** What went well. */
export function inform(text: string): void {
  if (tellsNews()) complain(text)
}

/** Bytes that are read as one secret; what is longer is refused, never cut. */
export const MAX_SECRET_SIZE = 8192

function tooLong(): KeyError {
  return new KeyError("ERR_KEY_FORMAT", `a passphrase has at most ${MAX_SECRET_SIZE} bytes`)
}

/** A line from standard input, byte by byte so that the rest stays there for the payload. */
export function secretFromStdin(): Buffer {
  const line = allocateSecret(MAX_SECRET_SIZE)
  const one = allocateSecret(1)
  try {
    let length = 0
    while (readSync(0, one, 0, 1, null) === 1 && one[0] !== 0x0a) {
      if (length === line.length) throw tooLong()
      line[length++] = one[0] ?? 0
    }
    const secret = allocateSecret(length)
    line.copy(secret, 0, 0, length)
    return secret
  } finally {
    line.fill(0)
    one.fill(0)
  }
}

const CTRL_C = 0x03
const CTRL_D = 0x04
const CTRL_U = 0x15
const backspaces: readonly number[] = [0x08, 0x7f]
const lineEnds: readonly number[] = [0x0a, 0x0d]

/** The line that is being typed. */
class SecretLine {
  readonly #bytes = allocateSecret(MAX_SECRET_SIZE)
  #length = 0
  tooLong = false

  get empty(): boolean {
    return this.#length === 0
  }
  add(byte: number): void {
    if (this.#length === this.#bytes.length) this.tooLong = true
    else this.#bytes[this.#length++] = byte
  }
  /** Takes back a whole character of UTF-8. */
  back(): void {
    while (this.#length > 0 && ((this.#bytes[--this.#length] ?? 0) & 0xc0) === 0x80);
  }
  clear(): void {
    this.#bytes.fill(0)
    this.#length = 0
  }
  take(): Buffer {
    const secret = allocateSecret(this.#length)
    this.#bytes.copy(secret, 0, 0, this.#length)
    this.clear()
    return secret
  }
}

/** What was typed before a question, or pasted behind the command, is no answer to it: whole lines, and the begin of one. */
function forgetTyped(terminal: ReadStream): void {
  // Otherwise the kernel keeps a line to itself until its end is typed.
  terminal.setRawMode(true)
  const fd = openSync("/dev/tty", constants.O_RDONLY | constants.O_NONBLOCK)
  const typed = Buffer.alloc(MAX_SECRET_SIZE)
  try {
    while (readSync(fd, typed) > 0);
  } catch {
    // There is no more.
  } finally {
    typed.fill(0)
    closeSync(fd)
    terminal.setRawMode(false)
  }
}

/**
 * Asks for a line on the controlling terminal, shown while it is typed.
 *
 * @returns undefined when there is no terminal, or its end is typed.
 */
export async function promptLine(text: string, signal: AbortSignal): Promise<string | undefined> {
  let fd: number
  try {
    fd = openSync("/dev/tty", "r+")
  } catch {
    return undefined
  }
  const terminal = new ReadStream(fd)
  const lines = createInterface({ input: terminal, terminal: false })
  terminal.on("error", () => {
    lines.close()
  })
  try {
    forgetTyped(terminal)
    writeSync(fd, text)
    const ends = ["line", "close"].map((event) => once(lines, event, { signal }))
    const [line] = (await Promise.race(ends)) as [string?]
    return line
  } finally {
    lines.close()
    terminal.destroy()
  }
}

/**
 * Asks for a secret on the controlling terminal without echo. The bytes come back in a buffer of their own, never as a
 * string.
 *
 * @param signal - Ends the question; the terminal is as it was before.
 * @returns The line without its end, or undefined when there is no terminal.
 */
export function promptSecret(text: string, signal: AbortSignal): Promise<Buffer> | undefined {
  let fd: number
  try {
    fd = openSync("/dev/tty", "r+")
  } catch {
    return undefined // no controlling terminal: the caller says what else can be done
  }
  const terminal = new ReadStream(fd)
  terminal.setRawMode(true) // before anybody is asked to type
  writeSync(fd, text)
  return new Promise<Buffer>((resolve, reject) => {
    const line = new SecretLine()
    const finish = (error?: unknown): void => {
      signal.removeEventListener("abort", onAbort)
      terminal.removeAllListeners()
      // A terminal that went away has no modes to restore.
      terminal.on("error", () => undefined)
      terminal.setRawMode(false)
      if (!terminal.destroyed) writeSync(fd, "\n")
      terminal.destroy()
      if (error !== undefined) {
        line.clear()
        reject(error instanceof Error ? error : new Error("the prompt was ended", { cause: error }))
      } else resolve(line.take())
    }
    const onAbort = (): void => {
      finish(signal.reason)
    }
    const onByte = (byte: number): boolean => {
      if (lineEnds.includes(byte) || (byte === CTRL_D && line.empty)) {
        finish(line.tooLong ? tooLong() : undefined)
        return false
      }
      if (byte === CTRL_C) {
        finish(new Interrupted("SIGINT"))
        return false
      }
      if (backspaces.includes(byte)) line.back()
      else if (byte === CTRL_U) line.clear()
      else line.add(byte)
      return true
    }
    terminal.on("data", (chunk: Buffer) => {
      chunk.every(onByte)
      chunk.fill(0)
    })
    terminal.on("error", finish)
    terminal.on("end", () => {
      finish(new KeyError("ERR_KEY_MISSING", "the terminal was closed"))
    })
    signal.addEventListener("abort", onAbort, { once: true })
    if (signal.aborted) onAbort()
  })
}
