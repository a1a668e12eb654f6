// One task on its node: the image, the key, the payload, and what became of it. It is the job that Slurm started, so nothing of it may
// outlast it: payload and mounts are in namespaces that end with this process.
import { constants } from "node:fs"
import { mkdir, open } from "node:fs/promises"
import { constants as system } from "node:os"
import path from "node:path"
import { forbidDumps } from "../device/process.ts"
import { BatchError } from "../errors.ts"
import type { Milliseconds } from "../units.ts"
import { JobSet, ranksOf, type Attempt, type FoundTask, type RecordedState } from "./job-set.ts"
import { takeStepWord } from "./rank-key.ts"
import { RankRun, startStep } from "./ranks.ts"
import { jobByNumber, slurm } from "./slurm.ts"
import {
  Kept,
  placeOf,
  statusFor,
  stepDaemonGone,
  TaskImage,
  taskStatus,
  watchParent,
  type Outputs,
  type Place,
  type Started,
} from "./task-image.ts"

/** What ends with more was ended by a signal, as shells say it. */
const SIGNALLED = 128
/** How long Slurm has to say whether the task's time is up. */
const ANSWER_MS: Milliseconds = 5000

class TaskRun {
  readonly #set: JobSet
  readonly #task: FoundTask
  readonly #place: Place
  #attempts: Attempt[] = []
  #running: Started | undefined
  /** By which the task is to end. */
  #ending: "timeout" | "cancelled" | undefined
  /** Settles when that is known: Slurm is asked, and most payloads have ended before it answers. */
  #toldWhy: Promise<unknown> = Promise.resolve()
  readonly #stopped = new AbortController()

  constructor(set: JobSet, task: FoundTask, place: Place) {
    this.#set = set
    this.#task = task
    this.#place = place
  }

  async #record(state: RecordedState, exitCode?: number, reason?: string): Promise<void> {
    await this.#set.writeRecord(this.#task, {
      ...{ state, node: this.#place.nodes, updated: Date.now(), attempts: this.#attempts },
      ...(exitCode === undefined ? {} : { exitCode }),
      ...(reason === undefined ? {} : { reason }),
      ...(this.#ending === undefined ? {} : { ending: this.#ending }),
    })
  }

  /** A signal of Slurm's: near the end of its time, or because somebody wants it to end. */
  receive(signal: NodeJS.Signals): void {
    this.#toldWhy = Promise.all([this.#toldWhy, this.#end(signal)])
  }

  async #end(signal: NodeJS.Signals): Promise<void> {
    // The payload decides how it ends, and has until Slurm's KILL; what is only being prepared is taken back.
    if (this.#running === undefined)
      this.#stopped.abort(new Kept(128 + system.signals[signal], new Error(`ended by ${signal}`)))
    else this.#running.kill(signal)
    if (this.#ending !== undefined) return
    this.#ending = "cancelled"
    // The job still runs when its time is about to end; it does not when it was cancelled.
    try {
      const job = await jobByNumber(this.#place.slurmJob, AbortSignal.timeout(ANSWER_MS))
      if (job?.state === "RUNNING" || job?.state === "TIMEOUT") this.#ending = "timeout"
      // There may be no time for more.
      if (this.#running !== undefined) await this.#record("running")
    } catch {
      // A controller that says nothing, a full disk: the payload has been told, and how it ends is recorded then.
    }
  }

  #onOrphaned(): void {
    this.#ending = "cancelled"
    this.#stopped.abort(stepDaemonGone())
    void this.#running?.[Symbol.asyncDispose]()
  }

  /** Starts the payload, or its ranks, which write to the task's files. */
  async #start(start: (stdio: Outputs) => Promise<Started>): Promise<Started> {
    const folder = this.#set.outputFolder(this.#task)
    await mkdir(folder, { recursive: true, mode: 0o700 })
    const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_APPEND | constants.O_NOFOLLOW
    await using out = await open(path.join(folder, "stdout.txt"), flags, 0o600)
    await using errors = await open(path.join(folder, "stderr.txt"), flags, 0o600)
    return await start(["ignore", out.fd, errors.fd])
  }

  /** Runs the payload as often as may be. */
  async #runAll(): Promise<{ readonly state: RecordedState; readonly exitCode: number }> {
    const { signal } = this.#stopped
    const ranks = ranksOf(this.#task)
    if (ranks !== undefined) {
      const step = { set: this.#set, task: this.#task, place: this.#place, ranks }
      // The first of them says when it runs.
      return await this.#repeat((stdio) => startStep(step, stdio), "preparing")
    }
    const { task } = this.#task
    const onWait = (why: string): Promise<void> => this.#record("waiting", undefined, why)
    const image = new TaskImage(this.#set, this.#place, this.#set.image(task), { signal, onWait })
    await using opened = await image.open()
    return await this.#repeat((stdio) => opened.start(task, { stdio, signal }), "running")
  }

  async #repeat(
    start: (stdio: Outputs) => Promise<Started>,
    state: RecordedState,
  ): Promise<{ readonly state: RecordedState; readonly exitCode: number }> {
    const { maxTaskRetries, noRetryOn } = this.#task.job
    for (let tries = 0; ; tries++) {
      const attempt: Attempt = {
        node: this.#place.nodes,
        slurmJob: this.#place.slurmJob,
        restarts: this.#place.restarts,
        started: Date.now(),
      }
      await using running = await this.#start(start)
      this.#running = running
      this.#attempts = [...this.#attempts, attempt]
      await this.#record(state)
      // A signal that came before there was anybody to get it.
      if (this.#ending !== undefined) running.kill("SIGTERM")
      const { exitCode } = await running.exited
      this.#running = undefined
      await this.#toldWhy
      if (exitCode > SIGNALLED) await this.#askWhetherEnding()
      this.#attempts = [...this.#attempts.slice(0, -1), { ...attempt, ended: Date.now(), exitCode }]
      if (this.#ending !== undefined) return { state: this.#ending, exitCode }
      if (exitCode === 0) return { state: "done", exitCode }
      if (tries >= maxTaskRetries || noRetryOn.includes(exitCode)) return { state: "failed", exitCode }
    }
  }

  /** Does Slurm have the job end? Whoever gives keys, and the payload, may hear of it before this process does. */
  async #askWhetherEnding(): Promise<void> {
    if (this.#ending !== undefined) return
    try {
      const job = await jobByNumber(this.#place.slurmJob, AbortSignal.timeout(ANSWER_MS))
      if (job?.state !== "RUNNING") this.#ending ??= job?.state === "TIMEOUT" ? "timeout" : "cancelled"
    } catch {
      // Then it is what was said.
    }
  }

  /** @returns The status to end with. */
  async run(): Promise<number> {
    this.#attempts = [...((await this.#set.record(this.#task))?.attempts ?? [])]
    await this.#record("preparing")
    const watch = watchParent(() => {
      this.#onOrphaned()
    })
    try {
      const { state, exitCode } = await this.#runAll()
      await this.#record(state, exitCode)
      return state === "timeout" ? taskStatus.timeout : exitCode
    } catch (error) {
      await this.#toldWhy
      if (statusFor(error) === taskStatus.keyRefused) await this.#askWhetherEnding()
      if (this.#ending !== undefined) {
        const status = this.#ending === "timeout" ? taskStatus.timeout : statusFor(error)
        await this.#record(this.#ending, status, (error as Error).message)
        return status
      }
      const status = statusFor(error)
      if (status === taskStatus.keyLater) {
        await this.#record("waiting", status, (error as Error).message)
        // Not a failure of its own: it waits in the queue for somebody to unlock the set.
        await slurm("scontrol", ["requeue", String(this.#place.slurmJob)])
        return status
      }
      await this.#record("failed", status, (error as Error).message)
      throw new Kept(status, error)
    } finally {
      clearInterval(watch)
    }
  }
}

/** Which task of a job set an array's first element is. */
export interface TaskPlace {
  readonly manifest: string
  readonly digest: string
  readonly job: number
  readonly group: number
  readonly first: number
}

/**
 * Runs a task of a job set, as the job that Slurm has started, or a rank of one.
 *
 * @param listen - Gets who is to be told of signals.
 * @returns What to end with.
 */
export async function runTask(
  { manifest, digest, job, group, first }: TaskPlace,
  listen: (receive: (signal: NodeJS.Signals) => void) => void,
): Promise<{ readonly status: number; readonly failure?: Error }> {
  forbidDumps()
  try {
    const place = placeOf(process.env)
    const set = await JobSet.open(path.dirname(manifest), digest)
    const found = set.manifest.jobs[job]
    const at = first + place.element
    const task = found?.groups[group]?.tasks[at]
    if (found === undefined || task === undefined)
      throw new BatchError("ERR_BATCH_SET", `${manifest}: it has no such task`, { path: manifest })
    const known: FoundTask = { job: found, group, place: at, task }
    const word = takeStepWord(process.env)
    const run = word === undefined ? new TaskRun(set, known, place) : new RankRun(set, known, place, word)
    listen((signal) => {
      run.receive(signal)
    })
    return { status: await run.run() }
  } catch (error) {
    return { status: statusFor(error), failure: error as Error }
  }
}
