// What a disk may hold after a power cut: the writes of a command, as faults.c has seen them, up to each sync, of those that it syncs all, none,
// or any one more or less. Names are as they were given, in order, or not yet: file systems keep a journal of them.
import { createHash } from "node:crypto"
import type { Call } from "./faults.ts"

interface Write {
  readonly offset: number
  /** Undefined: the file gets this length. */
  readonly bytes: Buffer | undefined
}

class DiskFile {
  #synced: Buffer
  #pending: Write[] = []

  constructor(content: Buffer = Buffer.alloc(0)) {
    this.#synced = content
  }

  write(write: Write): void {
    this.#pending.push(write)
  }

  sync(): void {
    this.#synced = this.#with(this.#pending)
    this.#pending = []
  }

  #with(writes: readonly Write[]): Buffer {
    const size = writes.reduce(
      (length, { offset, bytes }) => (bytes === undefined ? offset : Math.max(length, offset + bytes.length)),
      this.#synced.length,
    )
    let content = Buffer.alloc(Math.max(size, this.#synced.length))
    this.#synced.copy(content)
    for (const { offset, bytes } of writes)
      if (bytes === undefined) content.fill(0, offset)
      else {
        if (offset + bytes.length > content.length)
          content = Buffer.concat([content, Buffer.alloc(offset + bytes.length - content.length)])
        bytes.copy(content, offset)
      }
    return content.subarray(0, size)
  }

  /** What it may hold. */
  contents(): Buffer[] {
    const pending = this.#pending
    const sets = [[], pending, ...pending.flatMap((one) => [[one], pending.filter((other) => other !== one)])]
    // A write of several pages may get to the disk in part.
    for (const one of pending)
      if (one.bytes !== undefined && one.bytes.length > 4096)
        sets.push([
          ...pending.filter((other) => other !== one),
          { offset: one.offset, bytes: one.bytes.subarray(0, 4096 - (one.offset % 4096)) },
        ])
    return sets.map((set) => this.#with(set))
  }
}

/** What a name may stand for: a file's content, or nothing. */
export interface DiskState {
  /** Before which call. */
  readonly before: Call
  readonly content: Buffer | undefined
}

/** All that may be found under a name, each once. `was` is what it was. */
export function statesOf(calls: readonly Call[], name: string, was: Buffer | undefined): DiskState[] {
  const files = new Map<string, DiskFile>()
  const fileOf = (object: string): DiskFile => {
    const found = files.get(object) ?? new DiskFile()
    files.set(object, found)
    return found
  }
  if (was !== undefined) files.set(name, new DiskFile(was))
  /** What it stands for, and what it stood for before that was given. */
  let published: readonly (DiskFile | undefined)[] = [files.get(name)]
  const states = new Map<string, DiskState>()
  const look = (before: Call): void => {
    for (const file of published)
      for (const content of file?.contents() ?? [undefined]) {
        const key = content === undefined ? "nothing" : createHash("sha256").update(content).digest("hex")
        if (!states.has(key)) states.set(key, { before, content })
      }
  }
  for (const call of calls) {
    // Until then there is more and more that the disk may have or not.
    if (call.kind === "fsync" || call.kind === "rename") look(call)
    apply(call)
  }
  const last = calls.at(-1)
  if (last !== undefined) look(last)
  return [...states.values()]

  function apply({ kind, name: call, object }: Call): void {
    if (kind === "fsync") fileOf(object).sync()
    else if (kind === "rename" && object.includes(" -> ")) {
      const [from = "", to = ""] = object.split(" -> ")
      const file = fileOf(from)
      files.set(to, file)
      if (to === name) published = [published.at(-1), file]
    } else if (kind === "unlink" && object === name) published = [published.at(-1), undefined]
    else if (kind === "write" && object.startsWith("/")) writeTo(call, object)
  }

  function writeTo(call: string, object: string): void {
    const words = object.split(" ")
    const last = (count: number): readonly string[] => words.splice(-count)
    if (call === "ftruncate") {
      const [size] = last(1).map(Number)
      fileOf(words.join(" ")).write({ offset: size ?? 0, bytes: undefined })
    } else if (call === "fallocate") {
      const [mode = 0, offset = 0, length = 0] = last(3).map(Number)
      // FALLOC_FL_PUNCH_HOLE; what only reserves changes nothing.
      if ((mode & 2) !== 0) fileOf(words.join(" ")).write({ offset, bytes: Buffer.alloc(length) })
    } else {
      const [offset, bytes = ""] = last(2)
      fileOf(words.join(" ")).write({ offset: Number(offset), bytes: Buffer.from(bytes, "hex") })
    }
  }
}
