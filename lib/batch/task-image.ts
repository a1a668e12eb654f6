// An image on the node that it is to run on: fetched once, looked at, and opened with a key that is asked for when all else was right.
import { constants } from "node:fs"
import { open, type FileHandle } from "node:fs/promises"
import { constants as system, hostname } from "node:os"
import { randomBytes, randomInt } from "node:crypto"
import { setTimeout as sleep } from "node:timers/promises"
import { BatchError, ContainerError, KeyError, SifError, SignatureError } from "../errors.ts"
import { openPath, type Image } from "../container/image.ts"
import type { Running } from "../container/run.ts"
import { Credentials } from "../encryption/credentials.ts"
import { parseJson } from "../json.ts"
import { loadAddon } from "../native/load.ts"
import { isOrasName } from "../oci/reference.ts"
import { descriptorPath } from "../oci/temporary-file.ts"
import type { ExecOptions } from "../runtime/options.ts"
import type { Milliseconds } from "../units.ts"
import { askBroker } from "./authenticators.ts"
import { cacheOf, fetchImage, isUnobtainable, NodeCache, openImageFile, requireUnchanged } from "./images.ts"
import type { JobSet, ManifestImage, ManifestTask } from "./job-set.ts"
import { newPair, unseal, type ExchangePair, type KeyRequest } from "./key-exchange.ts"
import { askNode } from "./node-keys.ts"

/** What a task ends with when it was not the payload's status. Those of sysexits.h, and timeout's. */
export const taskStatus = {
  image: 65,
  unobtainable: 69,
  notStarted: 71,
  keyLater: 75,
  keyRefused: 77,
  manifest: 78,
  timeout: 124,
} as const

/** How Slurm names what it has started. */
export interface Place {
  readonly slurmJob: number
  readonly array: number
  readonly element: number
  readonly node: string
  /** All of the job's, as Slurm writes them. */
  readonly nodes: string
  readonly restarts: number
}

/** What keeps a payload from starting. */
export class Kept extends Error {
  readonly status: number
  constructor(status: number, cause: unknown) {
    super(cause instanceof Error ? cause.message : String(cause), { cause })
    this.status = status
  }
}

export function statusFor(error: unknown): number {
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

/** @throws BatchError `ERR_BATCH_SET` where Slurm has not set it. */
export function numberIn(environment: NodeJS.ProcessEnv, name: string): number {
  const text = environment[name] ?? ""
  if (/^\d{1,10}$/.test(text)) return Number(text)
  throw new BatchError(
    "ERR_BATCH_SET",
    `${name} says nothing: this is run by Slurm, as an element of an array`,
  )
}

export function placeOf(environment: NodeJS.ProcessEnv): Place {
  const number = (name: string): number => numberIn(environment, name)
  const node = environment["SLURMD_NODENAME"] ?? hostname()
  return {
    slurmJob: number("SLURM_JOB_ID"),
    array: number("SLURM_ARRAY_JOB_ID"),
    element: number("SLURM_ARRAY_TASK_ID"),
    node,
    nodes: environment["SLURM_JOB_NODELIST"] ?? node,
    restarts: environment["SLURM_RESTART_COUNT"] === undefined ? 0 : number("SLURM_RESTART_COUNT"),
  }
}

/** How often to ask a broker that does not answer. */
const BACK_OFF_MS: readonly [Milliseconds, Milliseconds] = [250, 10_000]

/** How often to look whether whoever started this is still there. */
const PARENT_MS: Milliseconds = 2000

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

/** Where what is started writes to: nothing, and files. */
export type Outputs = readonly ["ignore", number, number]

/** A payload, or all ranks of one. */
export interface Started extends AsyncDisposable {
  readonly exited: Promise<{ readonly exitCode: number }>
  kill(signal: NodeJS.Signals): unknown
}

/** An image whose file was looked at. */
export class OpenedImage implements AsyncDisposable {
  readonly #image: Image
  readonly #about: ManifestImage
  readonly #file: FileHandle
  /** As it was looked at. */
  readonly #state: string

  constructor(image: Image, about: ManifestImage, file: FileHandle, state: string) {
    this.#image = image
    this.#about = about
    this.#file = file
    this.#state = state
  }

  /** Starts a task's payload in it. */
  async start(task: ManifestTask, options: ExecOptions): Promise<Running> {
    const all: ExecOptions = {
      // Whatever ends this process ends all of it.
      pid: true,
      env: Object.entries(task.environment).map(([name, value]) => `${name}=${value ?? ""}`),
      binds: task.binds,
      ...options,
    }
    await requireUnchanged(this.#file, this.#state, this.#about)
    const image = this.#image
    const running = await (task.action === "run" ? image.run(task.argv, all) : image.exec(task.argv, all))
    try {
      await requireUnchanged(this.#file, this.#state, this.#about)
      return running
    } catch (error) {
      await running[Symbol.asyncDispose]()
      throw error
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#image.close()
    await this.#file.close()
  }
}

/** Who wants to know. */
export interface TaskImageOptions {
  readonly signal: AbortSignal
  /** Told once why there is no key yet. */
  readonly onWait: (why: string) => Promise<void>
}

export class TaskImage {
  readonly #set: JobSet
  readonly #place: Place
  readonly #image: ManifestImage
  readonly #signal: AbortSignal
  readonly #onWait: (why: string) => Promise<void>

  constructor(set: JobSet, place: Place, image: ManifestImage, { signal, onWait }: TaskImageOptions) {
    this.#set = set
    this.#place = place
    this.#image = image
    this.#signal = signal
    this.#onWait = onWait
  }

  /** Uses one of the places for those that fetch at once, on whichever node. */
  async #inSlot<T>(use: () => Promise<T>): Promise<T> {
    const { concurrentSourceDownloads: places } = this.#set.manifest.cluster
    for (;;) {
      this.#signal.throwIfAborted()
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
    const signal = this.#signal
    return await cache.use(
      this.#image,
      (target) => this.#inSlot(() => fetchImage(source, target, registry, undefined, signal)),
      signal,
    )
  }

  /** Asks until there is an answer, or for as long as is waited for one. */
  async askForKey(): Promise<Buffer> {
    const { keyWait } = this.#set.manifest.cluster
    const until = performance.now() + keyWait * 1000
    let pause = BACK_OFF_MS[0]
    let why = "there is no broker"
    let told = false
    for (;;) {
      this.#signal.throwIfAborted()
      const found = await this.#askOnce().catch((error: unknown) => {
        if (error instanceof Kept) throw error
        return (error as Error).message
      })
      if (Buffer.isBuffer(found)) return found
      why = found
      if (!told) await this.#onWait(why)
      told = true
      if (performance.now() >= until)
        throw new Kept(taskStatus.keyLater, new Error(`no key came within ${keyWait} s: ${why}`))
      await sleep(randomInt(Math.floor(pause / 2), pause), undefined, { signal: this.#signal }).catch(
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

  /**
   * @param ask - Who gives the key, when all else was looked at.
   * @throws Kept; what is wrong with the image.
   */
  async open(ask = (): Promise<Buffer> => this.askForKey()): Promise<OpenedImage> {
    const { cache: folder, cacheLimit } = this.#set.manifest.cluster
    const cache = await NodeCache.open(cacheOf(folder), cacheLimit)
    const file = await this.#openFile(cache)
    try {
      const state = await cache.check(file, this.#image, this.#signal)
      const options = this.#image.encrypted ? { unlock: [{ passphrase: { ask } }] } : {}
      using credentials = new Credentials(options.unlock)
      const image = await openPath(descriptorPath({ file }), options, credentials, this.#image.name)
      return new OpenedImage(image, this.#image, file, state)
    } catch (error) {
      await file.close()
      throw error
    }
  }
}

/** Why something ends that {@link watchParent} ends. */
export function stepDaemonGone(): Kept {
  return new Kept(128 + system.signals.SIGHUP, new Error("the step daemon is gone"))
}

/** Tells when whoever started this process is gone: nobody would tell it anything any more. */
export function watchParent(onGone: () => void): NodeJS.Timeout {
  const parent = process.ppid
  return setInterval(() => {
    if (process.ppid !== parent) onGone()
  }, PARENT_MS).unref()
}
