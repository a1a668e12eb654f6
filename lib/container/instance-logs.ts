// What an instance's script has written, and goes on writing.
import { constants } from "node:fs"
import { open, type FileHandle } from "node:fs/promises"
import { setTimeout as sleep } from "node:timers/promises"
import * as is from "../arguments.ts"
import { RunError } from "../errors.ts"
import type { Bytes } from "../units.ts"
import { isAlive, type InstanceState } from "./instance-state.ts"
import { MAX_LOG_FILES } from "./service.ts"

/** How {@link Instance.logs} reads. */
export interface LogOptions {
  /** Goes on until the instance has ended; default false: what is there. */
  readonly follow?: boolean | undefined
  /** Stops it. */
  readonly signal?: AbortSignal | undefined
}

/** A piece of what was written, at most 64 KiB. */
export interface LogPiece {
  readonly stream: "stdout" | "stderr"
  readonly data: Buffer
}

export const logOptions: is.Check<LogOptions> = is.shape<LogOptions>({
  follow: is.flag,
  signal: is.abortSignal,
})

const PIECE: Bytes = 64 << 10
const LOOK_MS = 100

async function openLog(file: string, { name }: InstanceState): Promise<FileHandle> {
  try {
    return await open(file, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ENOENT")
      throw new RunError("ERR_INSTANCE_NONE", `the instance ${name} has ended`, { cause })
    throw RunError.at(file, "ERR_INSTANCE_FOLDER", (cause as Error).message, { cause })
  }
}

/** One of the two that a starter may replace when they are full: what was there is FILE.1 then, and what was that FILE.2. */
class Log implements AsyncDisposable {
  readonly stream: LogPiece["stream"]
  readonly #path: string
  readonly #state: InstanceState
  /** What is to be read, the oldest first. All are open, so that none is lost. */
  #files: FileHandle[] = []
  #at: Bytes = 0

  constructor(stream: LogPiece["stream"], path: string, state: InstanceState) {
    this.stream = stream
    this.#path = path
    this.#state = state
  }

  /** The one that is written, and those before it back to `known`; undefined: back to the first that is kept. */
  async #newerThan(known: bigint | undefined): Promise<FileHandle[]> {
    const found: FileHandle[] = []
    const seen = new Set<bigint>()
    for (let number = 0; number <= MAX_LOG_FILES; number++) {
      let file: FileHandle
      try {
        file = await openLog(number === 0 ? this.#path : `${this.#path}.${number}`, this.#state)
      } catch (error) {
        // It is just being replaced, or there are no older ones.
        if (number === 0 && known === undefined) throw error
        if (number > 0) break
        continue
      }
      const { ino } = await file.stat({ bigint: true })
      if (ino === known || seen.has(ino)) {
        await file.close()
        if (ino === known) break
        continue
      }
      seen.add(ino)
      found.unshift(file)
    }
    return found
  }

  /** What there is now. */
  async *read(signal: AbortSignal | undefined): AsyncGenerator<LogPiece, void, undefined> {
    if (this.#files.length === 0) this.#files = await this.#newerThan(undefined)
    for (;;) {
      const [file] = this.#files
      if (file === undefined) return
      // Somebody has made it shorter: what comes now is new.
      const { size, ino } = await file.stat({ bigint: true })
      if (size < this.#at) this.#at = 0
      for (;;) {
        signal?.throwIfAborted()
        const { bytesRead, buffer } = await file.read(Buffer.alloc(PIECE), 0, PIECE, this.#at)
        if (bytesRead === 0) break
        this.#at += bytesRead
        yield { stream: this.stream, data: buffer.subarray(0, bytesRead) }
      }
      if (this.#files.length === 1) {
        const newer = await this.#newerThan(ino)
        if (newer.length === 0) return
        this.#files.push(...newer)
        // What was written before it was replaced, and after it was read.
        continue
      }
      this.#files.shift()
      this.#at = 0
      await file.close()
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const file of this.#files) await file.close()
  }
}

/** Standard output first, then standard error; of what comes later, as it comes. The files go with the instance, these two do not. */
export async function* logsOfInstance(
  state: InstanceState,
  { follow = false, signal }: LogOptions,
): AsyncGenerator<LogPiece, void, undefined> {
  await using out = new Log("stdout", state.logOut, state)
  await using err = new Log("stderr", state.logErr, state)
  for (;;) {
    // Asked before, so that nothing it wrote at its end is missed.
    const goesOn = follow && isAlive(state)
    for (const log of [out, err]) yield* log.read(signal)
    if (!goesOn) return
    await sleep(LOOK_MS, undefined, { signal }).catch(() => signal?.throwIfAborted())
  }
}
