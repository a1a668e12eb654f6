// A task whose payload is several processes, its ranks: the job starts them as one step of Slurm's, each as a process of this command, and
// each is one in the container that those of its node share. How the first one failed is how the task did.
import { spawn, type ChildProcess } from "node:child_process"
import { constants as system } from "node:os"
import { callerEnvironment } from "../caller-environment.ts"
import type { Running } from "../container/run.ts"
import { EnvironmentError } from "../errors.ts"
import type { Ranks } from "./configuration.ts"
import { ranksOf, type FoundTask, type JobSet, type RecordedState } from "./job-set.ts"
import { ownCommand, taskCommand } from "./own-command.ts"
import { askFirstRank, KeyGiver, newStepWord, STEP_VARIABLE } from "./rank-key.ts"
import type { Milliseconds } from "../units.ts"
import { slurm } from "./slurm.ts"
import {
  Kept,
  numberIn,
  statusFor,
  stepDaemonGone,
  TaskImage,
  watchParent,
  type OpenedImage,
  type Outputs,
  type Place,
  type Started,
} from "./task-image.ts"

/** What sbatch is told of a task's ranks. */
export function rankArguments({ nodes, perNode }: Ranks): readonly string[] {
  return [`--nodes=${nodes}`, `--ntasks-per-node=${perNode}`]
}

/** How often to look whether a rank has failed, and how long srun has from then on: of a node whose step daemon is gone it hears nothing. */
const LOOK_MS: Milliseconds = 5000
/** How long srun has to have ranks ended. */
const END_MS: Milliseconds = 5000

/** A step, and what it is of. */
interface StepOptions {
  readonly set: JobSet
  readonly task: FoundTask
  readonly place: Place
  readonly ranks: Ranks
}

/** How srun starts this very task's command again, once for each rank. */
function srunArguments({ set, task, place, ranks }: StepOptions): readonly string[] {
  const { nodes, perNode, mpi } = ranks
  const { job, group } = task
  const cpus = job.groups[group]?.resources.cpus
  const where = { set, group, job: set.manifest.jobs.indexOf(job), first: task.place - place.element }
  return [
    ...rankArguments(ranks),
    `--ntasks=${nodes * perNode}`,
    // Not every version takes it from the job.
    ...(cpus === undefined ? [] : [`--cpus-per-task=${cpus}`]),
    ...(mpi === undefined ? [] : [`--mpi=${mpi}`]),
    ...["--export=ALL", "--input=none", "--quiet", "--kill-on-bad-exit=1", "--"],
    ...taskCommand(ownCommand(undefined), where),
  ]
}

/** All ranks of a task, which end with this process's srun. */
class Step implements Started {
  readonly exited: Promise<{ readonly exitCode: number }>
  readonly #child: ChildProcess
  readonly #element: string
  #hasFailed = false
  #isTold = false

  constructor(child: ChildProcess, { set, task, place }: StepOptions) {
    this.#child = child
    this.#element = `${place.array}_${place.element}`
    this.exited = this.#end(set, task)
    const look = setInterval(() => {
      this.#look(set, task).catch(() => undefined) // a folder that cannot be read now can be later
    }, LOOK_MS)
    // Nobody may be waiting for it.
    this.exited
      .catch(() => undefined)
      .finally(() => {
        clearInterval(look)
      })
  }

  async #look(set: JobSet, task: FoundTask): Promise<void> {
    // Each rank has the time that it was given.
    if (this.#isTold) return
    if (this.#hasFailed) this.#stop()
    this.#hasFailed = await set.hasRankEnd(task)
  }

  /** Has the ranks killed; what srun does not get done, Slurm does when srun is gone. */
  #stop(): void {
    this.#child.kill("SIGTERM")
    setTimeout(() => this.#child.kill("SIGKILL"), END_MS).unref()
  }

  async #end(set: JobSet, task: FoundTask): Promise<{ readonly exitCode: number }> {
    const [code, signal] = await new Promise<[number | null, NodeJS.Signals | null]>((resolve, reject) => {
      this.#child.once("exit", (...how) => {
        resolve(how)
      })
      this.#child.once("error", (cause) => {
        const what = "srun cannot be run: it is one of Slurm's commands (package slurm-client)"
        reject(new EnvironmentError("ERR_ENV_NO_PROGRAM", what, { cause }))
      })
    })
    const first = await set.takeRankEnd(task)
    if (first?.reason !== undefined)
      throw new Kept(first.exitCode, new Error(`rank ${first.rank} on ${first.node}: ${first.reason}`))
    return { exitCode: first?.exitCode ?? code ?? 128 + system.signals[signal ?? "SIGKILL"] }
  }

  /** srun itself would have the ranks killed at once. */
  kill(signal: NodeJS.Signals): void {
    this.#isTold = true
    slurm("scancel", [`--signal=${signal.slice("SIG".length)}`, this.#element]).catch(() => {
      // The job is ending already, or nobody answers: Slurm ends it all the same.
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return
    this.#stop()
    await this.exited.catch(() => undefined)
  }
}

/** Starts the ranks of a task. */
export async function startStep(step: StepOptions, stdio: Outputs): Promise<Started> {
  await step.set.takeRankEnd(step.task)
  const env = { ...callerEnvironment(), [STEP_VARIABLE]: newStepWord() }
  return new Step(spawn("srun", srunArguments(step), { stdio: [...stdio], env }), step)
}

/** One of the ranks of a task. */
export class RankRun {
  readonly #set: JobSet
  readonly #task: FoundTask
  readonly #place: Place
  readonly #word: Buffer
  readonly #rank = numberIn(process.env, "SLURM_PROCID")
  /** Of those on this node. */
  readonly #isFirst = numberIn(process.env, "SLURM_LOCALID") === 0
  readonly #stopped = new AbortController()
  #running: Running | undefined
  #isTold = false
  #hasWaited = false

  /** @param word - What the ranks of the step have in common. */
  constructor(set: JobSet, task: FoundTask, place: Place, word: Buffer) {
    this.#set = set
    this.#task = task
    this.#place = place
    this.#word = word
  }

  /** A signal of Slurm's. */
  receive(signal: NodeJS.Signals): void {
    this.#isTold = true
    if (this.#running === undefined)
      this.#stopped.abort(new Kept(128 + system.signals[signal], new Error(`ended by ${signal}`)))
    else this.#running.kill(signal)
  }

  /** The job itself has written down everything else. */
  async #record(state: RecordedState, reason?: string): Promise<void> {
    const record = await this.#set.record(this.#task)
    if (record === undefined) return
    await this.#set.writeRecord(this.#task, { ...record, state, reason, updated: Date.now() })
  }

  /** The image, opened with the key that the first rank of this node has asked for. */
  async #open(giver: KeyGiver | undefined): Promise<OpenedImage> {
    const { signal } = this.#stopped
    const about = this.#set.image(this.#task.task)
    const onWait = async (why: string): Promise<void> => {
      this.#hasWaited = true
      await this.#record("waiting", why)
    }
    const image = new TaskImage(this.#set, this.#place, about, { signal, onWait })
    if (this.#isFirst) {
      const opened = await image.open(async () => {
        const secret = await image.askForKey()
        giver?.give(secret)
        return secret
      })
      if (!about.encrypted) giver?.give(undefined)
      return opened
    }
    // By then the image is there, and was looked at.
    const secret = await askFirstRank(this.#word, this.#place.node, signal)
    try {
      return await image.open(() => Promise.resolve(secret))
    } finally {
      secret.fill(0)
    }
  }

  async #runPayload(): Promise<number> {
    const { signal } = this.#stopped
    const { perNode = 1 } = ranksOf(this.#task) ?? {}
    await using giver =
      this.#isFirst && perNode > 1
        ? await KeyGiver.listen(this.#word, this.#place.node, perNode - 1)
        : undefined
    await using opened = await this.#open(giver)
    // What Slurm speaks with each rank through; its number is in the payload's environment.
    const manager = process.env["PMI_FD"]
    await using running = await opened.start(this.#task.task, {
      ...{ signal, stdio: ["ignore", 1, 2] },
      // One mount for all of them on this node.
      sharens: true,
      preserveFds: manager !== undefined && /^\d{1,4}$/.test(manager) ? [Number(manager)] : [],
    })
    this.#running = running
    if (this.#rank === 0 || this.#hasWaited) await this.#record("running")
    const { exitCode } = await running.exited
    // Others may have begun so late that they have not asked yet.
    if (exitCode === 0) await giver?.served(signal)
    return exitCode
  }

  /** @returns The status to end with. */
  async run(): Promise<number> {
    const about = { rank: this.#rank, node: this.#place.node }
    const watch = watchParent(() => {
      this.#stopped.abort(stepDaemonGone())
      void this.#running?.[Symbol.asyncDispose]()
    })
    try {
      const exitCode = await this.#runPayload()
      if (exitCode !== 0) await this.#set.writeRankEnd(this.#task, { ...about, exitCode })
      // srun has the others killed where one fails; those that were all told to end have their time.
      return this.#isTold ? 0 : exitCode
    } catch (error) {
      const exitCode = statusFor(error)
      await this.#set.writeRankEnd(this.#task, { ...about, exitCode, reason: (error as Error).message })
      throw new Kept(exitCode, error)
    } finally {
      clearInterval(watch)
    }
  }
}
