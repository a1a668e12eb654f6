// Follows what a task writes, in a file that another machine may be writing to.
import { constants } from "node:fs"
import { open, type FileHandle } from "node:fs/promises"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { BatchError } from "../errors.ts"
import type { Bytes, Milliseconds } from "../units.ts"
import { finalStates, type FoundTask, type JobSet } from "./job-set.ts"
import { isFinal, statusOf } from "./status.ts"

const PIECE: Bytes = 1 << 16
/** From the one to the other while nothing comes. */
const POLL_MS: readonly [Milliseconds, Milliseconds] = [50, 1000]
/** How often Slurm is asked about a task that says nothing. */
const ASK_MS: Milliseconds = 5000

/** What a task writes to. */
export const outputNames = ["stdout.txt", "stderr.txt"] as const
/** A file that a task writes. */
export type OutputName = (typeof outputNames)[number]

/** The output of a task; undefined: there is none yet. */
export async function openOutput(
  set: JobSet,
  task: FoundTask,
  name: OutputName,
): Promise<FileHandle | undefined> {
  try {
    return await open(path.join(set.outputFolder(task), name), constants.O_RDONLY | constants.O_NOFOLLOW)
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException
    if (code === "ENOENT") return undefined
    throw new BatchError("ERR_BATCH_TASK", `${set.outputFolder(task)}/${name}: ${message}`, { cause })
  }
}

/** Says whether a task has ended: by its record, and where that says nothing for long, by Slurm. */
class Ending {
  readonly #set: JobSet
  readonly #task: FoundTask
  #asked = performance.now()

  constructor(set: JobSet, task: FoundTask) {
    this.#set = set
    this.#task = task
  }

  async isOver(signal: AbortSignal | undefined): Promise<boolean> {
    const record = await this.#set.record(this.#task)
    if (record !== undefined && finalStates.has(record.state)) return true
    if (performance.now() - this.#asked < ASK_MS) return false
    this.#asked = performance.now()
    const { job, task } = this.#task
    const status = (await statusOf(this.#set, signal)).find(
      (one) => one.job === job.id && one.task === task.id,
    )
    return status !== undefined && isFinal(status)
  }
}

/**
 * Every byte of a task's output, as it comes, until the task has ended and nothing more is there.
 *
 * @throws BatchError; the signal's reason.
 */
export async function* followOutput(
  set: JobSet,
  task: FoundTask,
  name: OutputName,
  signal?: AbortSignal,
): AsyncGenerator<Buffer, void, undefined> {
  const ending = new Ending(set, task)
  let at: Bytes = 0
  let pause = POLL_MS[0]
  let over = false
  for (;;) {
    signal?.throwIfAborted()
    let came = false
    // Opened anew each time: what a file server tells of a file is the newest then.
    const file = await openOutput(set, task, name)
    try {
      // One that was cut starts anew.
      if (file !== undefined && (await file.stat()).size < at) at = 0
      while (file !== undefined) {
        const buffer = Buffer.alloc(PIECE)
        const { bytesRead } = await file.read(buffer, 0, PIECE, at)
        if (bytesRead === 0) break
        at += bytesRead
        came = true
        yield buffer.subarray(0, bytesRead)
      }
    } finally {
      await file?.close()
    }
    // Read once more after the end was seen.
    if (over && !came) return
    over = await ending.isOver(signal)
    if (over) continue
    pause = came ? POLL_MS[0] : Math.min(POLL_MS[1], pause * 1.5)
    await sleep(pause, undefined, { signal }).catch(() => undefined)
  }
}
