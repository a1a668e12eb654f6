// A job set: a folder on storage that every node sees, its user's alone, with all that is known of one submission but the keys.
//
//   manifest.json              images with their digests, tasks, what nodes have to know; never changes
//   slurm.json                 which array of Slurm's has which tasks
//   broker.json                where the broker is, and its public key
//   bundle.json                the secrets of images, encrypted for nodes that have keys of their own
//   status/JOB/TASK.json       what became of a task; its node writes it
//   out/JOB/TASK/              stdout.txt, stderr.txt
//   log/                       what the broker and the tasks' own command say
import { createHash, randomBytes } from "node:crypto"
import { constants, type Stats } from "node:fs"
import { link, lstat, mkdir, readdir, realpath, rename, rm, writeFile } from "node:fs/promises"
import path from "node:path"
import {
  count,
  flag,
  list,
  oneOf,
  required,
  shape,
  text,
  variables,
  whole,
  type Check,
} from "../arguments.ts"
import { readBounded, TooLarge } from "../bounded-file.ts"
import { thenUndone } from "../disposal.ts"
import { BatchError } from "../errors.ts"
import { parseJson } from "../json.ts"
import { isHeld } from "../native/private-folder.ts"
import type { Bytes } from "../units.ts"
import { checkBundle, type Bundle } from "./bundle.ts"
import {
  MAX_NODES,
  MAX_RANKS,
  type AuthenticatorName,
  type Dependency,
  type NodeKeySettings,
  type Ranks,
  type RegistrySettings,
  type Resources,
} from "./configuration.ts"

/** An image as every task gets it. */
export interface ManifestImage {
  /** As the configuration names it. */
  readonly name: string
  /** `oras://…@sha256:…`, or the path of a file. */
  readonly source: string
  /** SHA-256 of the file, hexadecimal. */
  readonly digest: string
  readonly size: Bytes
  readonly encrypted: boolean
  /** Of the certificate that opens it, where the configuration names one. */
  readonly thumbprint?: string | undefined
  /** Whose signature it has to have, and the public keys, base64: a key ring, or PEM. */
  readonly signer?:
    { readonly fingerprint: string; readonly keys: string; readonly kind: "ring" | "pem" } | undefined
}

export interface ManifestTask {
  readonly id: string
  /** Place in `images`. */
  readonly image: number
  readonly action: "run" | "exec"
  readonly argv: readonly string[]
  readonly environment: Readonly<Record<string, string | undefined>>
  readonly binds: readonly string[]
}

export interface ManifestGroup {
  readonly tasks: readonly ManifestTask[]
  readonly dependsOn: readonly Dependency[]
  readonly resources: Resources
}

export interface ManifestJob {
  readonly id: string
  readonly maxTaskRetries: number
  readonly noRetryOn: readonly number[]
  readonly groups: readonly ManifestGroup[]
}

/** What nodes have to know of the cluster. */
export interface ManifestCluster {
  readonly partition?: string | undefined
  readonly cache?: string | undefined
  readonly cacheLimit: Bytes
  readonly keyWait: number
  readonly authenticator: AuthenticatorName
  /** Is there a broker, or will there be one? */
  readonly hasBroker: boolean
  /** Of nodes that open the set's bundle; they are asked before a broker. */
  readonly nodeKeys?: NodeKeySettings | undefined
  /** Of munged, where it is not at the usual place. */
  readonly mungeSocket?: string | undefined
  readonly concurrentSourceDownloads: number
  readonly registry: RegistrySettings
}

export interface Manifest {
  readonly version: 1
  readonly id: string
  readonly uid: number
  /** Milliseconds since 1970. */
  readonly created: number
  /** What the tasks start in. */
  readonly cwd: string
  readonly cluster: ManifestCluster
  readonly images: readonly ManifestImage[]
  readonly jobs: readonly ManifestJob[]
}

/** An array of Slurm's: elements from 0 on are tasks of a group, from `first` on. */
export interface SubmittedArray {
  readonly array: number
  readonly job: number
  readonly group: number
  readonly first: number
  readonly count: number
}

export interface Submitted {
  /** Nothing more will come. */
  readonly complete: boolean
  readonly arrays: readonly SubmittedArray[]
}

/** Where a broker is. */
export interface BrokerPlace {
  readonly host: string
  readonly port: number
  /** Of X25519, base64. */
  readonly publicKey: string
  readonly pid: number
  /** Where tasks come through sshd: who to be there, and the socket behind it. */
  readonly ssh?: { readonly port: number; readonly user: string; readonly socket: string } | undefined
}

/** One run of a payload, or of an attempt to start it. */
export interface Attempt {
  readonly node: string
  readonly slurmJob: number
  /** How often Slurm had started the task before. */
  readonly restarts: number
  readonly started: number
  readonly ended?: number | undefined
  readonly exitCode?: number | undefined
}

/** What becomes of a task, as its node writes it down. */
export type RecordedState = "preparing" | "waiting" | "running" | "done" | "failed" | "timeout" | "cancelled"

/** What a node says of a task. */
export interface TaskRecord {
  readonly state: RecordedState
  readonly node: string
  /** Of the payload, or of the task's own command where `reason` says what kept the payload from it. */
  readonly exitCode?: number | undefined
  readonly reason?: string | undefined
  /** It was told to end, and for what. */
  readonly ending?: "timeout" | "cancelled" | undefined
  readonly updated: number
  readonly attempts: readonly Attempt[]
}

export const finalStates: ReadonlySet<string> = new Set(["done", "failed", "timeout", "cancelled", "lost"])

const digest: Check<string> = (value, name) => {
  if (!/^[0-9a-f]{64}$/.test(text(value, name))) throw new TypeError(`${name} is no SHA-256 digest`)
  return value as string
}

/** What may be the name of a file, and no other. */
const fileName: Check<string> = (value, name) => {
  if (!/^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$/.test(text(value, name))) throw new TypeError(`${name} is no name`)
  return value as string
}

const dependency: Check<Dependency> = (value, name) => {
  const { job, group, elements } = shape<{
    job: string | undefined
    group: number | undefined
    elements: number[] | undefined
  }>({ job: text, group: count, elements: list(count) })(value, name)
  if (job !== undefined) return { job }
  return { group: count(group, `${name}.group`), elements }
}

const checkManifest: Check<Manifest> = shape<Manifest>({
  version: required(oneOf(1)),
  id: required(fileName),
  uid: required(count),
  created: required(count),
  cwd: required(text),
  cluster: required(
    shape<ManifestCluster>({
      partition: text,
      cache: text,
      cacheLimit: required(count),
      keyWait: required(count),
      authenticator: required(oneOf("munge", "ssh")),
      hasBroker: required(flag),
      nodeKeys: shape<NodeKeySettings>({
        certificates: required(text),
        socket: required(text),
        lifetime: required(count),
      }),
      mungeSocket: text,
      concurrentSourceDownloads: required(count),
      registry: required(shape<RegistrySettings>({ authFile: text, certFolder: text, noHttps: flag })),
    }),
  ),
  images: required(
    list(
      shape<ManifestImage>({
        name: required(text),
        source: required(text),
        digest: required(digest),
        size: required(count),
        encrypted: required(flag),
        thumbprint: text,
        signer: shape<NonNullable<ManifestImage["signer"]>>({
          fingerprint: required(text),
          keys: required(text),
          kind: required(oneOf("ring", "pem")),
        }),
      }),
    ),
  ),
  jobs: required(
    list(
      shape<ManifestJob>({
        id: required(fileName),
        maxTaskRetries: required(count),
        noRetryOn: required(list(count)),
        groups: required(
          list(
            shape<ManifestGroup>({
              tasks: required(
                list(
                  shape<ManifestTask>({
                    id: required(fileName),
                    image: required(count),
                    action: required(oneOf("run", "exec")),
                    argv: required(list(text)),
                    environment: required(variables),
                    binds: required(list(text)),
                  }),
                ),
              ),
              dependsOn: required(list(dependency)),
              resources: required(
                shape<Resources>({
                  time: required(count),
                  cpus: count,
                  memory: count,
                  gres: text,
                  ranks: shape<Ranks>({
                    nodes: required(whole(1, MAX_NODES)),
                    perNode: required(whole(1, MAX_RANKS)),
                    mpi: text,
                  }),
                }),
              ),
            }),
          ),
        ),
      }),
    ),
  ),
})

const checkSubmitted: Check<Submitted> = shape<Submitted>({
  complete: required(flag),
  arrays: required(
    list(
      shape<SubmittedArray>({
        array: required(count),
        job: required(count),
        group: required(count),
        first: required(count),
        count: required(count),
      }),
    ),
  ),
})

const checkPlace: Check<BrokerPlace> = shape<BrokerPlace>({
  host: required(text),
  port: required(whole(0, 65_535)),
  publicKey: required(text),
  pid: required(count),
  ssh: shape<NonNullable<BrokerPlace["ssh"]>>({
    port: required(whole(1, 65_535)),
    user: required(text),
    socket: required(text),
  }),
})

const checkRecord: Check<TaskRecord> = shape<TaskRecord>({
  state: required(oneOf("preparing", "waiting", "running", "done", "failed", "timeout", "cancelled")),
  node: required(text),
  exitCode: count,
  reason: text,
  ending: oneOf("timeout", "cancelled"),
  updated: required(count),
  attempts: required(
    list(
      shape<Attempt>({
        node: required(text),
        slurmJob: required(count),
        restarts: required(count),
        started: required(count),
        ended: count,
        exitCode: count,
      }),
    ),
  ),
})

const checkRankEnd: Check<RankEnd> = shape<RankEnd>({
  rank: required(count),
  node: required(text),
  exitCode: required(count),
  reason: text,
})

/** A hundred thousand tasks with their command lines. */
const MAX_MANIFEST: Bytes = 256 << 20
const MAX_RECORD: Bytes = 1 << 20
const MAX_LOG: Bytes = 1 << 20
/** How a file's name ends that has what was said of one of Slurm's jobs. */
const SAID = ".txt"

const NOT_OURS = 0o077

function refused(file: string, why: string): BatchError {
  return new BatchError("ERR_BATCH_SET", `${file}: ${why}`, { path: file })
}

/** It is a folder of this user's, and nobody else has a right to it. */
async function checkOwn(folder: string): Promise<void> {
  const info = await lstat(folder).catch((cause: unknown) => {
    const { code, message } = cause as NodeJS.ErrnoException
    throw refused(folder, code === "ENOENT" ? "there is no such job set" : message)
  })
  if (!info.isDirectory()) throw refused(folder, "it is no folder, and no link is followed")
  if (info.uid !== process.geteuid?.()) throw refused(folder, `it belongs to user ${info.uid}`)
  if ((info.mode & NOT_OURS) !== 0)
    throw refused(folder, "others have a right to it: its mode has to be 0700")
}

/** A file of this user's, through no link. */
async function readOwn(file: string, limit: Bytes): Promise<Buffer | undefined> {
  const check = (info: Stats): void => {
    if (!info.isFile() || info.uid !== process.geteuid?.()) throw refused(file, "it is no file of yours")
  }
  try {
    return await readBounded(file, limit, { flags: constants.O_NOFOLLOW, check })
  } catch (cause) {
    if (cause instanceof BatchError) throw cause
    const { code, message } = cause as NodeJS.ErrnoException
    if (code === "ENOENT") return undefined
    throw refused(file, code === "ELOOP" ? "it is a link, and none is followed" : message)
  }
}

/** Whole, or not at all. */
async function writeOwn(file: string, content: string | Uint8Array): Promise<void> {
  const temporary = `${file}.${randomBytes(8).toString("hex")}`
  try {
    await writeFile(temporary, content, { mode: 0o600, flag: "wx" })
    await rename(temporary, file)
  } catch (error) {
    await rm(temporary, { force: true })
    throw error
  }
}

/** A task by its place, with what it is part of. */
export interface FoundTask {
  readonly job: ManifestJob
  readonly group: number
  /** In its group. */
  readonly place: number
  readonly task: ManifestTask
}

/** undefined: its payload is one process. */
export function ranksOf({ job, group }: FoundTask): Ranks | undefined {
  return job.groups[group]?.resources.ranks
}

/** Of the ranks of a step, how the first one ended that did not end well. */
export interface RankEnd {
  readonly rank: number
  readonly node: string
  readonly exitCode: number
  /** What kept its payload from it. */
  readonly reason?: string | undefined
}

export class JobSet {
  readonly folder: string
  readonly manifest: Manifest
  /** Of the manifest's file, hexadecimal. */
  readonly manifestDigest: string

  private constructor(folder: string, manifest: Manifest, manifestDigest: string) {
    this.folder = folder
    this.manifest = manifest
    this.manifestDigest = manifestDigest
  }

  /**
   * Makes the folder of a new one.
   *
   * @param sets - What it lies in; made if it is not there.
   * @throws BatchError `ERR_BATCH_SET` where others could put something else in its place.
   */
  static async create(sets: string, manifest: Manifest): Promise<JobSet> {
    let folder: string
    try {
      await mkdir(sets, { recursive: true, mode: 0o700 })
      const base = await realpath(sets)
      folder = path.join(base, manifest.id)
      if (!(await isHeld(folder))) throw refused(base, "others may write to it, or to what it lies in")
      await mkdir(folder, { mode: 0o700 })
    } catch (cause) {
      if (cause instanceof BatchError) throw cause
      throw refused(sets, `a job set cannot be made: ${(cause as Error).message}`)
    }
    try {
      for (const name of ["status", "out", "log", "slots"])
        await mkdir(path.join(folder, name), { mode: 0o700 })
      const bytes = Buffer.from(`${JSON.stringify(manifest, null, 1)}\n`)
      await writeOwn(path.join(folder, "manifest.json"), bytes)
      return new JobSet(folder, manifest, createHash("sha256").update(bytes).digest("hex"))
    } catch (cause) {
      await rm(folder, { recursive: true, force: true })
      throw refused(folder, `a job set cannot be made: ${(cause as Error).message}`)
    }
  }

  /**
   * Opens one.
   *
   * @param manifestDigest - What the manifest has to be.
   * @throws BatchError `ERR_BATCH_SET`.
   */
  static async open(folder: string, manifestDigest?: string): Promise<JobSet> {
    await checkOwn(path.resolve(folder))
    const real = await realpath(folder)
    if (!(await isHeld(real))) throw refused(real, "others may write to what it lies in")
    const file = path.join(real, "manifest.json")
    const bytes = await readOwn(file, MAX_MANIFEST)
    if (bytes === undefined) throw refused(file, "there is no such file: this is no job set")
    const found = createHash("sha256").update(bytes).digest("hex")
    if (manifestDigest !== undefined && found !== manifestDigest)
      throw refused(file, "it is not the manifest that was submitted")
    return new JobSet(real, JobSet.#parse(file, bytes, checkManifest), found)
  }

  static #parse<T>(file: string, bytes: Buffer, check: Check<T>): T {
    try {
      return check(parseJson(bytes.toString("utf8")), "it")
    } catch (cause) {
      throw new BatchError("ERR_BATCH_SET", `${file}: damaged: ${(cause as Error).message}`, {
        path: file,
        cause,
      })
    }
  }

  /** Every task, in the order of the manifest. */
  *tasks(): Generator<FoundTask, void, undefined> {
    for (const job of this.manifest.jobs)
      for (const [group, { tasks }] of job.groups.entries())
        for (const [place, task] of tasks.entries()) yield { job, group, place, task }
  }

  /**
   * @param name - `JOB/TASK`, or the task alone where one job has it.
   * @throws BatchError `ERR_BATCH_TASK`.
   */
  find(name: string): FoundTask {
    const found = [...this.tasks()].filter(
      ({ job, task }) => task.id === name || `${job.id}/${task.id}` === name,
    )
    const [first] = found
    if (first === undefined || found.length > 1)
      throw new BatchError(
        "ERR_BATCH_TASK",
        first === undefined
          ? `${this.folder}: there is no task ${name}`
          : `${this.folder}: several jobs have a task ${name}: JOB/${name} says which`,
        { path: this.folder },
      )
    return first
  }

  /** The task of an array's element; undefined: it is none of this set, as far as is known. */
  async taskOf(array: number, element: number): Promise<FoundTask | undefined> {
    const { arrays } = await this.submitted()
    const found = arrays.find((one) => one.array === array && element < one.count)
    const job = found && this.manifest.jobs[found.job]
    const task = found && job?.groups[found.group]?.tasks[found.first + element]
    if (found === undefined || job === undefined || task === undefined) return undefined
    return { job, group: found.group, place: found.first + element, task }
  }

  /** The number of its array's element, `123_4`; undefined: Slurm has not been given it. */
  elementOf({ job, group, place }: FoundTask, { arrays }: Submitted): string | undefined {
    const index = this.manifest.jobs.indexOf(job)
    const found = arrays.find(
      (one) =>
        one.job === index && one.group === group && place >= one.first && place < one.first + one.count,
    )
    return found && `${found.array}_${place - found.first}`
  }

  image({ image }: ManifestTask): ManifestImage {
    const found = this.manifest.images[image]
    if (found === undefined) throw refused(this.folder, `the manifest has no image ${image}`)
    return found
  }

  path(...names: readonly string[]): string {
    return path.join(this.folder, ...names)
  }

  outputFolder({ job, task }: FoundTask): string {
    return this.path("out", job.id, task.id)
  }

  async #read<T>(name: string, check: Check<T>, limit: Bytes = MAX_MANIFEST): Promise<T | undefined> {
    const file = this.path(name)
    const bytes = await readOwn(file, limit)
    return bytes && JobSet.#parse(file, bytes, check)
  }

  /** What Slurm was given so far. */
  async submitted(): Promise<Submitted> {
    return (await this.#read("slurm.json", checkSubmitted)) ?? { complete: false, arrays: [] }
  }

  async writeSubmitted(submitted: Submitted): Promise<void> {
    await writeOwn(this.path("slurm.json"), JSON.stringify(submitted))
  }

  /** undefined: there is none. */
  async broker(): Promise<BrokerPlace | undefined> {
    return await this.#read("broker.json", checkPlace, MAX_RECORD)
  }

  async writeBroker(place: BrokerPlace): Promise<void> {
    await writeOwn(this.path("broker.json"), JSON.stringify(place))
  }

  async removeBroker(): Promise<void> {
    await rm(this.path("broker.json"), { force: true })
  }

  /** undefined: there is none. */
  async bundle(): Promise<Bundle | undefined> {
    return await this.#read("bundle.json", checkBundle)
  }

  async writeBundle(bundle: Bundle): Promise<void> {
    await writeOwn(this.path("bundle.json"), JSON.stringify(bundle))
  }

  /** undefined: no node has said anything yet. */
  async record({ job, task }: FoundTask): Promise<TaskRecord | undefined> {
    return await this.#read(path.join("status", job.id, `${task.id}.json`), checkRecord, MAX_RECORD)
  }

  /** The names in a folder of the set that end so, without their ends; one look tells of all. */
  async #names(folder: string, end: string): Promise<ReadonlySet<string>> {
    const names = await readdir(folder).catch((cause: unknown) => {
      const { code, message } = cause as NodeJS.ErrnoException
      if (code === "ENOENT") return []
      throw refused(folder, message)
    })
    return new Set(names.flatMap((name) => (name.endsWith(end) ? [name.slice(0, -end.length)] : [])))
  }

  /** The tasks of a job of which a node has said anything. */
  async recorded(job: string): Promise<ReadonlySet<string>> {
    return await this.#names(this.path("status", job), ".json")
  }

  /** What of Slurm was started, among it the elements of arrays: `123_4`. */
  async started(): Promise<ReadonlySet<string>> {
    return await this.#names(this.path("log"), SAID)
  }

  /** What the task's command, and Slurm, have said of an element that was started. */
  async said(slurmJob: string): Promise<string> {
    const file = this.path("log", `${slurmJob}${SAID}`)
    try {
      return (await readBounded(file, MAX_LOG)).toString("utf8")
    } catch (cause) {
      if (cause instanceof TooLarge) return ""
      throw refused(file, (cause as Error).message)
    }
  }

  async writeRecord({ job, task }: FoundTask, record: TaskRecord): Promise<void> {
    // Not what it lies in: a set that was deleted does not come back.
    await mkdir(this.path("status", job.id), { mode: 0o700 }).catch((cause: unknown) => {
      if ((cause as NodeJS.ErrnoException).code !== "EEXIST") throw cause
    })
    await writeOwn(this.path("status", job.id, `${task.id}.json`), JSON.stringify(record))
  }

  #rankEnd({ job, task }: FoundTask): string {
    return path.join("out", job.id, task.id, "rank.json")
  }

  /** Writes it down, unless another rank has: those that end because of it come later. */
  async writeRankEnd(task: FoundTask, end: RankEnd): Promise<void> {
    const file = this.path(this.#rankEnd(task))
    const temporary = `${file}.${randomBytes(8).toString("hex")}`
    const written = async (): Promise<void> => {
      await writeFile(temporary, JSON.stringify(end), { mode: 0o600, flag: "wx" })
      await link(temporary, file).catch((error: unknown) => {
        if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error
      })
    }
    await thenUndone(written, () => rm(temporary, { force: true }))
  }

  async hasRankEnd(task: FoundTask): Promise<boolean> {
    return (await lstat(this.path(this.#rankEnd(task))).catch(() => undefined)) !== undefined
  }

  /** undefined: no rank has said anything. */
  async takeRankEnd(task: FoundTask): Promise<RankEnd | undefined> {
    const end = await this.#read(this.#rankEnd(task), checkRankEnd, MAX_RECORD)
    await rm(this.path(this.#rankEnd(task)), { force: true })
    return end
  }

  /** Takes all of it away. */
  async remove(): Promise<void> {
    await rm(this.folder, { recursive: true, force: true })
  }
}
