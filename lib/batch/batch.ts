/**
 * Jobs on a cluster, as a program uses them.
 *
 * @packageDocumentation
 */
import { existsSync } from "node:fs"
import { hostname } from "node:os"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import {
  abortSignal,
  callback,
  count,
  flag,
  list,
  oneOf,
  path as filePath,
  required,
  shape,
  text,
  whole,
} from "../arguments.ts"
import { BatchError } from "../errors.ts"
import type { Secret } from "../key/secret.ts"
import type { Bytes, Milliseconds } from "../units.ts"
import { exchange } from "./authenticators.ts"
import { serveKeys } from "./broker.ts"
import { cacheOf, fetchImage, findImage, NodeCache } from "./images.ts"
import { isOrasName } from "../oci/reference.ts"
import { JobSet, type FoundTask } from "./job-set.ts"
import { NODE_SOCKET } from "./bundle.ts"
import { serveNodeKeys, type NodeEvent } from "./node-keys.ts"
import { keepOut } from "./ssh-access.ts"
import type { Imported } from "./shipyard.ts"
import type * as importer from "./shipyard.ts"
import { haveEnded, nodesOf, slurm } from "./slurm.ts"
import { isFinal, statusOf, type TaskStatus } from "./status.ts"
import { ownCommand } from "./own-command.ts"
import {
  ImageKeys,
  keyRows,
  openImage,
  jobScript,
  startBroker,
  submitJobs,
  writeBundle,
  type KeyOptions,
  type SubmitOptions,
} from "./submit.ts"
import { followOutput, openOutput, outputNames, type OutputName } from "./tail.ts"
import { runTask as runTaskOf, type TaskPlace } from "./task.ts"

export type { Imported } from "./shipyard.ts"
export type { SubmitOptions, KeyOptions } from "./submit.ts"
export type { TaskState, TaskStatus } from "./status.ts"
export type { Attempt, RecordedState } from "./job-set.ts"
export { outputNames, type OutputName } from "./tail.ts"
export type { TaskPlace } from "./task.ts"
export type { NodeEvent } from "./node-keys.ts"

/** From the one to the other while nothing changes. */
const POLL_MS: readonly [Milliseconds, Milliseconds] = [500, 10_000]

/** How {@link Jobs.tail} follows. */
export interface TailOptions {
  /** Default `stdout.txt`. */
  readonly output?: OutputName | undefined
  readonly signal?: AbortSignal | undefined
}

/** How {@link Jobs.status}, {@link Jobs.changes} and {@link Jobs.ended} look. */
export interface WatchOptions {
  /** Stops it. */
  readonly signal?: AbortSignal | undefined
}

/** How {@link Jobs.unlock} finds keys and starts a broker. */
export interface UnlockOptions extends KeyOptions {
  /** The name by which nodes reach this machine; default: its own. */
  readonly brokerHost?: string | undefined
  /** Default: any that is free. */
  readonly brokerPort?: number | undefined
  /** Of this machine's sshd, where tasks come through it; default 22. */
  readonly sshPort?: number | undefined
  /** The sifcrypt command here; default: this package's. */
  readonly command?: string | undefined
  /** Things worth knowing that are no errors. */
  readonly onNotice?: ((text: string) => void) | undefined
  readonly signal?: AbortSignal | undefined
}

const checkTail = shape<TailOptions>({ output: oneOf(...outputNames), signal: abortSignal })
const checkWatch = shape<WatchOptions>({ signal: abortSignal })
const checkUnlock = shape<UnlockOptions>({
  ...keyRows,
  brokerHost: text,
  brokerPort: whole(0, 65_535),
  sshPort: whole(1, 65_535),
  command: filePath,
  onNotice: callback,
  signal: abortSignal,
})
const checkPrefetch = shape<PrefetchOptions>({ command: filePath, signal: abortSignal })
const checkDelete = shape<DeleteOptions>({ force: flag })
const names = list(text)

/** How {@link Jobs.prefetch} fetches. */
export interface PrefetchOptions {
  /** The sifcrypt command on nodes; default: this package's. */
  readonly command?: string | undefined
  readonly signal?: AbortSignal | undefined
}

/** What is cancelled gets half of it from Slurm to end in (KillWait), where nothing else is configured. */
const DELETE_MS: Milliseconds = 60_000

/** How {@link Jobs.delete} deletes. */
export interface DeleteOptions {
  /** Cancel what has not ended. */
  readonly force?: boolean | undefined
}

/**
 * The jobs of one submission. Disposing it ends what follows them here; the jobs go on.
 */
export class Jobs implements AsyncDisposable {
  readonly #set: JobSet
  readonly #closed = new AbortController()

  /** @internal Use {@link submit} or {@link open}. */
  constructor(set: JobSet) {
    this.#set = set
  }

  /** The folder of the job set. */
  get folder(): string {
    return this.#set.folder
  }

  /** As `JOB/TASK`, in the order of the configuration; those that others depend on come before them. */
  get tasks(): readonly string[] {
    return [...this.#set.tasks()].map(({ job, task }) => `${job.id}/${task.id}`)
  }

  #signal(signal: AbortSignal | undefined): AbortSignal {
    return signal === undefined ? this.#closed.signal : AbortSignal.any([signal, this.#closed.signal])
  }

  /** What became of each task so far. */
  async status(options: WatchOptions = {}): Promise<TaskStatus[]> {
    const { signal } = checkWatch(options, "options")
    return await statusOf(this.#set, this.#signal(signal))
  }

  /** Each task whenever its state is another, until all have ended; at first, every one. */
  async *changes(options: WatchOptions = {}): AsyncGenerator<TaskStatus, void, undefined> {
    const signal = this.#signal(checkWatch(options, "options").signal)
    const seen = new Map<string, string>()
    for (let pause = POLL_MS[0]; ;) {
      const started = performance.now()
      const all = await statusOf(this.#set, signal)
      const took = performance.now() - started
      let changed = false
      for (const one of all) {
        const name = `${one.job}/${one.task}`
        const state = `${one.state} ${one.attempts.length}`
        if (seen.get(name) === state) continue
        seen.set(name, state)
        changed = true
        yield one
      }
      if (all.every(isFinal)) return
      pause = changed ? POLL_MS[0] : Math.min(POLL_MS[1], pause * 1.1)
      // Looking is not all that is done.
      await sleep(Math.max(pause, 2 * took), undefined, { signal }).catch(() => undefined)
      signal.throwIfAborted()
    }
  }

  /** Waits until every task has ended. */
  async ended(options: WatchOptions = {}): Promise<TaskStatus[]> {
    const last = new Map<string, TaskStatus>()
    for await (const one of this.changes(options)) last.set(`${one.job}/${one.task}`, one)
    return [...last.values()]
  }

  /**
   * What a task writes, as it comes, until it has ended.
   *
   * @param task - `JOB/TASK`, or the task where one job has it.
   */
  tail(task: string, options: TailOptions = {}): AsyncGenerator<Buffer, void, undefined> {
    const { output = "stdout.txt", signal } = checkTail(options, "options")
    return followOutput(this.#set, this.#set.find(text(task, "task")), output, this.#signal(signal))
  }

  /** What a task has written so far; undefined: nothing was opened yet. */
  async log(task: string, output: OutputName = "stdout.txt"): Promise<Buffer | undefined> {
    const found = this.#set.find(text(task, "task"))
    await using file = await openOutput(this.#set, found, oneOf(...outputNames)(output, "output"))
    return await file?.readFile()
  }

  async #slurmNames(tasks: readonly FoundTask[] | undefined): Promise<string[]> {
    const submitted = await this.#set.submitted()
    if (tasks === undefined) return submitted.arrays.map(({ array }) => String(array))
    return tasks.flatMap((task) => this.#set.elementOf(task, submitted) ?? [])
  }

  /** Cancels tasks, or all. */
  async cancel(tasks?: readonly string[]): Promise<void> {
    const found = tasks === undefined ? undefined : names(tasks, "tasks").map((name) => this.#set.find(name))
    const jobs = await this.#slurmNames(found)
    if (jobs.length > 0) await slurm("scancel", ["--quiet", ...jobs])
  }

  /**
   * Opens the images again and starts a broker, after the first was lost, or makes a new bundle for nodes that have keys of their own. What
   * is there is replaced.
   *
   * @throws KeyError; BatchError; SignatureError.
   */
  async unlock(given: UnlockOptions = {}): Promise<void> {
    const options = checkUnlock(given, "options")
    const { signal, onNotice } = options
    const { manifest } = this.#set
    using keys = new ImageKeys(options)
    const secrets = new Map<string, Secret>()
    try {
      for (const image of manifest.images.filter(({ encrypted }) => encrypted)) {
        const cache = (): Promise<NodeCache> =>
          NodeCache.open(cacheOf(undefined), manifest.cluster.cacheLimit)
        await using found = await findImage(image.source, cache, manifest.cluster.registry, onNotice, signal)
        if (found.digest !== image.digest)
          throw new BatchError(
            "ERR_BATCH_IMAGE",
            `${image.source}: it is not the image that was submitted any more`,
          )
        const secret = await openImage(found, image, keys, signal)
        if (secret !== undefined) secrets.set(image.digest, secret)
      }
      const { brokerHost, brokerPort = 0, sshPort = 22 } = options
      const cluster = { brokerPort, sshPort, ...(brokerHost === undefined ? {} : { brokerHost }) }
      await writeBundle(this.#set, secrets, signal)
      if (manifest.cluster.hasBroker)
        await startBroker(this.#set, secrets, cluster, ownCommand(options.command))
    } finally {
      for (const secret of secrets.values()) secret.wipe()
    }
  }

  /**
   * Has every node of the partition fetch the images, each in a job of its own.
   *
   * @returns The jobs' numbers.
   */
  async prefetch(given: PrefetchOptions = {}): Promise<number[]> {
    const { command, signal } = checkPrefetch(given, "options")
    const { manifestDigest, manifest } = this.#set
    const { partition } = manifest.cluster
    const where = partition === undefined ? [] : [`--partition=${partition}`]
    const nodes = await nodesOf(partition, ["--responding"], signal)
    const input = jobScript([
      ownCommand(command),
      "batch",
      "fetch",
      this.#set.path("manifest.json"),
      manifestDigest,
    ])
    const jobs: number[] = []
    for (const node of nodes) {
      const args = [
        ...["--parsable", `--nodelist=${node}`, "--nodes=1", "--time=60", "--input=/dev/null", ...where],
        "--export=NIL",
        `--chdir=${manifest.cwd}`,
        `--output=${this.#set.path("log", "fetch-%N.txt")}`,
        "--job-name=sifcrypt-fetch",
      ]
      jobs.push(Number.parseInt(await slurm("sbatch", args, { input, signal }), 10))
    }
    return jobs
  }

  /**
   * Removes the job set's folder with all its output.
   *
   * @throws BatchError `ERR_BATCH_SET` where a task has not ended, without `force`.
   */
  async delete(options: DeleteOptions = {}): Promise<void> {
    const { force = false } = checkDelete(options, "options")
    const own = new Set((await this.#set.submitted()).arrays.map(({ array }) => array))
    if (!(await haveEnded(own, 0))) {
      if (force) await this.cancel()
      // Until then they write into it.
      if (!force || !(await haveEnded(own, DELETE_MS)))
        throw new BatchError("ERR_BATCH_SET", `${this.folder}: some of its tasks have not ended`, {
          path: this.folder,
        })
    }
    // A broker that was lost took nothing with it.
    if (this.#set.manifest.cluster.authenticator === "ssh") await keepOut(this.#set)
    await this.#set.remove()
  }

  /** Ends what follows the jobs here. */
  close(): Promise<void> {
    this.#closed.abort()
    return Promise.resolve()
  }

  /** As `close`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}

/**
 * Submits the jobs of a configuration.
 *
 * @throws BatchError; KeyError; SignatureError; OciError; EnvironmentError; the signal's reason.
 */
export async function submit(options: SubmitOptions): Promise<Jobs> {
  return new Jobs(await submitJobs(options))
}

/**
 * The jobs of an earlier submission.
 *
 * @param folder - Of the job set.
 * @throws BatchError `ERR_BATCH_SET`.
 */
export async function open(folder: string): Promise<Jobs> {
  return new Jobs(await JobSet.open(filePath(folder, "folder")))
}

// A function of its own: where TypeScript translates `using` it forgets to name the compiled file.
const shipyard = (): Promise<typeof importer> => import("./shipyard.ts")

/**
 * A configuration made of those of Batch Shipyard, `config.yaml` and `jobs.yaml` in a folder.
 *
 * @throws BatchError `ERR_BATCH_CONFIG`.
 */
export async function importConfiguration(folder: string): Promise<Imported> {
  filePath(folder, "folder")
  return await (await shipyard()).importShipyard(folder)
}

/** What {@link prune} removes. */
export interface PruneOptions {
  /** The cache; default: as a configuration without `cache` has it. */
  readonly cache?: string | undefined
  /** Bytes that may stay; default 0. */
  readonly limit?: Bytes | undefined
}

const checkPrune = shape<PruneOptions>({ cache: filePath, limit: count })

/** Removes images from the cache of this machine, those that were not used for longest first; none that is in use. */
export async function prune(
  given: PruneOptions = {},
): Promise<{ readonly digest: string; readonly size: Bytes }[]> {
  const { cache, limit = 0 } = checkPrune(given, "options")
  const folder = cacheOf(cache)
  // Nothing is made to be emptied.
  return existsSync(folder) ? await (await NodeCache.open(folder, limit)).shrink(limit) : []
}

/** How the broker of a job set serves. */
export interface BrokerOptions {
  readonly host?: string | undefined
  readonly port?: number | undefined
  readonly sshPort?: number | undefined
  /** Tasks can ask from here on. */
  readonly onReady: () => Promise<void> | void
  readonly signal?: AbortSignal | undefined
}

const checkBroker = shape<BrokerOptions>({
  host: text,
  port: whole(0, 65_535),
  sshPort: whole(1, 65_535),
  onReady: required(callback),
  signal: abortSignal,
})

/** @internal The broker of a job set, whose secrets come from standard input. It returns when the set is done. */
export async function serve(folder: string, given: BrokerOptions): Promise<void> {
  filePath(folder, "folder")
  const { port = 0, sshPort = 22, ...options } = checkBroker(given, "options")
  const set = await JobSet.open(folder)
  await serveKeys({ ...options, set, secretsFd: 0, port, sshPort })
}

/** How a node's own key is served. */
export interface NodeKeyOptions {
  /** Files with private keys of this node: several while one takes another's place. */
  readonly keys: readonly string[]
  /** The node, as Slurm calls it; default: this machine's name up to its first dot. */
  readonly node?: string | undefined
  /** Where tasks ask; default `/run/sifcrypt-node/socket`. */
  readonly socket?: string | undefined
  /** Tasks can ask from here on. */
  readonly onReady?: (() => void) | undefined
  /** Told of every release and every refusal. */
  readonly onEvent?: ((event: NodeEvent) => void) | undefined
  readonly signal?: AbortSignal | undefined
}

const checkNodeKeys = shape<NodeKeyOptions>({
  keys: required(list(filePath)),
  node: text,
  socket: filePath,
  onReady: callback,
  onEvent: callback,
  signal: abortSignal,
})

/**
 * Opens bundles of job sets for tasks on this node, with a key of the node's own, until the signal fires. For a service of the node's, as root
 * or a user of its own.
 *
 * @throws BatchError `ERR_BATCH_KEY`; KeyError.
 */
export async function serveNode(given: NodeKeyOptions): Promise<void> {
  const { keys, node, socket = NODE_SOCKET, onReady, onEvent, signal } = checkNodeKeys(given, "options")
  if (keys.length === 0) throw new RangeError("options.keys is empty")
  await serveNodeKeys({
    ...{ keys, socket, signal, node: node ?? hostname().split(".")[0] ?? "" },
    onReady: () => onReady?.(),
    log: (event) => onEvent?.(event),
  })
}

const checkPlace = shape<TaskPlace>({
  manifest: required(filePath),
  digest: required(text),
  job: required(count),
  group: required(count),
  first: required(count),
})

/** @internal A task on its node. */
export async function runTask(
  place: TaskPlace,
  listen: (receive: (signal: NodeJS.Signals) => void) => void,
): Promise<{ readonly status: number; readonly failure?: Error }> {
  const checked = checkPlace(place, "place")
  callback(listen, "listen")
  return await runTaskOf(checked, listen)
}

/** @internal Hands a request from standard input to the broker on this machine, for who came through sshd. */
export async function relay(folder: string, line: string): Promise<string> {
  filePath(folder, "folder")
  text(line, "line")
  const set = await JobSet.open(folder)
  const place = await set.broker()
  if (place?.ssh === undefined) return JSON.stringify({ status: "later", reason: "there is no broker" })
  return await exchange({ path: place.ssh.socket }, line)
}

/** @internal Fetches the images of a set to this node. */
export async function fetch(manifest: string, digest: string, signal?: AbortSignal): Promise<void> {
  filePath(manifest, "manifest")
  text(digest, "digest")
  const set = await JobSet.open(path.dirname(manifest), digest)
  const { cache: folder, cacheLimit, registry } = set.manifest.cluster
  const cache = await NodeCache.open(cacheOf(folder), cacheLimit)
  for (const image of set.manifest.images.filter(({ source }) => isOrasName(source))) {
    const file = await cache.use(
      image,
      (target) => fetchImage(image.source, target, registry, undefined, signal),
      signal,
    )
    await file.close()
  }
}
