// One task on its node: the image, the key, the payload, and what became of it. It is the job that Slurm started, so nothing of it may
// outlast it: payload and mounts are in namespaces that end with this process.
import { constants } from "node:fs"
import { mkdir, open, type FileHandle } from "node:fs/promises"
import { constants as system, hostname } from "node:os"
import path from "node:path"
import { randomBytes, randomInt } from "node:crypto"
import { setTimeout as sleep } from "node:timers/promises"
import { forbidDumps } from "../device/process.ts"
import { BatchError, ContainerError, KeyError, SifError, SignatureError } from "../errors.ts"
import { openPath, type Image } from "../container/image.ts"
import type { Running } from "../container/run.ts"
import { Credentials } from "../encryption/credentials.ts"
import { parseJson } from "../json.ts"
import { loadAddon } from "../native/load.ts"
import { isOrasName } from "../oci/reference.ts"
import { descriptorPath } from "../oci/temporary-file.ts"
import type { Milliseconds } from "../units.ts"
import { askBroker } from "./authenticators.ts"
import { cacheOf, fetchImage, isUnobtainable, NodeCache, openImageFile, requireUnchanged } from "./images.ts"
import { JobSet, type Attempt, type FoundTask, type ManifestImage, type RecordedState } from "./job-set.ts"
import { newPair, unseal, type ExchangePair, type KeyRequest } from "./key-exchange.ts"
import { askNode } from "./node-keys.ts"
import { jobByNumber, slurm } from "./slurm.ts"

/** What a task ends with when it was not the payload's status. Those of sysexits.h, and timeout's. */
const taskStatus = {
  image: 65,
  unobtainable: 69,
  notStarted: 71,
  keyLater: 75,
  keyRefused: 77,
  manifest: 78,
  timeout: 124,
} as const

/** How Slurm names what it has started. */
interface Place {
  readonly slurmJob: number
  readonly array: number
  readonly element: number
  readonly node: string
  readonly restarts: number
}

/** What keeps a payload from starting. */
class Kept extends Error {
  readonly status: number
  constructor(status: number, cause: unknown) {
    super(cause instanceof Error ? cause.message : String(cause), { cause })
    this.status = status
  }
}

function statusFor(error: unknown): number {
  if (error instanceof Kept) return error.status
  if (isUnobtainable(error)) return taskStatus.unobtainable
  if (error instanceof SignatureError || error instanceof SifError || error instanceof KeyError)
    return taskStatus.image
  if (error instanceof BatchError)
    return error.code === "ERR_BATCH_SET" ? taskStatus.manifest : taskStatus.image
  if (error instanceof ContainerError && /^ERR_(?:LUKS|GOCRYPTFS|OCI|TREE)_/.test(error.code))
    return taskStatus.image
  return taskStatus.notStarted
}

function placeOf(environment: NodeJS.ProcessEnv): Place {
  const number = (name: string): number => {
    const text = environment[name] ?? ""
    if (/^\d{1,10}$/.test(text)) return Number(text)
    throw new BatchError(
      "ERR_BATCH_SET",
      `${name} says nothing: this is run by Slurm, as an element of an array`,
    )
  }
  return {
    slurmJob: number("SLURM_JOB_ID"),
    array: number("SLURM_ARRAY_JOB_ID"),
    element: number("SLURM_ARRAY_TASK_ID"),
    node: environment["SLURMD_NODENAME"] ?? hostname(),
    restarts: environment["SLURM_RESTART_COUNT"] === undefined ? 0 : number("SLURM_RESTART_COUNT"),
  }
}

/** How often to ask a broker that does not answer. */
const BACK_OFF_MS: readonly [Milliseconds, Milliseconds] = [250, 10_000]
/** How often to look whether whoever started this is still there. */
const PARENT_MS: Milliseconds = 2000
/** How long Slurm has to say whether the task's time is up. */
const ANSWER_MS: Milliseconds = 5000

/**
 * What an answer amounts to. Whoever answers may be anybody, so nothing but what the broker has sealed decides anything.
 *
 * @returns The secret, or why there is none yet.
 * @throws Kept: the broker refuses.
 */
export function takeAnswer(
  line: string,
  pair: ExchangePair,
  brokerKey: string,
  request: Buffer,
): Buffer | string {
  const { status, sealed, reason } = parseJson(line) as Readonly<Record<string, unknown>>
  const bytes = Buffer.from(typeof sealed === "string" ? sealed : "", "base64")
  if (status === "refused") {
    const why = unseal(bytes, pair, brokerKey, request, "refusal")
    if (why !== undefined)
      throw new Kept(taskStatus.keyRefused, new Error(`the broker refuses the key: ${why.toString("utf8")}`))
  }
  if ((status === "later" || status === "refused") && typeof reason === "string") return reason
  const secret = status === "released" ? unseal(bytes, pair, brokerKey, request) : undefined
  return secret ?? "what answers is not the broker"
}

/** An image, and its file as it was checked. */
interface OpenedImage extends AsyncDisposable {
  readonly image: Image
  readonly file: FileHandle
  readonly state: string
}

class TaskRun {
  readonly #set: JobSet
  readonly #task: FoundTask
  readonly #place: Place
  readonly #image: ManifestImage
  #attempts: Attempt[] = []
  #running: Running | undefined
  /** By which the task is to end. */
  #ending: "timeout" | "cancelled" | undefined
  /** Settles when that is known: Slurm is asked, and most payloads have ended before it answers. */
  #toldWhy: Promise<unknown> = Promise.resolve()
  readonly #stopped = new AbortController()

  constructor(set: JobSet, task: FoundTask, place: Place) {
    this.#set = set
    this.#task = task
    this.#place = place
    this.#image = set.image(task.task)
  }

  async #record(state: RecordedState, exitCode?: number, reason?: string): Promise<void> {
    await this.#set.writeRecord(this.#task, {
      ...{ state, node: this.#place.node, updated: Date.now(), attempts: this.#attempts },
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

  /** Ends all of it when the step's daemon is gone: nobody would tell this job anything any more. */
  #watchParent(): NodeJS.Timeout {
    const parent = process.ppid
    return setInterval(() => {
      if (process.ppid === parent) return
      this.#ending = "cancelled"
      this.#stopped.abort(new Kept(128 + system.signals.SIGHUP, new Error("the step daemon is gone")))
      void this.#running?.[Symbol.asyncDispose]()
    }, PARENT_MS).unref()
  }

  /** Uses one of the places for those that fetch at once, on whichever node. */
  async #inSlot<T>(use: () => Promise<T>): Promise<T> {
    const { concurrentSourceDownloads: places } = this.#set.manifest.cluster
    for (;;) {
      this.#stopped.signal.throwIfAborted()
      for (let i = 0; i < places; i++) {
        await using slot = await open(
          this.#set.path("slots", String(i)),
          constants.O_RDWR | constants.O_CREAT,
          0o600,
        )
        if (await loadAddon().lockFile(slot.fd)) return await use()
      }
      await sleep(randomInt(100, 300))
    }
  }

  async #openFile(cache: NodeCache): Promise<FileHandle> {
    const { source } = this.#image
    if (!isOrasName(source)) return await openImageFile(source)
    const { registry } = this.#set.manifest.cluster
    const { signal } = this.#stopped
    return await cache.use(
      this.#image,
      (target) => this.#inSlot(() => fetchImage(source, target, registry, undefined, signal)),
      signal,
    )
  }

  /** Asks until there is an answer, or for as long as is waited for one. */
  async #askForKey(): Promise<Buffer> {
    const { keyWait } = this.#set.manifest.cluster
    const until = performance.now() + keyWait * 1000
    let pause = BACK_OFF_MS[0]
    let why = "there is no broker"
    let told = false
    for (;;) {
      this.#stopped.signal.throwIfAborted()
      const found = await this.#askOnce().catch((error: unknown) => {
        if (error instanceof Kept) throw error
        return (error as Error).message
      })
      if (Buffer.isBuffer(found)) return found
      why = found
      if (!told) await this.#record("waiting", undefined, why)
      told = true
      if (performance.now() >= until)
        throw new Kept(taskStatus.keyLater, new Error(`no key came within ${keyWait} s: ${why}`))
      await sleep(randomInt(Math.floor(pause / 2), pause), undefined, { signal: this.#stopped.signal }).catch(
        () => undefined,
      )
      pause = Math.min(BACK_OFF_MS[1], pause * 2)
    }
  }

  /** The secret, or why there is none yet. */
  async #askOnce(): Promise<Buffer | string> {
    const { nodeKeys, hasBroker } = this.#set.manifest.cluster
    const pair = newPair()
    const request: KeyRequest = {
      version: 1,
      set: this.#set.manifest.id,
      slurmJob: this.#place.slurmJob,
      array: this.#place.array,
      element: this.#place.element,
      node: this.#place.node,
      digest: this.#image.digest,
      publicKey: pair.publicKey.toString("base64"),
      nonce: randomBytes(16).toString("base64"),
    }
    const bytes = Buffer.from(JSON.stringify(request))
    const found = nodeKeys === undefined ? undefined : await this.#askNode(pair, bytes)
    if (Buffer.isBuffer(found)) return found
    if (!hasBroker) return found ?? "nobody has keys for this job set"
    const broker = await this.#set.broker()
    if (broker === undefined)
      return ["there is no broker: `batch unlock` starts one", ...(found === undefined ? [] : [found])].join(
        "; ",
      )
    return takeAnswer(await askBroker(this.#set, broker, bytes), pair, broker.publicKey, bytes)
  }

  /** What this node's own key opens, or why it does not. A refusal is final where there is nobody else to ask. */
  async #askNode(pair: ExchangePair, request: Buffer): Promise<Buffer | string> {
    const asked = await askNode(this.#set, this.#place.node, request)
    if ("reason" in asked) return asked.reason
    const { status, sealed, reason, publicKey } = parseJson(asked.line) as Readonly<Record<string, unknown>>
    if (status === "released" && typeof sealed === "string" && typeof publicKey === "string")
      return (
        unseal(Buffer.from(sealed, "base64"), pair, publicKey, request) ?? "the node's answer does not open"
      )
    const why = typeof reason === "string" ? reason : "the node's answer is none"
    if (status === "refused" && !this.#set.manifest.cluster.hasBroker)
      throw new Kept(taskStatus.keyRefused, new Error(`the node refuses the key: ${why}`))
    return `the node refuses the key: ${why}`
  }

  async #open(): Promise<OpenedImage> {
    const { cache: folder, cacheLimit } = this.#set.manifest.cluster
    const cache = await NodeCache.open(cacheOf(folder), cacheLimit)
    const file = await this.#openFile(cache)
    try {
      const state = await cache.check(file, this.#image, this.#stopped.signal)
      // Asked for when all else was looked at.
      const ask = (): Promise<Buffer> => this.#askForKey()
      const options = this.#image.encrypted ? { unlock: [{ passphrase: { ask } }] } : {}
      using credentials = new Credentials(options.unlock)
      const image = await openPath(descriptorPath({ file }), options, credentials, this.#image.name)
      const close = async (): Promise<void> => {
        await image.close()
        await file.close()
      }
      return { image, file, state, [Symbol.asyncDispose]: close }
    } catch (error) {
      await file.close()
      throw error
    }
  }

  async #start(image: Image): Promise<Running> {
    const { task } = this.#task
    const folder = this.#set.outputFolder(this.#task)
    await mkdir(folder, { recursive: true, mode: 0o700 })
    const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_APPEND | constants.O_NOFOLLOW
    await using out = await open(path.join(folder, "stdout.txt"), flags, 0o600)
    await using errors = await open(path.join(folder, "stderr.txt"), flags, 0o600)
    const options = {
      stdio: ["ignore", out.fd, errors.fd] as const,
      pid: true,
      env: Object.entries(task.environment).map(([name, value]) => `${name}=${value ?? ""}`),
      binds: task.binds,
      signal: this.#stopped.signal,
    }
    return await (task.action === "run" ? image.run(task.argv, options) : image.exec(task.argv, options))
  }

  /** Runs the payload as often as may be. */
  async #runAll(): Promise<{ readonly state: RecordedState; readonly exitCode: number }> {
    const { maxTaskRetries, noRetryOn } = this.#task.job
    await using opened = await this.#open()
    const { image, file, state } = opened
    for (let tries = 0; ; tries++) {
      const attempt: Attempt = {
        node: this.#place.node,
        slurmJob: this.#place.slurmJob,
        restarts: this.#place.restarts,
        started: Date.now(),
      }
      await requireUnchanged(file, state, this.#image)
      await using running = await this.#start(image)
      await requireUnchanged(file, state, this.#image)
      this.#running = running
      this.#attempts = [...this.#attempts, attempt]
      await this.#record("running")
      // A signal that came before there was anybody to get it.
      if (this.#ending !== undefined) running.kill("SIGTERM")
      const { exitCode } = await running.exited
      this.#running = undefined
      await this.#toldWhy
      this.#attempts = [...this.#attempts.slice(0, -1), { ...attempt, ended: Date.now(), exitCode }]
      if (this.#ending !== undefined) return { state: this.#ending, exitCode }
      if (exitCode === 0) return { state: "done", exitCode }
      if (tries >= maxTaskRetries || noRetryOn.includes(exitCode)) return { state: "failed", exitCode }
    }
  }

  /** @returns The status to end with. */
  async run(): Promise<number> {
    this.#attempts = [...((await this.#set.record(this.#task))?.attempts ?? [])]
    await this.#record("preparing")
    const watch = this.#watchParent()
    try {
      const { state, exitCode } = await this.#runAll()
      await this.#record(state, exitCode)
      return state === "timeout" ? taskStatus.timeout : exitCode
    } catch (error) {
      await this.#toldWhy
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
 * Runs a task of a job set, as the job that Slurm has started.
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
    const run = new TaskRun(set, { job: found, group, place: at, task }, place)
    listen((signal) => {
      run.receive(signal)
    })
    return { status: await run.run() }
  } catch (error) {
    return { status: statusFor(error), failure: error as Error }
  }
}
