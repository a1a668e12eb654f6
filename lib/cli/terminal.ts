// How the command talks to people. Results go to stdout; prompts to the terminal itself; everything else to stderr with
// the program's name in front. Progress shows on a terminal only and leaves no trace.
import { closeSync, openSync, readSync, writeSync } from "node:fs"
import { ReadStream } from "node:tty"

/** Writes a line to stderr, prefixed. */
export function notice(text: string): void {
  process.stderr.write(`sifcrypt: ${text}\n`)
}

/** Shows untrusted names without letting them steer the terminal. */
export function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`)
}

/** Bytes for people: `1.2 GiB`. */
export function humanBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"]
  let value = bytes
  let unit = 0
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024
    unit++
  }
  return unit === 0 ? `${value} B` : `${value.toFixed(1)} ${units[unit] ?? ""}`
}

/** A progress line on stderr, redrawn at most ten times a second; nothing when stderr is not a terminal. */
export class Progress {
  readonly #label: string
  readonly #started: number = performance.now()
  #last = 0
  #shown = false

  constructor(label: string) {
    this.#label = label
  }

  update(bytes: number): void {
    const now = performance.now()
    if (!process.stderr.isTTY || now - this.#last < 100) return
    this.#last = now
    const seconds = (now - this.#started) / 1000
    const rate = seconds > 0.2 ? `, ${humanBytes(bytes / seconds)}/s` : ""
    process.stderr.write(`\r\u001b[K${this.#label} ${humanBytes(bytes)}${rate}`)
    this.#shown = true
  }

  done(): void {
    if (this.#shown) process.stderr.write("\r\u001b[K")
  }
}

const maximumLine = 4096

/**
 * Asks for a secret on the controlling terminal without echo. The bytes come back in a buffer of their own, never as a
 * string.
 *
 * @returns The line without its end, or undefined when there is no terminal.
 */
export function promptSecret(text: string): Promise<Buffer> | undefined {
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
    const line = Buffer.alloc(maximumLine)
    let length = 0
    const finish = (settle: () => void): void => {
      terminal.setRawMode(false)
      writeSync(fd, "\n")
      terminal.destroy()
      settle()
    }
    terminal.on("data", (chunk: Buffer) => {
      for (const byte of chunk) {
        if (byte === 0x0d || byte === 0x0a || (byte === 0x04 && length === 0)) {
          chunk.fill(0)
          const secret = Buffer.alloc(length)
          line.copy(secret, 0, 0, length)
          line.fill(0)
          finish(() => {
            resolve(secret)
          })
          return
        }
        if (byte === 0x03) {
          line.fill(0)
          finish(() => {
            reject(Object.assign(new Error("interrupted"), { name: "AbortError" }))
          })
          return
        }
        if (byte === 0x7f || byte === 0x08) length = Math.max(0, length - 1)
        else if (byte === 0x15) length = 0
        else if (length < maximumLine) line[length++] = byte
      }
      chunk.fill(0)
    })
    terminal.on("error", (error) => {
      line.fill(0)
      reject(error)
    })
  })
}

/** Reads a file that holds a secret into a wiped-later buffer; `limit` bytes at most. */
export function readSecretFile(path: string, limit: number): Buffer {
  const fd = openSync(path, "r")
  try {
    const bytes = Buffer.alloc(limit + 1)
    let used = 0
    for (;;) {
      const n = readSync(fd, bytes, used, bytes.length - used, null)
      if (n === 0) break
      used += n
      if (used > limit) {
        bytes.fill(0)
        throw new RangeError(`${path} holds more than ${String(limit)} bytes`)
      }
    }
    const secret = Buffer.alloc(used)
    bytes.copy(secret, 0, 0, used)
    bytes.fill(0)
    return secret
  } finally {
    closeSync(fd)
  }
}
