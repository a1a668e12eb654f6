// sifcrypt.yaml: the cluster, the images, and the jobs that run in them. Its keys are those of Batch Shipyard where they make sense.
import path from "node:path"
import { readBounded, TooLarge } from "../bounded-file.ts"
import { BatchError } from "../errors.ts"
import { isOrasName, parseOrasName } from "../oci/reference.ts"
import type { Bytes } from "../units.ts"
import { expandFactory, fill, MAX_TASKS, type Filling } from "./task-factory.ts"
import { NODE_SOCKET } from "./bundle.ts"
import { MAX_YAML_SIZE, Value, type YamlKind } from "../yaml-reader.ts"

/** Seconds. */
type Seconds = number

/** How a registry is spoken to, on every machine. */
export interface RegistrySettings {
  readonly authFile?: string
  readonly certFolder?: string
  readonly noHttps?: boolean
}

/** How a task proves to the broker whose it is. */
export type AuthenticatorName = "munge" | "ssh"

/** Where tasks get their keys: from a broker, from nodes that open bundles with keys of their own, or from either. */
export type KeySource = "auto" | "broker" | "nodes"

/** Nodes that have keys of their own. */
export interface NodeKeySettings {
  /** A folder with their certificates. */
  readonly certificates: string
  /** Where a node's own key is asked; `%N` is its name. */
  readonly socket: string
  /** So long a bundle is good. */
  readonly lifetime: Seconds
}

/** What a cluster is told of every job, and what its nodes do. */
export interface ClusterSettings {
  readonly partition?: string
  readonly constraint?: string
  readonly account?: string
  readonly qos?: string
  readonly reservation?: string
  /** Of a task, unless its job says otherwise. */
  readonly time: Seconds
  /** Where job sets lie: on storage that every node sees. */
  readonly jobSets: string
  /** Where a node keeps images; `%N` is its name. undefined: the user's cache. */
  readonly cache?: string
  readonly cacheLimit: Bytes
  /** How the broker is reached from nodes. */
  readonly brokerHost?: string
  /** 0: any that is free. */
  readonly brokerPort: number
  readonly authenticator: AuthenticatorName | "auto"
  readonly keySource: KeySource
  /** undefined: none of them is known to have one. */
  readonly nodeCertificates?: string
  readonly nodeSocket: string
  readonly keyLifetime: Seconds
  /** Of the machine that submits, as its sshd listens. */
  readonly sshPort: number
  readonly keyWait: Seconds
  /** Nodes that fetch an image at once. */
  readonly concurrentSourceDownloads: number
  readonly registry: RegistrySettings
  /** So long before the end of its time a task is told. */
  readonly endNotice: Seconds
}

/** An image, and what is demanded of it. */
export interface ImageSettings {
  /** `oras://…`, or the path of a file that every node sees. */
  readonly name: string
  readonly signingKey?: { readonly fingerprint: string; readonly file?: string }
  /** SHA-256, or SHA-1 as a name; undefined: every certificate is tried. */
  readonly thumbprint?: string
}

/** One task. */
export interface TaskSettings {
  /** Unique in its job. */
  readonly id: string
  readonly image: string
  readonly action: "run" | "exec"
  readonly argv: readonly string[]
  readonly environment: Readonly<Record<string, string>>
  readonly binds: readonly string[]
}

/** Tasks that Slurm is told the same of. */
export interface TaskGroup {
  readonly tasks: readonly TaskSettings[]
  /** What has to have succeeded before. */
  readonly dependsOn: readonly Dependency[]
  readonly resources: Resources
}

/** A job of this file, or tasks of the same job. */
export type Dependency =
  { readonly job: string } | { readonly group: number; readonly elements: readonly number[] | undefined }

/** A payload that is several processes, which Slurm starts as one step. */
export interface Ranks {
  readonly nodes: number
  readonly perNode: number
  /** How they find each other, as srun's `--mpi` has it; undefined: as the cluster has it. */
  readonly mpi?: string
}

/** Of one task, and of one node. */
export const MAX_NODES = 10_000
export const MAX_RANKS = 1024

/** What one task gets. */
export interface Resources {
  readonly time: Seconds
  readonly cpus?: number
  /** MiB. */
  readonly memory?: number
  readonly gres?: string
  readonly ranks?: Ranks
}

export interface JobSettings {
  readonly id: string
  readonly maxTaskRetries: number
  readonly noRetryOn: readonly number[]
  /** Among the jobs of this file: more is earlier. */
  readonly priority: number
  /** Tasks at once. */
  readonly maxConcurrent?: number
  readonly groups: readonly TaskGroup[]
}

export interface BatchConfiguration {
  readonly file: string
  readonly cluster: ClusterSettings
  readonly images: readonly ImageSettings[]
  readonly jobs: readonly JobSettings[]
}

/** What is thrown of one that will not do. */
export const configurationKind: YamlKind = {
  error: (message, options) => new BatchError("ERR_BATCH_CONFIG", message, options),
}

/** A name that may be that of a file, and a word of Slurm's. */
const name = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$/
const slurmWord = /^[A-Za-z0-9_][A-Za-z0-9_.,:&|*()[\]=+-]{0,255}$/
const variableName = /^[A-Za-z_][A-Za-z0-9_]{0,255}$/
const hexadecimal = /^(?:[0-9A-Fa-f]{40}|[0-9A-Fa-f]{64})$/
const MAX_SECONDS: Seconds = 366 * 86_400

/** One that looks like a number is taken as it is written. */
function idOf(value: Value): string {
  const id = value.word()
  if (!name.test(id)) throw value.error("it is no name: letters, digits, _ . -, at most 64")
  return id
}
const word = (value: Value): string => value.text(slurmWord, "a name that Slurm knows")

/** `[D-]HH:MM:SS`, `MM:SS`, or seconds. */
function duration(value: Value): Seconds {
  const text = value.word()
  const [, days, hours, minutes = "0", seconds] =
    /^(?:(\d{1,3})-)?(?:(\d{1,4}):)?(?:(\d{1,4}):)?(\d{1,8})$/.exec(text) ?? []
  if (seconds === undefined) throw value.error("it is a time, as 01:30:00, 2-12:00:00 or 90 for seconds")
  // With one colon, what stands before it are minutes.
  const parts = text.split("-").at(-1)?.split(":").length
  const [h, m] = parts === 2 ? [0, Number(hours)] : [Number(hours ?? 0), Number(minutes)]
  const total = Number(days ?? 0) * 86_400 + h * 3600 + m * 60 + Number(seconds)
  if (total < 1 || total > MAX_SECONDS) throw value.error("it is a second to a year")
  return total
}

const units: Readonly<Record<string, number>> = { K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 }

/** With its unit: Slurm takes a bare number for mebibytes, others take it for bytes. */
function size(value: Value): Bytes {
  const text = value.word()
  const [, digits, unit = ""] = /^(\d{1,12})([KMGT])?$/.exec(text) ?? []
  if (digits === undefined) throw value.error("it is a size, as 512M or 4G")
  if (unit === "" && Number(digits) !== 0)
    throw value.error(`it is a size with its unit, K, M, G or T: ${text} could be bytes or MiB`)
  return Number(digits) * (units[unit] ?? 1)
}

function readCluster(value: Value, base: string): Partial<ClusterSettings> {
  const folder = (one: Value): string => path.resolve(base, one.text())
  return value.read<ClusterSettings>({
    partition: word,
    constraint: word,
    account: word,
    qos: word,
    reservation: word,
    time: duration,
    jobSets: folder,
    cache: folder,
    cacheLimit: size,
    brokerHost: (one) => one.text(/^[A-Za-z0-9:][A-Za-z0-9.:-]{0,252}$/, "a host"),
    brokerPort: (one) => one.whole(0, 65_535),
    authenticator: (one) => one.oneOf("auto", "munge", "ssh"),
    keySource: (one) => one.oneOf("auto", "broker", "nodes"),
    nodeCertificates: folder,
    nodeSocket: folder,
    keyLifetime: duration,
    sshPort: (one) => one.whole(1, 65_535),
    keyWait: duration,
    concurrentSourceDownloads: (one) => one.whole(1, 10_000),
    endNotice: duration,
    registry: (one) =>
      one.read<RegistrySettings>({ authFile: folder, certFolder: folder, noHttps: (at) => at.flag() }),
  })
}

const clusterDefaults = {
  time: 3600,
  cacheLimit: 64 * 2 ** 30,
  brokerPort: 0,
  authenticator: "auto",
  keySource: "auto",
  nodeSocket: NODE_SOCKET,
  keyLifetime: 30 * 86_400,
  sshPort: 22,
  keyWait: 600,
  concurrentSourceDownloads: 10,
  endNotice: 60,
  registry: {},
} as const

function readImage(value: Value, base: string): ImageSettings {
  const thumbprint = (one: Value): string => one.hex(hexadecimal, "thumbprint of 40 or 64 hexadecimal digits")
  const { image, signingKey, encryption } = value.read<{
    image: string
    signingKey: { readonly fingerprint: string; readonly file?: string }
    encryption: { readonly thumbprint: string }
  }>({
    image: (one) => imageName(one, base),
    signingKey: (one) => {
      const { fingerprint, file } = one.read<{ fingerprint: string; file: string }>({
        fingerprint: (at) => at.hex(hexadecimal, "fingerprint of 40 or 64 hexadecimal digits"),
        file: (at) => path.resolve(base, at.text()),
      })
      if (fingerprint === undefined)
        throw one.error("fingerprint is missing: whose signature there has to be")
      return { fingerprint, ...(file === undefined ? {} : { file }) }
    },
    encryption: (one) => {
      const { certificate } = one.read<{ certificate: string }>({
        certificate: (at) => {
          const { sha256Thumbprint, sha1Thumbprint } = at.read<{
            sha256Thumbprint: string
            sha1Thumbprint: string
          }>({ sha256Thumbprint: thumbprint, sha1Thumbprint: thumbprint })
          const found = sha256Thumbprint ?? sha1Thumbprint
          if (found === undefined) throw at.error("sha256_thumbprint is missing")
          return found
        },
      })
      if (certificate === undefined) throw one.error("certificate is missing")
      return { thumbprint: certificate }
    },
  })
  if (image === undefined) throw value.error("image is missing")
  return {
    name: image,
    ...(signingKey === undefined ? {} : { signingKey }),
    ...(encryption === undefined ? {} : { thumbprint: encryption.thumbprint }),
  }
}

/** The name of an image at a registry, or the whole path of a file. */
function imageName(value: Value, base: string): string {
  const text = value.text()
  if (isOrasName(text))
    try {
      parseOrasName(text)
      return text
    } catch (error) {
      throw value.error((error as Error).message)
    }
  if (/^[a-z][a-z0-9+.-]*:/.test(text))
    throw value.error(
      "it is oras://HOST/REPOSITORY[:TAG|@DIGEST], or the path of a file that every node sees",
    )
  return path.resolve(base, text)
}

/** A task as it is written, with what Slurm is told of it. */
interface WrittenTask {
  readonly id: string
  readonly tasks: readonly TaskSettings[]
  readonly resources: Resources
  readonly dependsOn: readonly (readonly [string, Value])[]
  readonly at: Value
}

interface TaskKeys {
  readonly id: string
  readonly image: string
  readonly command: Value
  readonly environmentVariables: Value
  readonly binds: readonly string[]
  readonly taskFactory: readonly Filling[]
  readonly dependsOn: readonly (readonly [string, Value])[]
  readonly dependsOnRange: readonly (readonly [string, Value])[]
  readonly maxWallTime: Seconds
  readonly cpus: number
  readonly memory: number
  readonly gres: string
  readonly nodes: number
  readonly ranksPerNode: number
  readonly mpi: string
}

function readEnvironment(value: Value): readonly (readonly [string, Value])[] {
  const found = value.entries()
  for (const [key, at] of found)
    if (!variableName.test(key) || /^(?:SIFCRYPT|SLURM)_/.test(key))
      throw at.error("no variable can be called so")
  return found
}

/** What reads the tasks of one job. */
class JobReader {
  readonly #images: ReadonlySet<string>
  readonly #base: string
  readonly #time: Seconds
  #unnamed = 0

  constructor(images: ReadonlySet<string>, base: string, time: Seconds) {
    this.#images = images
    this.#base = base
    this.#time = time
  }

  task(value: Value, environment: readonly (readonly [string, Value])[]): WrittenTask {
    const read = value.read<TaskKeys>({
      id: idOf,
      image: (one) => {
        const image = imageName(one, this.#base)
        if (!this.#images.has(image)) throw one.error("there is no such image in images")
        return image
      },
      command: (one) => one,
      environmentVariables: (one) => one,
      binds: (one) => one.list((at) => at.text()),
      taskFactory: (one) => expandFactory(one, this.#base),
      dependsOn: (one) => one.list((at) => [idOf(at), at] as const),
      dependsOnRange: (one) => {
        const [first = 0, last = 0, ...more] = one.list((at) => at.whole(0, MAX_TASKS))
        if (more.length > 0 || last < first) throw one.error("it is [FIRST, LAST]")
        return Array.from({ length: last - first + 1 }, (_, i) => [String(first + i), one] as const)
      },
      maxWallTime: duration,
      cpus: (one) => one.whole(1, 65_536),
      memory: (one) => Math.max(1, Math.ceil(size(one) / 2 ** 20)),
      gres: word,
      nodes: (one) => one.whole(1, MAX_NODES),
      ranksPerNode: (one) => one.whole(1, MAX_RANKS),
      mpi: (one) => one.text(/^[a-z0-9_]{1,32}$/, "what srun takes for --mpi, as pmi2 or pmix"),
    })
    const { image, command, binds = [], taskFactory, cpus, memory, gres, nodes, ranksPerNode, mpi } = read
    const isParallel = nodes !== undefined || ranksPerNode !== undefined || mpi !== undefined
    if (image === undefined) throw value.error("image is missing")
    const own = read.environmentVariables === undefined ? [] : readEnvironment(read.environmentVariables)
    const variables = [...environment, ...own]
    const id = read.id ?? `task-${String(this.#unnamed++).padStart(5, "0")}`
    const make = (name: string, filling: Filling | undefined): TaskSettings => {
      const filled = (text: string, at: Value): string =>
        filling === undefined ? text : fill(text, filling, at)
      const [first, ...rest] = command?.list((at) => filled(at.word(), at), { least: 1 }) ?? ["run"]
      const isAction = first === "run" || first === "exec"
      if (first === "exec" && rest.length === 0)
        throw (command ?? value).error("there is no command behind exec")
      return {
        ...{ id: name, image, binds },
        action: first === "run" ? "run" : "exec",
        argv: isAction ? rest : [first ?? "", ...rest],
        environment: Object.fromEntries(variables.map(([key, at]) => [key, filled(at.word(), at)])),
      }
    }
    return {
      ...{ id, at: value },
      tasks:
        taskFactory === undefined
          ? [make(id, undefined)]
          : taskFactory.map((filling, i) => make(`${id}-${String(i).padStart(5, "0")}`, filling)),
      resources: {
        time: read.maxWallTime ?? this.#time,
        ...(cpus === undefined ? {} : { cpus }),
        ...(memory === undefined ? {} : { memory }),
        ...(gres === undefined ? {} : { gres }),
        ...(isParallel
          ? {
              ranks: {
                nodes: nodes ?? 1,
                perNode: ranksPerNode ?? 1,
                ...(mpi === undefined ? {} : { mpi }),
              },
            }
          : {}),
      },
      dependsOn: [...(read.dependsOn ?? []), ...(read.dependsOnRange ?? [])],
    }
  }
}

/** Tasks that Slurm is told the same of make a group; those on which others wait come before them. */
function groupTasks(written: readonly WrittenTask[], jobs: readonly Dependency[]): TaskGroup[] {
  const byId = new Map<string, WrittenTask>()
  for (const one of written) {
    if (byId.has(one.id)) throw one.at.error(`there are two tasks with the id ${one.id}`)
    byId.set(one.id, one)
  }
  const groups: { tasks: TaskSettings[]; dependsOn: Dependency[]; resources: Resources }[] = []
  const byShape = new Map<string, number>()
  const places = new Map<WrittenTask, { readonly group: number; readonly first: number }>()
  const visiting = new Set<WrittenTask>()
  const place = (one: WrittenTask): { readonly group: number; readonly first: number } => {
    const known = places.get(one)
    if (known !== undefined) return known
    if (visiting.has(one)) throw one.at.error(`${one.id} depends on itself`)
    visiting.add(one)
    const before = one.dependsOn.map(([id, at]): Dependency => {
      const other = byId.get(id)
      if (other === undefined) throw at.error(`there is no task ${id} in this job`)
      const { group, first } = place(other)
      return { group, elements: other.tasks.map((_, i) => first + i) }
    })
    const dependsOn = [...jobs, ...before]
    const shape = JSON.stringify([dependsOn, one.resources])
    const index = byShape.get(shape) ?? groups.length
    byShape.set(shape, index)
    const group = (groups[index] ??= { tasks: [], dependsOn, resources: one.resources })
    const found = { group: index, first: group.tasks.length }
    group.tasks.push(...one.tasks)
    places.set(one, found)
    return found
  }
  for (const one of written) place(one)
  return groups
}

interface JobKeys {
  readonly id: string
  readonly maxTaskRetries: number
  readonly noRetryOn: readonly number[]
  readonly maxWallTime: Seconds
  readonly priority: number
  readonly maxConcurrent: number
  readonly environmentVariables: Value
  readonly dependsOn: readonly (readonly [string, Value])[]
  readonly tasks: Value
  readonly mergeTask: Value
}

const MAX_PRIORITY = 1000

function readJob(
  value: Value,
  images: ReadonlySet<string>,
  base: string,
  time: Seconds,
  earlier: ReadonlySet<string>,
): JobSettings {
  const read = value.read<JobKeys>({
    id: idOf,
    maxTaskRetries: (one) => one.whole(0, 100),
    noRetryOn: (one) => one.list((at) => at.whole(1, 255)),
    maxWallTime: duration,
    priority: (one) => one.whole(-MAX_PRIORITY, MAX_PRIORITY),
    maxConcurrent: (one) => one.whole(1, MAX_TASKS),
    environmentVariables: (one) => one,
    dependsOn: (one) => one.list((at) => [idOf(at), at] as const),
    tasks: (one) => one,
    mergeTask: (one) => one,
  })
  const { id, tasks, mergeTask, maxConcurrent } = read
  if (id === undefined) throw value.error("id is missing")
  if (earlier.has(id)) throw value.error(`there are two jobs with the id ${id}`)
  if (tasks === undefined) throw value.error("tasks are missing")
  const jobs = (read.dependsOn ?? []).map(([job, at]): Dependency => {
    if (!earlier.has(job)) throw at.error(`there is no job ${job} before this one`)
    return { job }
  })
  const reader = new JobReader(images, base, read.maxWallTime ?? time)
  const environment =
    read.environmentVariables === undefined ? [] : readEnvironment(read.environmentVariables)
  const written = tasks.list((one) => reader.task(one, environment), { least: 1 })
  const groups = groupTasks(written, jobs)
  const merge = mergeTask && reader.task(mergeTask, environment)
  if (merge !== undefined) {
    if (merge.dependsOn.length > 0) throw merge.at.error("it waits for all tasks, and says nothing of it")
    const mergeId = merge.id.startsWith("task-") ? "merge" : merge.id
    if (merge.tasks.length !== 1) throw merge.at.error("it is one task")
    groups.push({
      tasks: merge.tasks.map((one) => ({ ...one, id: mergeId })),
      resources: merge.resources,
      dependsOn: groups.map((_, group) => ({ group, elements: undefined })),
    })
  }
  const ids = new Set<string>()
  for (const { tasks: some } of groups)
    for (const task of some) {
      if (ids.has(task.id)) throw value.error(`there are two tasks with the id ${task.id}`)
      ids.add(task.id)
    }
  return {
    id,
    maxTaskRetries: read.maxTaskRetries ?? 0,
    noRetryOn: read.noRetryOn ?? [],
    priority: read.priority ?? 0,
    ...(maxConcurrent === undefined ? {} : { maxConcurrent }),
    groups,
  }
}

/**
 * Reads a configuration.
 *
 * @param file - What to call it; relative paths are relative to its folder.
 * @throws BatchError `ERR_BATCH_CONFIG`, which names file, line and key.
 */
export function parseConfiguration(text: string, file: string): BatchConfiguration {
  const base = path.dirname(path.resolve(file))
  const root = Value.parse(text, file, configurationKind)
  const {
    cluster: settings = {},
    images: written = [],
    jobs: later,
  } = root.read<{ cluster: Partial<ClusterSettings>; images: [ImageSettings, Value][]; jobs: Value }>({
    cluster: (one) => {
      const found = readCluster(one, base)
      if (found.keySource === "nodes" && found.nodeCertificates === undefined)
        throw one.error("key_source: nodes needs node_certificates, the folder with their certificates")
      return found
    },
    images: (one) => one.list((at) => [readImage(at, base), at]),
    jobs: (one) => one,
  })
  const cluster: ClusterSettings = {
    ...clusterDefaults,
    jobSets: path.join(base, "sifcrypt-jobs"),
    ...settings,
  }
  const images = new Set<string>()
  for (const [{ name: image }, at] of written) {
    if (images.has(image)) throw at.error(`${image} is there twice`)
    images.add(image)
  }
  const ids = new Set<string>()
  const jobs =
    later?.list((one) => {
      const job = readJob(one, images, base, cluster.time, ids)
      ids.add(job.id)
      return job
    }) ?? []
  const count = jobs.reduce(
    (sum, { groups }) => groups.reduce((all, { tasks }) => all + tasks.length, sum),
    0,
  )
  if (count > MAX_TASKS) throw root.error(`${count} tasks are more than ${MAX_TASKS}`)
  return { file, cluster, images: written.map(([image]) => image), jobs }
}

/** @throws BatchError `ERR_BATCH_CONFIG`. */
export async function readConfiguration(file: string, signal?: AbortSignal): Promise<BatchConfiguration> {
  let bytes: Buffer
  try {
    bytes = await readBounded(file, MAX_YAML_SIZE, { signal })
  } catch (cause) {
    signal?.throwIfAborted()
    const { code, message } = cause as NodeJS.ErrnoException
    const why = cause instanceof TooLarge || code !== "ENOENT" ? message : "there is no such file"
    throw new BatchError("ERR_BATCH_CONFIG", `cannot read ${file}: ${why}`, { path: file, cause })
  }
  let text: string
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes)
  } catch (cause) {
    throw new BatchError("ERR_BATCH_CONFIG", `${file}: it is no UTF-8`, { path: file, cause })
  }
  return parseConfiguration(text, file)
}
