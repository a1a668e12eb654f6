// Where the bytes of keys and passphrases come from: files, descriptors, a command. Each is read once and bounded.
import { createHmac, randomBytes } from "node:crypto"
import { close, read, readdirSync, readFileSync, readlinkSync } from "node:fs"
import { promisify } from "node:util"
import * as is from "../arguments.ts"
import { readBounded, TooLarge } from "../bounded-file.ts"
import { programEnvironment } from "../caller-environment.ts"
import { KeyError } from "../errors.ts"
import { allocateSecret } from "../key/secret.ts"
import { ProgramFailure, runProgram } from "../outside-program.ts"
import type { Bytes } from "../units.ts"

/** Where the bytes of a key file, a passphrase or a password come from. */
export type SecretSource =
  | { readonly file: string }
  /** A descriptor of this process: 0, 3 or above. It is read to its end, once, and closed. */
  | { readonly fd: number }
  /**
   * Copied when they are needed, and an error if they have changed by then: the caller wipes its own, which {@link allocateSecret}
   * makes so that this wipes every copy, when the promise of the call has settled.
   */
  | { readonly bytes: Uint8Array }
  /**
   * For /bin/sh, as of a vault or gpg; what it writes to its standard output. Its environment is this process's without the
   * variables of ours and the peers.
   */
  | { readonly command: string }
  | {
      /**
       * Asked when it is needed.
       *
       * @param what - What it is for: a file, a descriptor, a variable.
       * @param attempt - 1, or more when the answer before was wrong.
       * @returns The bytes, which are wiped then; undefined: there is nobody to ask.
       */
      readonly ask: (what: string, attempt: number) => Promise<Uint8Array | undefined>
    }

type Form<K extends string> = Extract<SecretSource, Readonly<Record<K, unknown>>>

/** Of this process alone, so that no mark of a passphrase helps to guess it. */
let markKey: Buffer | undefined

function markOf(secret: Uint8Array): Buffer {
  return createHmac("sha256", (markKey ??= randomBytes(32)))
    .update(secret)
    .digest()
}

/** What bytes were when they were given. */
const marks = new WeakMap<SecretSource, Buffer>()

const bytesForm = is.shape<Form<"bytes">>({ bytes: is.required(is.bytes) })

/**
 * Bytes are read long after they are looked at, when all that can refuse has had its say. Whoever wipes them too early (`return build(…)`
 * before a `finally` that wipes) would encrypt for as many NUL bytes.
 */
const marked: is.Check<SecretSource> = (value, name) => {
  const source = bytesForm(value, name)
  marks.set(source, markOf(source.bytes))
  return source
}

/** A copy of what was given. */
function copyOfGiven(source: Form<"bytes">, what: string): Buffer {
  const copy = copyOf(source.bytes)
  const mark = marks.get(source)
  if (mark === undefined || mark.equals(markOf(copy))) return copy
  copy.fill(0)
  throw is.invalidValue(`${what}: its bytes were wiped or changed before the promise of the call had settled`)
}

export const secretSource: is.Check<SecretSource> = is.variants<SecretSource>({
  file: is.shape<Form<"file">>({ file: is.required(is.path) }),
  fd: is.shape<Form<"fd">>({ fd: is.required(is.count) }),
  bytes: marked,
  command: is.shape<Form<"command">>({ command: is.required(is.path) }),
  ask: is.shape<Form<"ask">>({ ask: is.required(is.callback) }),
})

/** Gives the next bytes; 0 at the end. */
type Fill = (buffer: Buffer, offset: number) => Promise<number>

/** Everything that `fill` gives, in a buffer of its own size. */
async function readAll(fill: Fill, limit: Bytes, origin: string): Promise<Buffer> {
  const buffer = allocateSecret(limit + 1)
  try {
    let used = 0
    for (;;) {
      const count = await fill(buffer, used)
      if (count === 0) break
      used += count
      if (used === buffer.length) throw new KeyError("ERR_KEY_FORMAT", `${origin}: more than ${limit} bytes`)
    }
    const bytes = allocateSecret(used)
    buffer.copy(bytes, 0, 0, used)
    return bytes
  } finally {
    buffer.fill(0)
  }
}

/**
 * All of a small file. The caller wipes it.
 *
 * @param signal - Ends the wait for a pipe.
 * @throws KeyError `ERR_KEY_MISSING` when it cannot be read, `ERR_KEY_FORMAT` when it is larger than `limit`.
 */
export async function readSecretFile(path: string, limit: Bytes, signal?: AbortSignal): Promise<Buffer> {
  try {
    return await readBounded(path, limit, { signal })
  } catch (cause) {
    signal?.throwIfAborted()
    if (cause instanceof TooLarge) throw KeyError.at(path, "ERR_KEY_FORMAT", cause.message, { cause })
    const { code, message } = cause as NodeJS.ErrnoException
    const why = code === "ENOENT" ? "there is no such file" : message
    throw new KeyError("ERR_KEY_MISSING", `cannot read the key file ${path}: ${why}`, { path, cause })
  }
}

/** What a descriptor leads to, as /proc tells; undefined: it is not open. */
function targetOf(fd: number): string | undefined {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`)
  } catch {
    return undefined
  }
}

/** Is a descriptor of this process the end of this pipe that is written to? Then its end would never come. */
function isWrittenHere(pipe: string): boolean {
  return readdirSync("/proc/self/fd").some((name) => {
    if (targetOf(Number(name)) !== pipe) return false
    const flags = /^flags:\s*([0-7]+)/m.exec(readFileSync(`/proc/self/fdinfo/${name}`, "latin1"))?.[1]
    return (Number.parseInt(flags ?? "0", 8) & 3) === 1
  })
}

/**
 * All that a descriptor gives, which is closed then. The caller wipes it.
 *
 * @throws RangeError for 1, 2 and what is no descriptor; KeyError `ERR_KEY_MISSING` when it cannot be read,
 * `ERR_KEY_FORMAT` when more than `limit` bytes come.
 */
export async function readDescriptor(fd: number, limit: Bytes): Promise<Buffer> {
  if (!Number.isInteger(fd) || fd < 0 || fd === 1 || fd === 2)
    throw new RangeError(`a secret is read from descriptor 0, 3 or above, not from ${fd}`)
  const origin = `descriptor ${fd}`
  const refuse = (why: string, cause?: unknown): KeyError =>
    new KeyError("ERR_KEY_MISSING", `cannot read ${origin}: ${why}`, { cause })
  const target = targetOf(fd)
  if (target === undefined) throw refuse("it is not open")
  // Node's own descriptors take the numbers that the caller left free.
  if (target.startsWith("anon_inode:") || (target.startsWith("pipe:") && isWrittenHere(target)))
    throw refuse("it was not passed to this process")
  const readOnce = promisify(read)
  try {
    const fill: Fill = async (buffer, offset) =>
      (await readOnce(fd, buffer, offset, buffer.length - offset, null)).bytesRead
    return await readAll(fill, limit, origin)
  } catch (cause) {
    if (cause instanceof KeyError) throw cause
    throw refuse(cause instanceof Error ? cause.message : String(cause), cause)
  } finally {
    // Standard input stays: what was read from it is at its end, and a program takes its number for granted.
    if (fd !== 0) await promisify(close)(fd)
  }
}

/**
 * What a shell command writes to its standard output. It gets no standard input and no variable of ours or the peers'; its
 * standard error and the terminal are the caller's. The caller wipes the result.
 *
 * @param signal - Ends the command.
 * @throws KeyError `ERR_KEY_COMMAND` when it fails, `ERR_KEY_FORMAT` when it writes more than `limit` bytes.
 */
export async function readCommand(command: string, limit: Bytes, signal?: AbortSignal): Promise<Buffer> {
  try {
    const env = programEnvironment()
    const output = await runProgram("/bin/sh", ["-c", command], { env, limit, errors: "inherit", signal })
    const bytes = copyOf(output)
    output.fill(0)
    return bytes
  } catch (cause) {
    if (!(cause instanceof ProgramFailure)) throw cause
    if (cause.why === "size")
      throw new KeyError("ERR_KEY_FORMAT", `the output of the key command: more than ${limit} bytes`)
    throw new KeyError(
      "ERR_KEY_COMMAND",
      cause.why === undefined
        ? `the key command failed: it ${cause.message}`
        : "the key command cannot be started",
      { cause },
    )
  }
}

/** A secret in a buffer of our own. */
export function copyOf(secret: Uint8Array): Buffer {
  const copy = allocateSecret(secret.length)
  copy.set(secret)
  return copy
}

/** Line ends at its end. */
const LINE_END_SIZE: Bytes = 2

/** Without the line end at the very end of a passphrase's file. */
function withoutLineEnd(file: Buffer): Buffer {
  const last = file.at(-1) === 0x0a ? (file.at(-2) === 0x0d ? 2 : 1) : 0
  return file.subarray(0, file.length - last)
}

/** What is read of a source. */
export interface Reading {
  readonly limit: Bytes
  /** What to call it in messages where the source has no name of its own. */
  readonly what: string
  /** Somebody typed it or an editor saved it: where it comes with a line end, that is not part of it. */
  readonly text?: boolean
  readonly attempt?: number
  readonly signal?: AbortSignal | undefined
}

/** All that a source gives, which the caller wipes, and what to call it; undefined: there is nobody to ask. */
export async function readSecret(
  source: SecretSource,
  { limit, what, text = false, attempt = 1, signal }: Reading,
): Promise<{ readonly bytes: Buffer; readonly origin: string } | undefined> {
  if ("bytes" in source) return { bytes: copyOfGiven(source, what), origin: what }
  if ("ask" in source) {
    const answer: unknown = await source.ask(what, attempt)
    if (answer === undefined) return undefined
    const typed = is.bytes(answer, `the answer for ${what}`)
    const copy = copyOf(typed)
    typed.fill(0)
    return { bytes: copy, origin: what }
  }
  const most = text ? limit + LINE_END_SIZE : limit
  let read: Buffer
  let origin: string
  if ("file" in source) {
    origin = source.file
    read = await readSecretFile(source.file, most, signal)
  } else if ("fd" in source) {
    origin = `descriptor ${source.fd}`
    read = await readDescriptor(source.fd, most)
  } else {
    origin = "the output of the key command"
    read = await readCommand(source.command, most, signal)
  }
  return { bytes: text ? withoutLineEnd(read) : read, origin }
}
