// The services of a project: instances that carry its name in their labels. There is no daemon and no file of a project's own: whoever knows
// the name finds them.
import { existsSync, mkdirSync } from "node:fs"
import path from "node:path"
import { stringify } from "yaml"
import * as is from "../arguments.ts"
import { readBounded } from "../bounded-file.ts"
import {
  listInstances,
  type Instance,
  type InstanceOptions,
  type JoinOptions,
} from "../container/instance.ts"
import type { InstanceStatus } from "../container/service.ts"
import { openRows, type Image } from "../container/image.ts"
import type { LogPiece } from "../container/instance-logs.ts"
import type { Running } from "../container/run.ts"
import { listStored } from "../encryption/certificate-store.ts"
import { credentialList, type CredentialSource } from "../encryption/credentials.ts"
import { secretSource, type SecretSource } from "../encryption/secret-sources.ts"
import { ComposeError } from "../errors.ts"
import { byThumbprint } from "../key/certificate.ts"
import { allocateSecret } from "../key/secret.ts"
import { build } from "../make/build.ts"
import { open, type OpenImageOptions } from "../make/open-image.ts"
import { createNetwork, listNetworks, openNetwork, removeNetwork } from "../runtime/networks.ts"
import { streamRows, type ExecOptions } from "../runtime/options.ts"
import { stdioOption, type StdioOption } from "../runtime/stdio.ts"
import { userKeyrings } from "../signing/rings.ts"
import { layerRows } from "../source/layer-options.ts"
import { Turns } from "../turns.ts"
import type { Bytes, Milliseconds } from "../units.ts"
import { describe } from "./describe.ts"
import type { Lookup } from "./interpolation.ts"
import { child } from "./load.ts"
import { capabilityOptions } from "./capabilities.ts"
import { configurationOf, inOrder, type Model, type Service } from "./model.ts"
import type { Mapping } from "./tree.ts"
import { openVolume, removeVolumes } from "./volumes.ts"

/** What becomes of something of a project. */
export interface ProjectEvent {
  readonly kind: "network" | "volume" | "image" | "service"
  /** As it is called on this machine. */
  readonly name: string
  readonly state:
    | "built"
    | "fetched"
    | "made"
    | "removed"
    | "runs"
    | "started"
    | "failed"
    | "healthy"
    | "succeeded"
    | "stopped"
}

interface EventOptions {
  /** Hears what becomes of networks, volumes, images and services. */
  readonly onEvent?: ((event: ProjectEvent) => void) | undefined
  readonly signal?: AbortSignal | undefined
}

/** How images are found and opened. */
export interface ImageAccess extends Pick<
  OpenImageOptions,
  "oci" | "unsigned" | "kdfLimits" | "onDerivation"
> {
  /** Opens encrypted images of services that name no key of their own. */
  readonly unlock?: readonly CredentialSource[] | undefined
  /** Of protected key files that services name. */
  readonly password?: SecretSource | undefined
  /** Hears what the user should know, in a sentence. */
  readonly onNotice?: ((text: string) => void) | undefined
}

/** How {@link Project.up} starts. */
export interface UpOptions extends ImageAccess, EventOptions {
  /** These, and what they depend on; default: all. */
  readonly services?: readonly string[] | undefined
  /** Not what they depend on. */
  readonly noDependencies?: boolean | undefined
  /** Images of definition files are built anew. */
  readonly build?: boolean | undefined
  /** What runs is stopped and started anew, changed or not. */
  readonly recreate?: boolean | undefined
  /** Instances of services that the files do not have any more are removed. */
  readonly removeOrphans?: boolean | undefined
  /** Until all run, and are healthy where that can be told. */
  readonly wait?: boolean | undefined
}

/** How {@link Services.stop} stops. */
export interface StopServicesOptions extends EventOptions {
  /** Default: all. */
  readonly services?: readonly string[] | undefined
  /** After so long each is killed; default: as the files say, 10 seconds. */
  readonly timeoutMs?: Milliseconds | undefined
}

/** How {@link Services.down} ends all. */
export interface DownOptions extends Omit<StopServicesOptions, "services"> {
  /** The volumes that the project has made are removed as well. */
  readonly volumes?: boolean | undefined
}

/** An instance of a service. */
export interface ServiceInstance extends InstanceStatus {
  readonly service: string
  /** From 1 on. */
  readonly number: number
  /** The instance's name. */
  readonly name: string
  readonly image: string
  /** As they were published. */
  readonly ports: readonly string[]
}

/** How {@link Services.logs} reads. */
export interface ServiceLogOptions {
  /** Default: all. */
  readonly services?: readonly string[] | undefined
  /** Goes on until all have ended. */
  readonly follow?: boolean | undefined
  readonly signal?: AbortSignal | undefined
}

/** A piece of what an instance has written. */
export interface ServiceLogPiece extends LogPiece {
  readonly service: string
  readonly name: string
}

/** How {@link Project.run} runs. */
export interface RunServiceOptions extends ImageAccess, EventOptions {
  /** Not what it depends on. */
  readonly noDependencies?: boolean | undefined
  /** Its ports are published as well. */
  readonly ports?: boolean | undefined
  /** `NAME=VALUE`, stronger than what the files say. */
  readonly env?: readonly string[] | undefined
  readonly cwd?: string | undefined
  /** Instead of the service's. */
  readonly entrypoint?: readonly string[] | undefined
  /** Default `inherit`. */
  readonly stdio?: StdioOption | undefined
}

/** How {@link Project.exec} runs. */
export interface ExecServiceOptions extends Pick<
  JoinOptions,
  "stdio" | "terminalSize" | "signal" | "env" | "cwd" | "onNotice"
> {
  /** Which of several instances; default 1. */
  readonly number?: number | undefined
}

const texts = is.list(is.text)
const eventRows: is.Rows<EventOptions> = { onEvent: is.callback, signal: is.abortSignal }
const accessRows: is.Rows<ImageAccess> = {
  unlock: credentialList,
  password: secretSource,
  ...layerRows,
  unsigned: openRows.unsigned,
  kdfLimits: openRows.kdfLimits,
  onDerivation: is.callback,
  onNotice: is.callback,
}
const checkUp = is.shape<UpOptions>({
  ...{ ...accessRows, ...eventRows, services: texts },
  ...{ noDependencies: is.flag, build: is.flag, recreate: is.flag, removeOrphans: is.flag, wait: is.flag },
})
const checkStop = is.shape<StopServicesOptions>({ ...eventRows, services: texts, timeoutMs: is.milliseconds })
const checkDown = is.shape<DownOptions>({ ...eventRows, timeoutMs: is.milliseconds, volumes: is.flag })
const checkLogs = is.shape<ServiceLogOptions>({ services: texts, follow: is.flag, signal: is.abortSignal })
const checkRun = is.shape<RunServiceOptions>({
  ...{ ...accessRows, ...eventRows, noDependencies: is.flag, ports: is.flag },
  ...{ env: texts, cwd: is.text, entrypoint: texts, stdio: stdioOption },
})

const checkExec = is.shape<ExecServiceOptions>({
  ...{ stdio: stdioOption, terminalSize: streamRows.terminalSize, env: texts, cwd: is.text },
  ...{ signal: is.abortSignal, onNotice: is.callback, number: is.whole(1) },
})

/** What instances carry. */
const LABEL = {
  project: "sifcrypt.compose.project",
  service: "sifcrypt.compose.service",
  number: "sifcrypt.compose.number",
  /** Of what the files say of it. */
  configuration: "sifcrypt.compose.configuration",
  /** Services that it needs, which end after it. */
  needs: "sifcrypt.compose.needs",
  ports: "sifcrypt.compose.ports",
  /** By the names of their folders. */
  volumes: "sifcrypt.compose.volumes",
} as const

/** Services that are started or stopped at once. */
const AT_ONCE = 8
const MAX_FILE: Bytes = 1 << 20

function failed(message: string, cause?: unknown): ComposeError {
  return new ComposeError("ERR_COMPOSE_SERVICE", message, { cause })
}

interface Found {
  readonly service: string
  readonly number: number
  readonly instance: Instance
}

function labelOf({ labels }: Instance, key: keyof typeof LABEL): string {
  return labels[LABEL[key]] ?? ""
}

/** Those that run, and those that have ended and were not removed. */
async function instancesOf(project: string): Promise<Found[]> {
  return (await listInstances({ ended: true }))
    .filter((instance) => labelOf(instance, "project") === project)
    .map((instance) => ({
      instance,
      service: labelOf(instance, "service"),
      number: Number(labelOf(instance, "number")),
    }))
    .sort((a, b) => (a.service === b.service ? a.number - b.number : a.service < b.service ? -1 : 1))
}

/** Of each volume that there is an instance with, one such. */
async function usersOfVolumes(): Promise<Map<string, string>> {
  const all = await listInstances({ ended: true })
  return new Map(
    all.flatMap((instance) =>
      labelOf(instance, "volumes")
        .split(",")
        .map((volume) => [volume, instance.name] as const),
    ),
  )
}

/** Some at a time. What failed first is thrown when all have settled. */
async function eachAtOnce<T>(all: readonly T[], work: (one: T) => Promise<void>): Promise<void> {
  const turns = new Turns(AT_ONCE)
  const results = await Promise.allSettled(all.map((one) => turns.take(() => work(one))))
  for (const result of results) if (result.status === "rejected") throw result.reason
}

/** Those first that no other needs; what needs each other in a circle, all at once. */
function* endingOrder(all: readonly Found[]): Generator<readonly Found[], void, undefined> {
  let left = [...all]
  while (left.length > 0) {
    const needed = new Set(left.flatMap(({ instance }) => labelOf(instance, "needs").split(",")))
    const free = left.filter(({ service }) => !needed.has(service))
    const now = free.length > 0 ? free : left
    yield now
    left = left.filter((one) => !now.includes(one))
  }
}

async function stopAll(
  all: readonly Found[],
  { onEvent, timeoutMs, signal }: Omit<StopServicesOptions, "services">,
): Promise<void> {
  for (const some of endingOrder(all))
    await eachAtOnce(some, async ({ instance }) => {
      signal?.throwIfAborted()
      if (instance.status().state === "ended") return
      await instance.stop(timeoutMs === undefined ? {} : { timeoutMs })
      onEvent?.({ kind: "service", name: instance.name, state: "stopped" })
    })
}

/** What runs of a project, whoever started it: all that needs no compose file. */
export class Services {
  readonly name: string

  /** @internal Use {@link open} of `compose`. */
  constructor(name: string) {
    this.name = name
  }

  async #chosen(services: readonly string[] | undefined): Promise<Found[]> {
    const all = await instancesOf(this.name)
    for (const service of services ?? [])
      if (!all.some((one) => one.service === service))
        throw new ComposeError(
          "ERR_COMPOSE_PROJECT",
          `there is no instance of the service ${service} in ${this.name}`,
        )
    return services === undefined ? all : all.filter(({ service }) => services.includes(service))
  }

  /** Its instances, those that have ended too. */
  async ps(): Promise<ServiceInstance[]> {
    return (await instancesOf(this.name)).map(({ service, number, instance }) => ({
      ...{ service, number, name: instance.name, image: instance.image },
      ports: labelOf(instance, "ports")
        .split(" ")
        .filter((word) => word !== ""),
      ...instance.status(),
    }))
  }

  /**
   * What they have written, each from the start; with `follow` also what they go on to write.
   *
   * @throws ComposeError `ERR_COMPOSE_PROJECT` for a service that is not there; the signal's reason.
   */
  async *logs(options: ServiceLogOptions = {}): AsyncGenerator<ServiceLogPiece, void, undefined> {
    const { services, follow, signal } = checkLogs(options, "options")
    const found = await this.#chosen(services)
    const waiting = new Map(
      found.map(({ service, instance }) => {
        const pieces = instance.logs({ follow, signal })
        const next = async (): Promise<{ readonly key: Instance; readonly piece?: ServiceLogPiece }> => {
          const { done, value } = await pieces.next()
          return done === true
            ? { key: instance }
            : { key: instance, piece: { ...value, service, name: instance.name } }
        }
        return [instance, { next, turn: next() }]
      }),
    )
    while (waiting.size > 0) {
      const { key, piece } = await Promise.race([...waiting.values()].map(({ turn }) => turn))
      const one = waiting.get(key)
      if (piece === undefined || one === undefined) waiting.delete(key)
      else {
        one.turn = one.next()
        yield piece
      }
    }
  }

  /**
   * Ends services, those first that others do not need. What they wrote can still be read.
   *
   * @throws ComposeError `ERR_COMPOSE_PROJECT`; RunError.
   */
  async stop(options: StopServicesOptions = {}): Promise<void> {
    const { services, ...how } = checkStop(options, "options")
    await stopAll(await this.#chosen(services), how)
  }

  /**
   * Ends all, and removes all but volumes.
   *
   * @throws RunError; ComposeError `ERR_COMPOSE_PROJECT`: a volume that was to be removed is another project's as well.
   */
  async down(options: DownOptions = {}): Promise<void> {
    const { volumes = false, ...how } = checkDown(options, "options")
    const { onEvent } = how
    const all = await instancesOf(this.name)
    await stopAll(all, how)
    for (const { instance } of all) {
      await instance.remove()
      onEvent?.({ kind: "service", name: instance.name, state: "removed" })
    }
    for (const { name, labels } of await listNetworks())
      if (labels[LABEL.project] === this.name) {
        await removeNetwork(name)
        onEvent?.({ kind: "network", name, state: "removed" })
      }
    if (!volumes) return
    for await (const name of removeVolumes(this.name, await usersOfVolumes()))
      onEvent?.({ kind: "volume", name, state: "removed" })
  }
}

function accessOf(options: ImageAccess): ImageAccess {
  const { unlock, password, oci, unsigned, kdfLimits, onDerivation, onNotice } = options
  return { unlock, password, oci, unsigned, kdfLimits, onDerivation, onNotice }
}

/** Images of services: each is opened once, however many have it. */
class Images implements AsyncDisposable {
  readonly #access: ImageAccess
  readonly #signal: AbortSignal | undefined
  readonly #opened = new Map<string, Promise<Image>>()

  constructor(access: ImageAccess, signal: AbortSignal | undefined) {
    this.#access = access
    this.#signal = signal
  }

  async #keys({ crypt }: Service): Promise<readonly CredentialSource[]> {
    const { unlock = [], password } = this.#access
    const protectedBy = password === undefined ? {} : { password }
    const own: CredentialSource[] = []
    if (crypt.pemPath !== undefined) own.push({ key: { file: crypt.pemPath }, ...protectedBy })
    if (crypt.keyCommand !== undefined) own.push({ key: { command: crypt.keyCommand }, ...protectedBy })
    if (crypt.certificate !== undefined) {
      const { pfx } = byThumbprint(await listStored(), crypt.certificate)
      own.push({ key: { file: pfx }, ...protectedBy })
    }
    return own.length > 0 ? own : unlock
  }

  /** Whom an image that is built of a definition file is encrypted for: whoever has the key of its service. */
  async build(service: Service, onEvent: EventOptions["onEvent"]): Promise<void> {
    if (service.build === undefined) return
    const { pemPath, certificate } = service.crypt
    const recipients =
      pemPath === undefined && certificate === undefined ? undefined : await this.#keys(service)
    await build({
      output: service.image,
      source: service.build.definition,
      force: true,
      buildArguments: service.build.arguments,
      ...(recipients === undefined ? {} : { recipients }),
      ...(service.crypt.requireEncrypted === true && recipients === undefined ? { encrypt: true } : {}),
      onNotice: this.#access.onNotice,
      signal: this.#signal,
    })
    onEvent?.({ kind: "image", name: service.image, state: "built" })
  }

  async #open(service: Service): Promise<Image> {
    const { oci, unsigned, kdfLimits, onDerivation, onNotice } = this.#access
    const { requireSigner, requireEncrypted } = service.crypt
    return await open(service.image, {
      unlock: await this.#keys(service),
      ...{ oci, unsigned, kdfLimits, onDerivation, onNotice, signal: this.#signal },
      architecture: service.architecture,
      requireEncrypted,
      ...(requireSigner === undefined
        ? {}
        : { verify: { keyPaths: [], keyringPaths: userKeyrings(process.env), require: requireSigner } }),
    })
  }

  get(service: Service): Promise<Image> {
    const key = JSON.stringify([service.image, service.architecture, service.crypt])
    let opened = this.#opened.get(key)
    if (opened === undefined) {
      opened = this.#open(service)
      this.#opened.set(key, opened)
    }
    return opened
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const opened of this.#opened.values()) await (await opened.catch(() => undefined))?.close()
  }
}

interface Described {
  readonly folder: string
  readonly files: readonly string[]
  readonly tree: Mapping
  readonly model: Model
  readonly lookup: Lookup
}

/** A project as its compose files describe it. */
export class Project extends Services {
  /** What paths are relative to. */
  readonly folder: string
  readonly files: readonly string[]
  readonly #tree: Mapping
  readonly #model: Model
  readonly #lookup: Lookup

  /** @internal Use {@link load}. */
  constructor(name: string, { folder, files, tree, model, lookup }: Described) {
    super(name)
    this.folder = folder
    this.files = files
    this.#tree = tree
    this.#model = model
    this.#lookup = lookup
  }

  /** Names of the services that are there. */
  get services(): readonly string[] {
    return [...this.#model.services.keys()]
  }

  /** What each service starts from, as `open` takes it. */
  get images(): ReadonlyMap<string, string> {
    return new Map([...this.#model.services].map(([name, { image }]) => [name, image]))
  }

  /** What is understood of the files, in the long forms: plain objects. */
  config(): object {
    return describe(this.#tree, this.name, this.#model)
  }

  /** The same as a compose file. */
  yaml(): string {
    return stringify(this.config(), { aliasDuplicateObjects: false, lineWidth: 0 })
  }

  /** @internal What an instance is compared by with what the files say now. */
  configurationOf(name: string): string {
    return configurationOf(this.#service(name), this.#model)
  }

  #service(name: string): Service {
    const found = this.#model.services.get(name)
    if (found === undefined)
      throw new ComposeError("ERR_COMPOSE_PROJECT", `there is no service ${name} in ${this.name}`)
    return found
  }

  /** Services, and what they need, in the order in which they start. */
  #selection(names: readonly string[] | undefined, alone: boolean): Service[] {
    const wanted = new Set<Service>()
    const add = (service: Service): void => {
      if (wanted.has(service)) return
      wanted.add(service)
      for (const { service: name } of alone ? [] : service.dependsOn) {
        const other = this.#model.services.get(name)
        if (other !== undefined) add(other)
      }
    }
    for (const name of names ?? this.services) add(this.#service(name))
    return inOrder(this.#model.services).filter((service) => wanted.has(service))
  }

  async #makeNetworks(services: readonly Service[], onEvent: EventOptions["onEvent"]): Promise<void> {
    const used = new Set(services.flatMap(({ networks }) => networks.map(({ network }) => network)))
    const there = new Map((await listNetworks()).map((network) => [network.name, network]))
    for (const key of used) {
      const network = this.#model.networks.get(key)
      if (network === undefined) continue
      const { name, external, internal, subnet } = network
      if (external) {
        await openNetwork(name)
        continue
      }
      const found = there.get(name)
      if (found !== undefined) {
        if (found.labels[LABEL.project] !== this.name)
          throw new ComposeError(
            "ERR_COMPOSE_PROJECT",
            `the network ${name} is not of the project ${this.name}: external: true takes it as it is`,
          )
        if (found.internal === internal && (subnet === undefined || found.subnet === subnet)) continue
        if (found.containers.length > 0)
          throw new ComposeError(
            "ERR_COMPOSE_PROJECT",
            `the network ${name} is not as the files have it now, and in use: down ends all, and up makes it anew`,
          )
        await removeNetwork(name)
      }
      await createNetwork(name, { internal, subnet, labels: { [LABEL.project]: this.name } })
      onEvent?.({ kind: "network", name, state: "made" })
    }
  }

  /** Contents of secrets and configurations, in memory; the caller wipes them. */
  async #files(
    { files }: Service,
    signal: AbortSignal | undefined,
  ): Promise<NonNullable<ExecOptions["files"]>> {
    return await Promise.all(
      files.map(async ({ kind, source, target, mode }) => {
        const from = (kind === "secret" ? this.#model.secrets : this.#model.configs).get(source)
        if (from === undefined) throw failed(`there is no ${kind} ${source}`)
        if ("file" in from)
          try {
            return { path: target, mode, content: await readBounded(from.file, MAX_FILE, { signal }) }
          } catch (cause) {
            signal?.throwIfAborted()
            throw failed(`${kind} ${source}: ${from.file} cannot be read: ${(cause as Error).message}`, cause)
          }
        const value = "content" in from ? from.content : this.#lookup(from.variable)
        if (value === undefined)
          throw failed(
            `${kind} ${source}: the variable ${"variable" in from ? from.variable : ""} is not set`,
          )
        const content = allocateSecret(Buffer.byteLength(value))
        content.write(value)
        return { path: target, mode, content }
      }),
    )
  }

  /** What an instance of a service is told, or a run of it. */
  #options(service: Service): ExecOptions {
    const { environment, networks, networkMode, readOnly, scratch, ports, limits, user, cwd, hostname } =
      service
    const isRoot = process.geteuid?.() === 0
    const [uid = "", gid = uid] = user?.split(":") ?? []
    const isRootInside = user === undefined || uid === "0"
    const own = `${process.geteuid?.() ?? ""}`
    if (!isRoot && !isRootInside && uid !== own)
      throw failed(`${service.name}: user ${user}: as an ordinary user a service is root or ${own}, yourself`)
    for (const folder of service.madeFolders) if (!existsSync(folder)) mkdirSync(folder, { recursive: true })
    return {
      containAll: true,
      noUmask: true,
      noEval: true,
      writableTmpfs: !readOnly,
      ...(isRoot || !isRootInside ? {} : { fakeroot: true }),
      security: [...service.security, ...(isRoot && !isRootInside ? [`uid:${uid}`, `gid:${gid}`] : [])],
      env: Object.entries(environment).map(([name, value]) => `${name}=${value}`),
      binds: [
        ...service.binds,
        ...service.volumes.map(({ volume, target, readOnly: isReadOnly }) => {
          const known = this.#model.volumes.get(volume)
          if (known === undefined) throw failed(`there is no volume ${volume}`)
          return {
            source: openVolume(known, this.name),
            destination: target,
            readOnly: isReadOnly,
            nested: false,
          }
        }),
      ],
      scratch,
      publish: ports,
      network:
        networkMode ??
        networks.map(({ network, aliases, address }) => ({
          name: this.#model.networks.get(network)?.name ?? network,
          aliases: [...new Set([service.name, ...aliases])],
          ...(address === undefined ? {} : { address }),
        })),
      hostname: hostname ?? service.name,
      cwd: cwd ?? "/",
      // An empty list would be no server at all.
      ...(service.dns.length > 0 ? { dns: service.dns } : {}),
      ...{ addHost: service.addHost, nv: service.nv, noPid: service.noPid },
      ...capabilityOptions(service.addCaps, service.dropCaps),
      ...limits,
    }
  }

  #nameOf({ name, containerName }: Service, number: number): string {
    const found = containerName ?? `${this.name}-${name}-${number}`
    if (found.length > 64) throw failed(`${found}: the name of an instance has 64 letters at most`)
    return found
  }

  async #startOne(
    service: Service,
    number: number,
    images: Images,
    { onEvent, signal, onNotice }: EventOptions & ImageAccess,
  ): Promise<Instance> {
    const name = this.#nameOf(service, number)
    try {
      return await this.#startAs(name, service, number, images, { onEvent, signal, onNotice })
    } catch (error) {
      // The error is the image's, or the machine's: it does not know which of many it was.
      onEvent?.({ kind: "service", name, state: "failed" })
      throw error
    }
  }

  async #startAs(
    name: string,
    service: Service,
    number: number,
    images: Images,
    { onEvent, signal, onNotice }: EventOptions & ImageAccess,
  ): Promise<Instance> {
    const files = await this.#files(service, signal)
    try {
      const options: InstanceOptions = {
        ...this.#options(service),
        ...{ files, signal, onNotice, service: true, restart: service.restart },
        ...{ health: service.health, logs: service.logs },
        ...{ stopSignal: service.stopSignal, stopTimeoutMs: service.stopTimeoutMs },
        labels: {
          [LABEL.project]: this.name,
          [LABEL.service]: service.name,
          [LABEL.number]: String(number),
          [LABEL.configuration]: configurationOf(service, this.#model),
          [LABEL.needs]: service.dependsOn.map((one) => one.service).join(","),
          [LABEL.ports]: service.ports.join(" "),
          [LABEL.volumes]: service.volumes
            .map(({ volume }) => this.#model.volumes.get(volume)?.name ?? volume)
            .join(","),
        },
      }
      const image = await images.get(service)
      const { entrypoint = [], command } = service
      const instance =
        entrypoint.length > 0
          ? await image.execInstance(name, [...entrypoint, ...command], options)
          : await image.runInstance(name, command, options)
      onEvent?.({ kind: "service", name, state: "started" })
      return instance
    } finally {
      for (const { content } of files) content.fill(0)
    }
  }

  /** Waits for what another service needs of this one. */
  async #await(
    service: Service,
    condition: "service_healthy" | "service_completed_successfully",
    instances: readonly Instance[],
    { onEvent, signal }: EventOptions,
  ): Promise<void> {
    for (const instance of instances) {
      const { name } = instance
      if (condition === "service_healthy") {
        const { health, state } = await instance.wait({ until: "healthy", signal })
        if (health === undefined && state !== "ended")
          throw failed(`${name} has no health check: nobody can wait until ${service.name} is healthy`)
        if (health !== "healthy")
          throw failed(
            `${name} ${state === "ended" ? "has ended" : "is unhealthy"}: others wait until ${service.name} is healthy`,
          )
        onEvent?.({ kind: "service", name, state: "healthy" })
      } else {
        const { exitCode, failure } = await instance.wait({ until: "ended", signal })
        if (exitCode !== 0)
          throw failed(
            `${name} ended with ${failure ?? `status ${exitCode ?? "unknown"}`}: others wait until ${service.name} has succeeded`,
          )
        onEvent?.({ kind: "service", name, state: "succeeded" })
      }
    }
  }

  /**
   * Starts what does not run, and starts anew what the files describe otherwise than when it was started. When something fails, what this
   * has started is stopped; what it wrote can be read until {@link Services.down}.
   *
   * @throws ComposeError `ERR_COMPOSE_SERVICE`, `ERR_COMPOSE_PROJECT`; RunError; the signal's reason.
   */
  async up(given: UpOptions = {}): Promise<void> {
    const options = checkUp(given, "options")
    const { services: names, noDependencies = false, recreate = false, onEvent, signal } = options
    const services = this.#selection(names, noDependencies)
    const there = await instancesOf(this.name)
    // What profiles leave out is not gone.
    const written = child(this.#tree, "services")
    const orphans = there.filter(({ service }) => child(written, service) === undefined)
    if (options.removeOrphans === true) {
      await stopAll(orphans, options)
      for (const { instance } of orphans) await instance.remove()
    } else if (orphans.length > 0)
      options.onNotice?.(
        `${orphans.map(({ instance }) => instance.name).join(", ")}: of services that the files do not have (any more)`,
      )
    // What is wrong with one of them is told before any starts.
    for (const service of services) this.#options(service)
    await this.#makeNetworks(services, onEvent)
    await using images = new Images(options, signal)
    for (const service of services)
      if (service.build !== undefined && (options.build === true || !existsSync(service.image)))
        await images.build(service, onEvent)
    const started: Found[] = []
    const turns = new Turns(AT_ONCE)
    const work = new Map<string, Promise<Instance[]>>()
    const startService = async (service: Service): Promise<Instance[]> => {
      for (const { service: name, condition, required } of service.dependsOn) {
        const other = this.#model.services.get(name)
        const running = work.get(name)
        if (other === undefined || running === undefined) continue
        try {
          const instances = await running
          if (condition !== "service_started") await this.#await(other, condition, instances, options)
        } catch (error) {
          signal?.throwIfAborted()
          if (required) throw error
          options.onNotice?.(`${service.name} starts without ${name}: ${(error as Error).message}`)
        }
      }
      const own = there.filter((one) => one.service === service.name)
      const instances: Instance[] = []
      const configuration = configurationOf(service, this.#model)
      const isKept = ({ instance, number }: Found): boolean =>
        number <= service.replicas &&
        !recreate &&
        instance.status().state !== "ended" &&
        labelOf(instance, "configuration") === configuration
      const old = own.filter((one) => !isKept(one))
      await stopAll(old, options)
      for (const { instance } of old) await instance.remove()
      for (let number = 1; number <= service.replicas; number++) {
        const kept = own.find((one) => one.number === number && !old.includes(one))
        if (kept !== undefined) {
          onEvent?.({ kind: "service", name: kept.instance.name, state: "runs" })
          instances.push(kept.instance)
          continue
        }
        signal?.throwIfAborted()
        const instance = await turns.take(() => this.#startOne(service, number, images, options))
        started.push({ service: service.name, number, instance })
        instances.push(instance)
      }
      return instances
    }
    try {
      for (const service of services) {
        const starting = startService(service)
        // Who waits for it hears of it; so does the one below.
        starting.catch(() => undefined)
        work.set(service.name, starting)
      }
      const results = await Promise.allSettled(work.values())
      for (const result of results) if (result.status === "rejected") throw result.reason
      if (options.wait === true)
        for (const service of services) {
          const instances = (await work.get(service.name)) ?? []
          const asked = instances.filter((instance) => instance.status().health !== undefined)
          await this.#await(service, "service_healthy", asked, options)
        }
    } catch (error) {
      await stopAll(started, { onEvent }).catch(() => undefined)
      throw error
    }
  }

  /**
   * Starts what was stopped, without what it depends on.
   *
   * @throws As {@link Project.up}.
   */
  async start(given: UpOptions = {}): Promise<void> {
    const options = checkUp(given, "options")
    const there = await instancesOf(this.name)
    const known = [...new Set(there.map(({ service }) => service))].filter((name) =>
      this.#model.services.has(name),
    )
    const services = options.services ?? known
    for (const name of services)
      if (!known.includes(name))
        throw new ComposeError("ERR_COMPOSE_PROJECT", `there is nothing of ${name} to start: up makes it`)
    if (services.length === 0)
      throw new ComposeError("ERR_COMPOSE_PROJECT", `there is nothing of ${this.name} to start: up makes it`)
    await this.up({ ...options, services, noDependencies: true })
  }

  /**
   * Fetches images by their names into the cache.
   *
   * @throws As `open`.
   */
  async pull(given: UpOptions = {}): Promise<void> {
    const options = checkUp(given, "options")
    const { services, noDependencies = true, onEvent, signal } = options
    await using images = new Images(options, signal)
    const wanted = this.#selection(services, noDependencies).filter(({ image }) => !path.isAbsolute(image))
    await eachAtOnce(wanted, async (service) => {
      signal?.throwIfAborted()
      await images.get(service)
      onEvent?.({ kind: "image", name: service.image, state: "fetched" })
    })
  }

  /**
   * Builds images of definition files.
   *
   * @throws As `build`.
   */
  async build(given: UpOptions = {}): Promise<void> {
    const options = checkUp(given, "options")
    await using images = new Images(options, options.signal)
    for (const service of this.#selection(options.services, true))
      await images.build(service, options.onEvent)
  }

  /**
   * Runs a command once, as a service would run it: beside what it depends on, with its environment, volumes, secrets and networks.
   *
   * @param argv - Instead of the service's command; empty: that.
   * @throws As {@link Project.up}; as {@link Image.exec}.
   */
  async run(name: string, argv: readonly string[] = [], given: RunServiceOptions = {}): Promise<Running> {
    const options = checkRun(given, "options")
    const words = texts(argv, "argv")
    const {
      noDependencies = false,
      ports = false,
      env = [],
      cwd,
      stdio = "inherit",
      onEvent,
      signal,
    } = options
    const service = this.#service(name)
    const needed = service.dependsOn.map((one) => one.service).filter((one) => this.#model.services.has(one))
    if (!noDependencies && needed.length > 0)
      await this.up({ ...accessOf(options), onEvent, signal, services: needed })
    await this.#makeNetworks([service], onEvent)
    await using images = new Images(options, signal)
    if (service.build !== undefined && !existsSync(service.image)) await images.build(service, onEvent)
    const files = await this.#files(service, signal)
    try {
      const own = this.#options(service)
      const how: ExecOptions = {
        ...own,
        ...(ports ? {} : { publish: [] }),
        env: [...(own.env ?? []), ...env],
        ...(cwd === undefined ? {} : { cwd }),
        ...{ files, stdio, signal, onNotice: options.onNotice },
      }
      const entrypoint = options.entrypoint ?? service.entrypoint ?? []
      const command = words.length > 0 ? words : service.command
      const image = await images.get(service)
      return entrypoint.length > 0
        ? await image.exec([...entrypoint, ...command], how)
        : await image.run(command, how)
    } finally {
      for (const { content } of files) content.fill(0)
    }
  }

  /**
   * Runs a command in a service that runs.
   *
   * @throws ComposeError `ERR_COMPOSE_PROJECT`; as {@link Instance.exec}.
   */
  async exec(name: string, argv: readonly string[], options: ExecServiceOptions = {}): Promise<Running> {
    const { number = 1, env = [], cwd, ...streams } = checkExec(options, "options")
    const service = this.#service(name)
    const found = (await instancesOf(this.name)).find((one) => one.service === name && one.number === number)
    if (found?.instance.status().state !== "running")
      throw new ComposeError("ERR_COMPOSE_PROJECT", `the service ${name} does not run`)
    const own = Object.entries(service.environment).map(([key, value]) => `${key}=${value}`)
    return await found.instance.exec(argv, {
      ...streams,
      cleanEnv: true,
      noEval: true,
      env: [...own, ...env],
      cwd: cwd ?? service.cwd ?? "/",
    })
  }
}
