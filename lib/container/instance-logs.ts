// What an instance's script has written, and goes on writing.
import { constants } from "node:fs"
import { open, type FileHandle } from "node:fs/promises"
import { setTimeout as sleep } from "node:timers/promises"
import { abortSignal, flag, shape, type Check } from "../arguments.ts"
import { RunError } from "../errors.ts"
import type { Bytes } from "../units.ts"
import { isAlive, type InstanceState } from "./instance-state.ts"

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

export const logOptions: Check<LogOptions> = shape<LogOptions>({ follow: flag, signal: abortSignal })

const PIECE: Bytes = 64 << 10
const LOOK_MS = 100

async function openLog(file: string, { name }: InstanceState): Promise<FileHandle> {
  try {
    return await open(file, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ENOENT")
      throw new RunError("ERR_INSTANCE_NONE", `the instance ${name} has ended`, { cause })
    throw new RunError("ERR_INSTANCE_FOLDER", `${file}: ${(cause as Error).message}`, { path: file, cause })
  }
}

/** Standard output first, then standard error; of what comes later, as it comes. The files go with the instance, these two do not. */
export async function* logsOfInstance(
  state: InstanceState,
  { follow = false, signal }: LogOptions,
): AsyncGenerator<LogPiece, void, undefined> {
  await using out = await openLog(state.logOut, state)
  await using err = await openLog(state.logErr, state)
  const streams: { readonly stream: LogPiece["stream"]; readonly file: FileHandle; at: Bytes }[] = [
    { stream: "stdout", file: out, at: 0 },
    { stream: "stderr", file: err, at: 0 },
  ]
  for (;;) {
    // Asked before, so that nothing it wrote at its end is missed.
    const goesOn = follow && isAlive(state)
    for (const one of streams)
      for (;;) {
        signal?.throwIfAborted()
        const { bytesRead, buffer } = await one.file.read(Buffer.alloc(PIECE), 0, PIECE, one.at)
        if (bytesRead === 0) break
        one.at += bytesRead
        yield { stream: one.stream, data: buffer.subarray(0, bytesRead) }
      }
    if (!goesOn) return
    await sleep(LOOK_MS, undefined, { signal }).catch(() => signal?.throwIfAborted())
  }
}
