// From a configuration to jobs that Slurm has: images are found, verified and opened once, their secrets given to a broker, and everything
// else written down for the nodes.
import { spawn, type ChildProcess } from "node:child_process"
import { randomBytes } from "node:crypto"
import { once } from "node:events"
import { closeSync, fstatSync, openSync } from "node:fs"
import { hostname } from "node:os"
import {
  list,
  abortSignal,
  callback,
  path as filePath,
  required,
  shape,
  text,
  type Check,
  type Rows,
} from "../arguments.ts"
import { readBounded } from "../bounded-file.ts"
import * as certificates from "../encryption/certificate-store.ts"
import { credentialList, Credentials, type CredentialSource } from "../encryption/credentials.ts"
import { secretSource, type SecretSource } from "../encryption/secret-sources.ts"
import { BatchError, KeyError } from "../errors.ts"
import { byThumbprint } from "../key/certificate.ts"
import type { Secret } from "../key/secret.ts"
import { forgeableMunge, hasMunge } from "./authenticators.ts"
import type {
  AuthenticatorName,
  BatchConfiguration,
  ClusterSettings,
  Dependency,
  ImageSettings,
} from "./configuration.ts"
import { cacheOf, examineImage, findImage, NodeCache, signerOf, type FoundImage } from "./images.ts"
import { rankArguments } from "./ranks.ts"
import {
  JobSet,
  type Manifest,
  type ManifestImage,
  type ManifestJob,
  type SubmittedArray,
} from "./job-set.ts"
import { nodeCertificates, sealBundle } from "./bundle.ts"
import { ownCommand, taskCommand } from "./own-command.ts"
import { SecretTable } from "./secret-table.ts"
import { configured, haveEnded, nodesOf, slurm, slurmEnvironment } from "./slurm.ts"
import { keepOut, letIn } from "./ssh-access.ts"
import type { Bytes, Milliseconds } from "../units.ts"
import type * as configuration from "./configuration.ts"

/** So long what is taken back, a broker or tasks, has to end: until then it may write into the set. */
const END_MS: Milliseconds = 2000

/** What a broker has said, with what others before it did. */
const MAX_SAID: Bytes = 1 << 20

// A function of its own: where TypeScript translates `using` it forgets to name the compiled file.
const configurationReader = (): Promise<typeof configuration> => import("./configuration.ts")

/** How keys of images are found. */
export interface KeyOptions {
  /** Of the certificates in the store, asked for when one is needed. */
  readonly password?: SecretSource | undefined
  /** Other keys; they are tried before those of the store. */
  readonly unlock?: readonly CredentialSource[] | undefined
  /** Default: as `certificate.listStored` has it. */
  readonly certificates?: string | undefined
}

export interface SubmitOptions extends KeyOptions {
  /** The configuration's file. */
  readonly file: string
  /** Of these jobs only; default: all. */
  readonly jobs?: readonly string[] | undefined
  /** The sifcrypt command on nodes; default: this package's. */
  readonly command?: string | undefined
  /** Things worth knowing that are no errors. */
  readonly onNotice?: ((text: string) => void) | undefined
  readonly signal?: AbortSignal | undefined
}

export const keyRows: Rows<KeyOptions> = {
  password: secretSource,
  unlock: credentialList,
  certificates: filePath,
}

const checkSubmit: Check<SubmitOptions> = shape<SubmitOptions>({
  ...keyRows,
  file: required(filePath),
  jobs: list(text),
  command: filePath,
  onNotice: callback,
  signal: abortSignal,
})

/** What opens the images of a set, each certificate's password asked for once. */
export class ImageKeys {
  readonly #options: KeyOptions
  readonly #passwords = new Map<string, SecretSource>()
  readonly #given: Buffer[] = []
  #stored: certificates.StoredCertificate[] | undefined

  constructor(options: KeyOptions) {
    this.#options = options
  }

  /** A source that has another asked once, however often it is. */
  #once(pfx: string): SecretSource | undefined {
    const { password } = this.#options
    if (password === undefined || !("ask" in password)) return password
    const known = this.#passwords.get(pfx)
    if (known !== undefined) return known
    let given: Buffer | undefined
    const source: SecretSource = {
      ask: async (what, attempt) => {
        if (given === undefined || attempt > 1) {
          const answer = await password.ask(what, attempt)
          if (answer === undefined) return undefined
          given = Buffer.from(new Uint8Array(answer).buffer)
          answer.fill(0)
          this.#given.push(given)
        }
        return Buffer.from(new Uint8Array(given).buffer)
      },
    }
    this.#passwords.set(pfx, source)
    return source
  }

  /** What to try on an image; a function, as every use reads it anew. */
  async sourcesFor({ thumbprint }: ManifestImage): Promise<readonly CredentialSource[]> {
    const { unlock = [], certificates: folder } = this.#options
    this.#stored ??= await certificates.listStored({ folder })
    const wanted = thumbprint === undefined ? this.#stored : [byThumbprint(this.#stored, thumbprint)]
    const own = wanted.map(({ pfx }): CredentialSource => ({ key: { file: pfx }, password: this.#once(pfx) }))
    return thumbprint === undefined ? [...unlock, ...own] : own
  }

  /** Is somebody asked for this one's password, who said what opens nothing? */
  asksFor(source: CredentialSource | undefined): boolean {
    const password = source !== undefined && "key" in source ? source.password : undefined
    return password !== undefined && "ask" in password
  }

  [Symbol.dispose](): void {
    for (const given of this.#given) given.fill(0)
  }
}

/**
 * Tries one certificate after the other: asking for the password of each would be asking too much. One that a given password does
 * not open is passed over where there are others.
 */
export async function openImage(
  found: FoundImage,
  image: ManifestImage,
  keys: ImageKeys,
  signal: AbortSignal | undefined,
): Promise<Secret | undefined> {
  const sources = await keys.sourcesFor(image)
  let failure: unknown
  const closed: string[] = []
  for (const source of sources.length === 0 ? [undefined] : sources) {
    using credentials = new Credentials(source && [source])
    try {
      return await examineImage(found, image, credentials, signal)
    } catch (error) {
      if (!(error instanceof KeyError)) throw error
      if (error.code === "ERR_KEY_PASSPHRASE" && sources.length > 1 && !keys.asksFor(source))
        closed.push(error.message)
      else if (error.code !== "ERR_KEY_MISMATCH") throw error
      failure ??= error
    }
  }
  if (sources.length === 1) throw failure
  throw new KeyError(
    "ERR_KEY_MISMATCH",
    [`${image.name} was not encrypted for any of the ${sources.length} keys`, ...closed].join("; "),
    {
      cause: failure,
    },
  )
}

/** An image of the manifest, and its secret, which the caller wipes. */
interface PreparedImage {
  readonly image: ManifestImage
  readonly secret: Secret | undefined
}

async function prepareImage(
  settings: ImageSettings,
  cluster: ClusterSettings,
  keys: ImageKeys,
  { onNotice, signal }: Pick<SubmitOptions, "onNotice" | "signal">,
): Promise<PreparedImage> {
  const { name, signingKey, thumbprint } = settings
  const cache = (): Promise<NodeCache> => NodeCache.open(cacheOf(undefined), cluster.cacheLimit)
  await using found = await findImage(name, cache, cluster.registry, onNotice, signal)
  const { source, digest, size } = found
  const signer = signingKey && (await signerOf(signingKey, signal))
  const image = {
    ...{ name, source, digest, size, encrypted: false },
    ...(thumbprint === undefined ? {} : { thumbprint }),
    ...(signer === undefined ? {} : { signer }),
  }
  const secret = await openImage(found, image, keys, signal)
  return { image: { ...image, encrypted: secret !== undefined }, secret }
}

/** Chooses how tasks prove whose they are. */
async function chooseAuthenticator(
  { authenticator }: ClusterSettings,
  mungeSocket: string | undefined,
): Promise<AuthenticatorName> {
  if (authenticator !== "auto") return authenticator
  return (await hasMunge(mungeSocket)) ? "munge" : "ssh"
}

function newId(): string {
  const time = new Date().toISOString().replaceAll(/[-:]|\..*/g, "")
  return `${time}-${randomBytes(4).toString("hex")}`
}

function manifestJobs(jobs: BatchConfiguration["jobs"], places: ReadonlyMap<string, number>): ManifestJob[] {
  return jobs.map(({ id, maxTaskRetries, noRetryOn, groups }) => ({
    ...{ id, maxTaskRetries, noRetryOn },
    groups: groups.map(({ tasks, dependsOn, resources }) => ({
      ...{ dependsOn, resources },
      tasks: tasks.map(({ image, ...task }) => ({ ...task, image: places.get(image) ?? 0 })),
    })),
  }))
}

/** For a shell, as one word. */
export function quoted(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`
}

/**
 * What Slurm keeps of a job: a command, and the few variables that it gets. With a list of them in `--export` slurmd would run the user's
 * login shell for the rest, and newer ones hold a job where that fails.
 */
export function jobScript(words: readonly string[]): string {
  const variables = Object.entries(slurmEnvironment()).map(
    ([name, value]) => `${name}=${quoted(value ?? "")}`,
  )
  return [
    "#!/bin/sh",
    "# Everything else is in the manifest.",
    ...(variables.length === 0 ? [] : [`export ${variables.join(" ")}`]),
    `exec ${words.map(quoted).join(" ")}`,
    "",
  ].join("\n")
}

/** What a job set's arrays have in common. */
function arrayArguments(set: JobSet, { cluster, jobs }: BatchConfiguration, job: number): string[] {
  const { partition, constraint, account, qos, reservation, endNotice } = cluster
  const options = { partition, constraint, account, qos, reservation }
  const most = Math.max(...jobs.map(({ priority }) => priority))
  const nice = most - (jobs[job]?.priority ?? most)
  return [
    ...Object.entries(options).flatMap(([name, value]) =>
      value === undefined ? [] : [`--${name}=${value}`],
    ),
    ...(nice === 0 ? [] : [`--nice=${nice}`]),
    ...["--parsable", "--requeue", "--kill-on-invalid-dep=yes", "--open-mode=append", "--input=/dev/null"],
    "--export=NIL",
    `--signal=B:TERM@${endNotice}`,
    `--chdir=${set.manifest.cwd}`,
    `--output=${set.path("log", "%A_%a.txt")}`,
    `--job-name=sifcrypt-${jobs[job]?.id ?? ""}`,
  ]
}

/** `H:M:S`: Slurm takes minutes otherwise. */
function slurmTime(seconds: number): string {
  const two = (value: number): string => String(value).padStart(2, "0")
  return `${Math.floor(seconds / 3600)}:${two(Math.floor(seconds / 60) % 60)}:${two(seconds % 60)}`
}

/** Lists of element numbers, `0-4,7`: a dependency names each by itself, so what can be said of all is said so. */
function dependencyWords(
  { job, dependsOn }: { readonly job: number; readonly dependsOn: readonly Dependency[] },
  set: JobSet,
  arrays: readonly SubmittedArray[],
): string[] {
  const { jobs } = set.manifest
  return dependsOn.flatMap((one) => {
    if ("job" in one) {
      const other = jobs.findIndex(({ id }) => id === one.job)
      return arrays.filter((array) => array.job === other).map(({ array }) => String(array))
    }
    const parts = arrays.filter((array) => array.job === job && array.group === one.group)
    const { elements } = one
    if (elements === undefined || elements.length === jobs[job]?.groups[one.group]?.tasks.length)
      return parts.map(({ array }) => String(array))
    return elements.flatMap((element) => {
      const part = parts.find(({ first, count }) => element >= first && element < first + count)
      return part === undefined ? [] : [`${part.array}_${element - part.first}`]
    })
  })
}

class Submission {
  readonly #set: JobSet
  readonly #configuration: BatchConfiguration
  readonly #command: string
  readonly #signal: AbortSignal | undefined
  readonly arrays: SubmittedArray[] = []
  /** Nodes that no job may run on. */
  excluded: readonly string[] = []

  constructor(
    set: JobSet,
    configuration: BatchConfiguration,
    command: string,
    signal: AbortSignal | undefined,
  ) {
    this.#set = set
    this.#configuration = configuration
    this.#command = command
    this.#signal = signal
  }

  async submitAll(): Promise<void> {
    const most = Number((await configured("MaxArraySize", this.#signal)) ?? 1001)
    for (const [job, { groups }] of this.#set.manifest.jobs.entries())
      for (const [group, { tasks }] of groups.entries())
        for (let first = 0; first < tasks.length; first += most)
          await this.#submit(job, group, first, Math.min(most, tasks.length - first))
    await this.#set.writeSubmitted({ complete: true, arrays: this.arrays })
  }

  async #submit(job: number, group: number, first: number, count: number): Promise<void> {
    const { manifest } = this.#set
    const { dependsOn = [], resources } = manifest.jobs[job]?.groups[group] ?? {}
    const { maxConcurrent } = this.#configuration.jobs[job] ?? {}
    const after = dependencyWords({ job, dependsOn }, this.#set, this.arrays)
    const script = jobScript(taskCommand(this.#command, { set: this.#set, job, group, first }))
    const args = [
      ...arrayArguments(this.#set, this.#configuration, job),
      ...(this.excluded.length === 0 ? [] : [`--exclude=${this.excluded.join(",")}`]),
      `--array=0-${count - 1}${maxConcurrent === undefined ? "" : `%${maxConcurrent}`}`,
      `--time=${slurmTime(resources?.time ?? 3600)}`,
      ...(resources?.ranks === undefined ? [] : rankArguments(resources.ranks)),
      ...(resources?.cpus === undefined ? [] : [`--cpus-per-task=${resources.cpus}`]),
      ...(resources?.memory === undefined ? [] : [`--mem=${resources.memory}M`]),
      ...(resources?.gres === undefined ? [] : [`--gres=${resources.gres}`]),
      ...(after.length === 0 ? [] : [`--dependency=afterok:${after.join(":")}`]),
    ]
    const answer = await slurm("sbatch", args, { input: script, signal: this.#signal })
    const array = /^(\d+)(?:;.*)?\s*$/.exec(answer)?.[1]
    if (array === undefined)
      throw new BatchError(
        "ERR_BATCH_SCHEDULER",
        `sbatch: it does not say which job it has made: ${answer.trim()}`,
      )
    this.arrays.push({ array: Number(array), job, group, first, count })
    await this.#set.writeSubmitted({ complete: false, arrays: this.arrays })
  }

  /** Takes back what was submitted. */
  async undo(): Promise<void> {
    const arrays = this.arrays.map(({ array }) => String(array))
    if (arrays.length === 0) return
    await slurm("scancel", arrays)
    const own = new Set(this.arrays.map(({ array }) => array))
    if (!(await haveEnded(own, END_MS)))
      throw new BatchError("ERR_BATCH_SCHEDULER", `some tasks of ${arrays.join(", ")} have not ended yet`)
  }
}

/** Returns when it has ended. */
async function endBroker(child: ChildProcess): Promise<void> {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return
  const ended = once(child, "exit")
  child.ref()
  child.kill()
  const patience = setTimeout(() => child.kill("SIGKILL"), END_MS)
  await ended
  clearTimeout(patience)
}

/**
 * Starts the broker of a set and hands it the secrets. It goes on without this process.
 *
 * @returns What ends it again.
 * @throws BatchError `ERR_BATCH_KEY` where it does not start.
 */
export async function startBroker(
  set: JobSet,
  secrets: ReadonlyMap<string, Secret>,
  cluster: Pick<ClusterSettings, "brokerHost" | "brokerPort" | "sshPort">,
  command: string,
): Promise<() => Promise<void>> {
  const args = [
    "batch",
    "broker",
    set.folder,
    "--port",
    String(cluster.brokerPort),
    "--ssh-port",
    String(cluster.sshPort),
  ]
  if (cluster.brokerHost !== undefined) args.push("--host", cluster.brokerHost)
  if (set.manifest.cluster.authenticator === "ssh")
    await letIn(
      set,
      cluster.brokerHost ?? hostname(),
      cluster.sshPort,
      // Whatever sshd's own is, Node is found as it was here.
      `env PATH=${quoted(process.env["PATH"] ?? "")} ${quoted(command)} batch relay ${quoted(set.folder)}`,
    )
  const file = set.path("log", "broker.txt")
  const log = openSync(file, "a", 0o600)
  const { size } = fstatSync(log)
  const bytes = SecretTable.write(new Map([...secrets].map(([digest, secret]) => [digest, secret.bytes])))
  let child: ChildProcess | undefined
  try {
    const started = (child = spawn(command, args, {
      stdio: ["pipe", "pipe", log],
      detached: true,
      env: slurmEnvironment(),
      cwd: "/",
    }))
    let unsent: Error | undefined
    const ready = await new Promise<boolean>((resolve, reject) => {
      started.once("error", reject)
      // Without all of them it ends, and says more than that it was not there any more.
      started.stdin?.once("error", (cause) => {
        unsent = cause
      })
      started.stdout?.once("error", reject)
      started.stdout?.once("data", () => {
        resolve(true)
      })
      started.once("exit", () => {
        resolve(false)
      })
      started.stdin?.end(bytes)
    })
    started.stdout?.destroy()
    started.unref()
    if (ready) return () => endBroker(started)
    const said = (await readBounded(file, MAX_SAID)).toString("utf8", size).trim()
    const why =
      said === ""
        ? (unsent?.message ?? "it says nothing")
        : said.replaceAll(/^sifcrypt: /gm, "").replaceAll(/\s*\n\s*/g, "; ")
    throw new BatchError("ERR_BATCH_KEY", `the broker does not start: ${why}`, { cause: unsent })
  } catch (cause) {
    if (child !== undefined) await endBroker(child)
    if (cause instanceof BatchError) throw cause
    throw new BatchError("ERR_BATCH_KEY", `the broker cannot be started: ${(cause as Error).message}`, {
      cause,
    })
  } finally {
    bytes.fill(0)
    closeSync(log)
  }
}

/**
 * Encrypts the secrets of a set for the nodes of its partition that have keys of their own.
 *
 * @returns The nodes that have none.
 * @throws BatchError `ERR_BATCH_KEY`; KeyError.
 */
export async function writeBundle(
  set: JobSet,
  secrets: ReadonlyMap<string, Secret>,
  signal: AbortSignal | undefined,
): Promise<readonly string[]> {
  const { id, uid, cluster } = set.manifest
  const { nodeKeys, partition } = cluster
  if (nodeKeys === undefined) return []
  const nodes = await nodesOf(partition, [], signal)
  const keys = await nodeCertificates(nodeKeys.certificates, nodes)
  // The broker serves all of them.
  if (keys.length === 0 && cluster.hasBroker) return nodes
  if (keys.length === 0)
    throw new BatchError(
      "ERR_BATCH_KEY",
      `${nodeKeys.certificates}: there is no certificate of any node of the partition, as ${nodes[0] ?? "NODE"}.pem`,
      { path: nodeKeys.certificates },
    )
  const expires = Date.now() + nodeKeys.lifetime * 1000
  const bytes = SecretTable.write(new Map([...secrets].map(([digest, secret]) => [digest, secret.bytes])))
  try {
    await set.writeBundle(sealBundle({ set: id, uid, expires, digests: [...secrets.keys()] }, bytes, keys))
  } finally {
    bytes.fill(0)
  }
  const own = new Set(keys.map(({ node }) => node))
  return nodes.filter((node) => !own.has(node))
}

/** Whose tasks are submitted. */
function chosenJobs(
  configuration: BatchConfiguration,
  names: readonly string[] | undefined,
): BatchConfiguration {
  const { file, jobs } = configuration
  const refuse = (message: string): never => {
    throw new BatchError("ERR_BATCH_CONFIG", `${file}: ${message}`, { path: file })
  }
  for (const name of names ?? []) if (!jobs.some(({ id }) => id === name)) refuse(`there is no job ${name}`)
  const chosen = names === undefined ? jobs : jobs.filter(({ id }) => names.includes(id))
  if (chosen.length === 0) refuse("there is no job in it")
  for (const { id, groups } of chosen)
    for (const one of groups.flatMap(({ dependsOn }) => dependsOn))
      if ("job" in one && !chosen.some((other) => other.id === one.job))
        refuse(`job ${id} depends on ${one.job}`)
  return { ...configuration, jobs: chosen }
}

/**
 * Submits the jobs of a configuration.
 *
 * @throws BatchError; KeyError; SignatureError; OciError; the signal's reason.
 */
export async function submitJobs(given: SubmitOptions): Promise<JobSet> {
  const options = checkSubmit(given, "options")
  const { signal } = options
  signal?.throwIfAborted()
  const { readConfiguration } = await configurationReader()
  const chosen = chosenJobs(await readConfiguration(options.file, signal), options.jobs)
  const { cluster } = chosen
  const command = ownCommand(options.command)
  const used = new Set(
    chosen.jobs.flatMap(({ groups }) => groups.flatMap(({ tasks }) => tasks.map(({ image }) => image))),
  )
  const mungeSocket = /(?:^|,)socket=([^,]+)/.exec((await configured("AuthInfo", signal)) ?? "")?.[1]
  const authenticator = await chooseAuthenticator(cluster, mungeSocket)
  const hasBroker = cluster.keySource !== "nodes"
  if (hasBroker && authenticator === "munge") {
    const old = await forgeableMunge()
    if (old !== undefined)
      options.onNotice?.(
        `munge ${old} may let other users forge credentials (CVE-2026-25506): 0.5.18 does not, nor does \`authenticator: ssh\``,
      )
  }
  using keys = new ImageKeys(options)
  const images: ManifestImage[] = []
  const places = new Map<string, number>()
  const secrets = new Map<string, Secret>()
  try {
    for (const settings of chosen.images.filter(({ name }) => used.has(name))) {
      const { image, secret } = await prepareImage(settings, cluster, keys, options)
      places.set(settings.name, images.push(image) - 1)
      if (secret !== undefined) secrets.set(image.digest, secret)
    }
    const { cache, cacheLimit, keyWait, partition, concurrentSourceDownloads, registry } = cluster
    const certificates = cluster.keySource === "broker" ? undefined : cluster.nodeCertificates
    const manifest: Manifest = {
      version: 1,
      id: newId(),
      uid: process.geteuid?.() ?? 0,
      created: Date.now(),
      cwd: process.cwd(),
      cluster: {
        ...{ cacheLimit, keyWait, concurrentSourceDownloads, registry, authenticator, hasBroker },
        ...(certificates === undefined
          ? {}
          : { nodeKeys: { certificates, socket: cluster.nodeSocket, lifetime: cluster.keyLifetime } }),
        ...(cache === undefined ? {} : { cache }),
        ...(partition === undefined ? {} : { partition }),
        ...(mungeSocket === undefined ? {} : { mungeSocket }),
      },
      images,
      jobs: manifestJobs(chosen.jobs, places),
    }
    const set = await JobSet.create(cluster.jobSets, manifest)
    let endIt: (() => Promise<void>) | undefined
    const submission = new Submission(set, chosen, command, signal)
    try {
      if (secrets.size > 0) {
        const without = await writeBundle(set, secrets, signal)
        if (hasBroker) endIt = await startBroker(set, secrets, cluster, command)
        else if (without.length > 0) {
          submission.excluded = without
          options.onNotice?.(
            `nodes without a certificate in ${certificates ?? ""} are left out: ${without.join(", ")}`,
          )
        }
      }
      await submission.submitAll()
      return set
    } catch (error) {
      const steps = [
        () => submission.undo(),
        ...(endIt === undefined ? [] : [endIt]),
        ...(authenticator === "ssh" && hasBroker && secrets.size > 0 ? [() => keepOut(set)] : []),
        () => set.remove(),
      ]
      // The first failure is the one to tell; none keeps the others from being tried.
      for (const step of steps)
        await step().catch((cause: unknown) => {
          options.onNotice?.(`not all of ${set.folder} could be taken back: ${(cause as Error).message}`)
        })
      throw error
    }
  } finally {
    for (const secret of secrets.values()) secret.wipe()
  }
}
