// What a compose file comes to: services as instances are started. What the specification knows and is not here is refused where it
// stands, and nothing is left out without a word.
import { createHash } from "node:crypto"
import path from "node:path"
import {
  restartNamed,
  signalNamed,
  type HealthCheck,
  type LogLimits,
  type RestartPolicy,
} from "../container/service.ts"
import { isNetworkName } from "../runtime/networks.ts"
import type { BindSpec, ResourceLimits } from "../runtime/options.ts"
import type { Bytes, Milliseconds } from "../units.ts"
import { isHostPath } from "./canonical.ts"
import type { Field, Readers } from "./field.ts"
import type { Lookup } from "./interpolation.ts"
import { EnvFiles } from "./load.ts"
import { fileError } from "./tree.ts"

/** How the key of encrypted images is found, and what is demanded of them. */
export interface CryptSettings {
  readonly pemPath?: string
  /** For /bin/sh, as `--key-command` has it. */
  readonly keyCommand?: string
  /** Of one in the user's own store: SHA-1 or SHA-256, hexadecimal. */
  readonly certificate?: string
  readonly requireSigner?: readonly string[]
  readonly requireEncrypted?: boolean
}

const CONDITIONS = ["service_started", "service_healthy", "service_completed_successfully"] as const
type Condition = (typeof CONDITIONS)[number]

export interface Dependency {
  readonly service: string
  readonly condition: Condition
  /** Whether it has to be there at all. */
  readonly required: boolean
}

/** A file in memory, of a secret or a configuration. */
export interface FileMount {
  readonly kind: "secret" | "config"
  /** As the file calls it. */
  readonly source: string
  /** Absolute, inside. */
  readonly target: string
  readonly mode: number
}

export interface VolumeMount {
  readonly volume: string
  readonly target: string
  readonly readOnly: boolean
}

export interface NetworkMembership {
  /** As the file calls it. */
  readonly network: string
  readonly aliases: readonly string[]
  readonly address?: string
}

/** How an image is made of a definition file. */
export interface BuildSettings {
  /** What the definition's path is relative to. */
  readonly context: string
  readonly definition: string
  readonly arguments: readonly string[]
}

export interface Service {
  readonly name: string
  /** As `open` takes it. */
  readonly image: string
  readonly build?: BuildSettings
  readonly architecture?: string
  /** Instead of what the image starts with; without it, `command` stands behind the image's own. */
  readonly entrypoint?: readonly string[]
  readonly command: readonly string[]
  /** Instances of it. */
  readonly replicas: number
  /** Instead of PROJECT-SERVICE-N. */
  readonly containerName?: string
  readonly environment: Readonly<Record<string, string>>
  readonly labels: Readonly<Record<string, string>>
  readonly dependsOn: readonly Dependency[]
  /** Without memberships. */
  readonly networkMode?: "none" | "host" | "pasta"
  readonly networks: readonly NetworkMembership[]
  /** As `publish` takes them. */
  readonly ports: readonly string[]
  readonly binds: readonly BindSpec[]
  /** Sources of binds: a folder is made where nothing is. */
  readonly madeFolders: readonly string[]
  readonly volumes: readonly VolumeMount[]
  /** Empty folders, in memory. */
  readonly scratch: readonly string[]
  readonly files: readonly FileMount[]
  readonly restart: RestartPolicy
  readonly health?: HealthCheck | "none"
  readonly logs?: LogLimits
  readonly stopSignal?: NodeJS.Signals
  readonly stopTimeoutMs?: Milliseconds
  readonly limits: ResourceLimits
  readonly cwd?: string
  readonly user?: string
  readonly hostname?: string
  readonly dns: readonly string[]
  readonly addHost: readonly string[]
  readonly readOnly: boolean
  readonly noPid: boolean
  readonly nv: boolean
  readonly addCaps: readonly string[]
  readonly dropCaps: readonly string[]
  readonly security: readonly string[]
  readonly crypt: CryptSettings
}

export interface Network {
  readonly name: string
  /** Somebody else made it. */
  readonly external: boolean
  readonly internal: boolean
  readonly subnet?: string
}

export interface Volume {
  readonly name: string
  readonly external: boolean
}

/** Where the content of a secret or a configuration comes from. */
export type Content = { readonly file: string } | { readonly variable: string } | { readonly content: string }

export interface Model {
  readonly services: ReadonlyMap<string, Service>
  readonly networks: ReadonlyMap<string, Network>
  readonly volumes: ReadonlyMap<string, Volume>
  readonly secrets: ReadonlyMap<string, Content>
  readonly configs: ReadonlyMap<string, Content>
}

type FolderOf = (file: string) => string

type Draft<T> = { -readonly [K in keyof T]: T[K] }

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/
const MAX_REPLICAS = 100
/** Of a project: more would not find room in a subnet either. */
const MAX_SERVICES = 1000

const nothing = (): void => undefined

const text = (field: Field): string => field.text()
const texts = (field: Field): string[] => field.texts()
const flag = (field: Field): boolean => field.flag()
const size = (field: Field): Bytes => field.size()
const duration = (field: Field): Milliseconds => field.duration()
const whole =
  (least: number, most: number) =>
  (field: Field): number =>
    field.whole(least, most)

/** A reader that keeps what it reads. */
const into =
  <T, K extends keyof T>(found: T, key: K, read: (field: Field) => T[K]) =>
  (field: Field): void => {
    found[key] = read(field)
  }

/** A reader of settings that are fine as they are elsewhere, and of which only these values are here. */
const only =
  (why: string, ...values: readonly string[]) =>
  (field: Field): void => {
    if (!values.includes(field.text())) throw field.unsupported(why)
  }

/** True is refused, false is what is here anyway. */
const notTrue =
  (why: string) =>
  (field: Field): void => {
    if (field.flag()) throw field.unsupported(why)
  }

function readCrypt(field: Field | undefined, base: CryptSettings): CryptSettings {
  const found: Draft<CryptSettings> = { ...base }
  for (const [key, one] of field?.entries() ?? [])
    switch (key) {
      case "pem_path":
        found.pemPath = one.text()
        break
      case "key_command":
        found.keyCommand = one.text()
        break
      case "certificate": {
        const digits = one.text().replaceAll(":", "").toUpperCase()
        if (!/^(?:[0-9A-F]{40}|[0-9A-F]{64})$/.test(digits))
          throw one.error("it is a thumbprint of 40 or 64 hexadecimal digits")
        found.certificate = digits
        break
      }
      case "require_signer": {
        const all = one.tree.kind === "list" ? one.list() : [one]
        found.requireSigner = all.map((signer) => {
          const text = signer.text()
          const digits = text.replaceAll(/[\s:]/g, "").toUpperCase()
          if (/^(?:[0-9A-F]{40}|[0-9A-F]{64})$/.test(digits)) return digits
          if (/^SHA256:[A-Za-z0-9+/]{43}$/.test(text)) return text
          throw signer.error(
            "it is no whole fingerprint: 40 or 64 hexadecimal digits, or SHA256: and 43 characters",
          )
        })
        break
      }
      case "require_encrypted":
        found.requireEncrypted = one.flag()
        break
      default:
        throw one.error(
          "there are pem_path, key_command, certificate, require_signer and require_encrypted here",
        )
    }
  return found
}

const IMAGE_PREFIX = /^(?:docker|oras):\/\/|^(?:oci|oci-archive|docker-archive|store):/

function imageName(field: Field): string {
  const text = field.text()
  if (isHostPath(text) || IMAGE_PREFIX.test(text)) return text
  if (/\.(?:sif|sqfs|squashfs|img)$/i.test(text))
    throw field.error(`${text} is the name of an image at a registry; a path begins with ./ or /`)
  return `docker://${text}`
}

/** NAME=VALUE; what has no value has the caller's, if there is one. */
function variables(field: Field | undefined, lookup: Lookup): Map<string, string | undefined> {
  return new Map(
    (field?.entries() ?? []).map(([name, one]) => {
      if (!/^[A-Za-z_][A-Za-z0-9_.-]*$/.test(name)) throw one.error("no variable can be called so")
      return [name, one.isNull ? lookup(name) : one.text()]
    }),
  )
}

function readEnvironment(service: Field, lookup: Lookup, envFiles: EnvFiles): Record<string, string> {
  const found = new Map<string, string | undefined>()
  for (const one of service.get("env_file")?.list() ?? []) {
    const file = one.get("path")?.text() ?? ""
    const format = one.get("format")?.text()
    if (format !== undefined && format !== "raw") throw one.error("the format is raw, or left out")
    try {
      for (const [name, value] of envFiles.read(file, format === "raw")) found.set(name, value)
    } catch (cause) {
      if (one.get("required")?.flag() === false && isMissing(cause)) continue
      throw cause
    }
  }
  for (const [name, value] of variables(service.get("environment"), lookup)) found.set(name, value)
  const set = [...found].filter((one): one is [string, string] => one[1] !== undefined)
  return Object.fromEntries(set)
}

function isMissing(cause: unknown): boolean {
  return ((cause as { readonly cause?: NodeJS.ErrnoException }).cause ?? {}).code === "ENOENT"
}

function labels(field: Field | undefined): Record<string, string> {
  return Object.fromEntries(
    (field?.entries() ?? []).map(([name, one]) => [name, one.isNull ? "" : one.text()]),
  )
}

function readPort(field: Field): string {
  const found = { address: "", published: "", target: 0, protocol: "tcp" }
  field.each({
    name: nothing,
    app_protocol: nothing,
    mode: (one) => {
      one.oneOf("ingress", "host")
    },
    host_ip: (one) => {
      const address = one.text()
      if (address.includes(":")) throw one.unsupported("only IPv4 is there")
      found.address = address
    },
    target: into(found, "target", whole(1, 65_535)),
    published: (one) => {
      const text = one.text()
      if (text.includes("-")) throw one.unsupported("one port of a range is not chosen: say which")
      found.published = String(one.whole(1, 65_535))
    },
    protocol: (one) => {
      const protocol = one.text()
      if (protocol !== "tcp" && protocol !== "udp") throw one.unsupported("there are tcp and udp")
      found.protocol = protocol
    },
  })
  if (found.published === "")
    throw field.unsupported(`no port of this machine is chosen for it: say which, as "8080:${found.target}"`)
  const host = found.address === "" ? "" : `${found.address}:`
  return `${host}${found.published}:${found.target}/${found.protocol}`
}

function readExpose(field: Field): void {
  for (const one of field.list())
    if (!/^\d{1,5}(?:-\d{1,5})?(?:\/(?:tcp|udp))?$/.test(one.text())) throw one.error("it is a port")
}

function absolute(field: Field): string {
  const text = field.text()
  if (!path.isAbsolute(text)) throw field.error("it is an absolute path, inside")
  return path.normalize(text).replace(/(?<=.)\/+$/, "")
}

interface Mounts {
  readonly binds: BindSpec[]
  readonly madeFolders: string[]
  readonly volumes: VolumeMount[]
  readonly scratch: string[]
}

function readVolume(field: Field, { binds, madeFolders, volumes, scratch }: Mounts): void {
  const type = field.get("type")?.text() ?? "volume"
  const source = field.get("source")?.text()
  const at = field.get("target")
  if (at === undefined) throw field.error("target is missing")
  const target = absolute(at)
  const readOnly = field.get("read_only")?.flag() ?? false
  const common = {
    type: nothing,
    source: nothing,
    target: nothing,
    read_only: nothing,
    consistency: (one: Field) => {
      one.oneOf("consistent", "cached", "delegated", "default")
    },
  }
  switch (type) {
    case "bind":
      field.each({
        ...common,
        bind: {
          create_host_path: nothing,
          propagation: only("only rprivate is there", "rprivate"),
          recursive: only("what is mounted below is there as well", "enabled"),
          selinux: "files are not labelled anew: label them yourself, with chcon",
        },
      })
      if (source === undefined || !path.isAbsolute(source))
        throw field.error("the source of a bind is a path: ./ or / before it")
      binds.push({ source, destination: target, readOnly, nested: false })
      if (field.get("bind")?.get("create_host_path")?.flag() === true) madeFolders.push(source)
      break
    case "volume":
      field.each({
        ...common,
        volume: { nocopy: nothing, subpath: "all of a volume is mounted", labels: nothing },
      })
      if (source === undefined) scratch.push(target)
      else volumes.push({ volume: source, target, readOnly })
      break
    case "tmpfs":
      field.each({
        ...common,
        read_only: notTrue("nothing could be in it"),
        tmpfs: { size: "it takes what the session's memory has", mode: "its mode is 0700" },
      })
      if (source !== undefined) throw field.error("a tmpfs has no source")
      scratch.push(target)
      break
    default:
      throw field.unsupported(`there are bind, volume and tmpfs, not ${type}`)
  }
}

function readFileMount(field: Field, kind: FileMount["kind"]): FileMount {
  const source = field.get("source")?.text() ?? ""
  let target = kind === "secret" ? `/run/secrets/${source}` : `/${source}`
  let mode = 0o444
  field.each({
    source: nothing,
    target: (one) => {
      const text = one.text()
      target = path.isAbsolute(text) || kind === "config" ? text : `/run/secrets/${text}`
    },
    uid: "it belongs to whoever the service runs as",
    gid: "it belongs to whoever the service runs as",
    mode: (one) => {
      mode = one.mode()
    },
  })
  if (!path.isAbsolute(target)) throw field.error("its target is an absolute path, inside")
  return { kind, source, target: path.normalize(target), mode }
}

function readHealth(field: Field): HealthCheck | "none" | undefined {
  const found: Draft<Partial<HealthCheck>> & { isOff?: boolean } = {}
  field.each({
    disable: (one) => {
      if (one.flag()) found.isOff = true
    },
    test: (one) => {
      const [first, ...rest] = one.texts()
      if (first === "NONE") found.isOff = true
      else if (first === "CMD" && rest.length > 0) found.command = rest
      else if (first === "CMD-SHELL" && rest.length === 1) found.command = ["/bin/sh", "-c", rest[0] ?? ""]
      else throw one.error("it begins with CMD, CMD-SHELL or NONE")
    },
    interval: into(found, "intervalMs", duration),
    timeout: into(found, "timeoutMs", duration),
    start_period: into(found, "startPeriodMs", duration),
    start_interval: "the interval is the same from the start on",
    retries: into(found, "retries", whole(1, 1000)),
  })
  const { isOff, command, ...more } = found
  if (isOff === true) return "none"
  if (command === undefined)
    throw field.unsupported("test is missing: what changes the image's own check has to say all of it")
  return { command, ...more }
}

function readRestart(field: Field): RestartPolicy {
  const policy = restartNamed(field.text())
  if (policy === undefined) throw field.error("it is no, always, unless-stopped or on-failure[:N]")
  return policy
}

function readLogs(field: Field): LogLimits | undefined {
  const found: Draft<Partial<LogLimits>> = {}
  field.each({
    driver: only("what a service writes is in files: the driver is json-file or local", "json-file", "local"),
    options: { "max-size": into(found, "maxSize", size), "max-file": into(found, "maxFiles", whole(1, 100)) },
  })
  const { maxSize, maxFiles } = found
  if (maxSize === undefined) {
    if (maxFiles !== undefined) throw field.error("max-file has no meaning without max-size")
    return undefined
  }
  return { maxSize, maxFiles }
}

function readDependencies(field: Field): Dependency[] {
  return field.entries().map(([service, one]) => {
    const found: Draft<Dependency> = { service, condition: "service_started", required: true }
    one.each({
      condition: into(found, "condition", (value) => value.oneOf(...CONDITIONS)),
      required: into(found, "required", flag),
      restart: notTrue("a service is not started again because another was"),
    })
    return found
  })
}

function readMemberships(field: Field): NetworkMembership[] {
  return field.entries().map(([network, one]) => {
    if (one.isNull) return { network, aliases: [] }
    const found: Draft<NetworkMembership> = { network, aliases: [] }
    one.each({
      aliases: into(found, "aliases", texts),
      ipv4_address: into(found, "address", text),
      priority: "the first network that leads out is the way out",
      gw_priority: "the first network that leads out is the way out",
      ipv6_address: "only IPv4 is there",
      link_local_ips: "only IPv4 is there",
      mac_address: "it is chosen anew for each container",
      interface_name: "they are eth0, eth1 and so on",
      driver_opts: "there are none",
    })
    return found
  })
}

function readBuild(field: Field, folderOf: FolderOf): BuildSettings {
  const context = field.get("context")?.text() ?? folderOf(field.tree.at.file)
  if (!path.isAbsolute(context))
    throw field.unsupported(`${context} is not here: a definition file of this machine is built`)
  const file = field.get("dockerfile")
  if (file === undefined || !file.text().endsWith(".def"))
    throw (file ?? field).unsupported(
      "Dockerfiles are not built: let a builder write an archive, as docker build -o type=docker,dest=web.tar, and take it as image: docker-archive:web.tar; dockerfile: FILE.def is built here",
    )
  const definition = path.resolve(context, file.text())
  const found: Draft<BuildSettings> = { context, definition, arguments: [] }
  field.each({
    context: nothing,
    dockerfile: nothing,
    args: into(found, "arguments", (one) =>
      one.entries().map(([name, value]) => `${name}=${value.isNull ? "" : value.text()}`),
    ),
  })
  return found
}

function readSecurity(field: Field): string[] {
  return field.list().flatMap((one) => {
    const text = one.text()
    if (/^no-new-privileges(?:[:=]true)?$/.test(text)) return []
    const [, kind, value] = /^(seccomp|apparmor)[:=](.+)$/.exec(text) ?? []
    if (kind === undefined || value === undefined || value === "unconfined")
      throw one.unsupported("there are no-new-privileges, seccomp=FILE and apparmor=PROFILE")
    return [`${kind}:${value}`]
  })
}

function readHosts(field: Field): string[] {
  return field.entries().flatMap(([host, addresses]) =>
    addresses.list().map((address) => {
      const text = address.text()
      if (text === "host-gateway")
        throw address.unsupported(
          "this machine is not reached from a container's own network; network_mode: host shares it",
        )
      return `${host}:${text.replace(/^\[|\]$/g, "")}`
    }),
  )
}

function readSignal(field: Field): NodeJS.Signals {
  const signal = signalNamed(field.text())
  if (signal === undefined) throw field.error("there is no such signal")
  return signal
}

const SWARM = "there is one machine, and no swarm"

/** @returns Whether a graphics processor is asked for. */
function readDevices(field: Field): boolean {
  for (const one of field.list()) {
    const capabilities = one.get("capabilities")?.texts() ?? []
    const driver = one.get("driver")?.text()
    if (!capabilities.includes("gpu") || (driver !== undefined && driver !== "nvidia"))
      throw one.unsupported("there are NVIDIA's graphics processors, all of them")
    one.each({
      capabilities: nothing,
      driver: nothing,
      count: only("there are all or none", "all"),
      device_ids: "there are all or none",
      options: "there are none",
    })
  }
  return field.list().length > 0
}

interface Deployed {
  replicas?: number
  restart?: RestartPolicy
  nv?: boolean
  limits: Draft<ResourceLimits>
}

function deployReaders(found: Deployed): Readers {
  return {
    labels: nothing,
    mode: only(SWARM, "replicated"),
    replicas: into(found, "replicas", whole(0, MAX_REPLICAS)),
    endpoint_mode: SWARM,
    placement: SWARM,
    update_config: SWARM,
    rollback_config: SWARM,
    restart_policy: (policy) => {
      const said: { word: "none" | "on-failure" | "any"; retries?: number } = { word: "any" }
      policy.each({
        condition: into(said, "word", (one) => one.oneOf("none", "on-failure", "any")),
        max_attempts: into(said, "retries", whole(0, 1000)),
        delay: "the pause grows by itself, from 100 ms",
        window: "a start has succeeded when the service stays",
      })
      const { word, retries } = said
      if (retries !== undefined && word === "any")
        throw policy.unsupported("max_attempts goes with condition: on-failure")
      const name = ({ none: "no", "on-failure": "on-failure", any: "always" } as const)[word]
      found.restart = { policy: name, ...(retries === undefined || name === "no" ? {} : { retries }) }
    },
    resources: {
      limits: {
        cpus: into(found.limits, "cpus", (one) => one.number(0.001, 100_000)),
        memory: into(found.limits, "memory", size),
        pids: into(found.limits, "pidsLimit", whole(1, 2 ** 22)),
      },
      reservations: {
        cpus: "nothing is kept free of other processes",
        memory: into(found.limits, "memoryReservation", size),
        generic_resources: SWARM,
        devices: into(found, "nv", readDevices),
      },
    },
  }
}

/** What is the same for all services of a project. */
interface Common {
  readonly lookup: Lookup
  readonly envFiles: EnvFiles
  readonly folderOf: FolderOf
  readonly crypt: CryptSettings
}

function readService(name: string, service: Field, { lookup, envFiles, folderOf, crypt }: Common): Service {
  if (!NAME.test(name))
    throw service.error("a service's name has letters, digits, dots, dashes and underscores, at most 63")
  const deployed: Deployed = { limits: {} }
  const { limits } = deployed
  const mounts: Mounts = { binds: [], madeFolders: [], volumes: [], scratch: [] }
  const found: Draft<Partial<Service>> = {}
  const files: FileMount[] = []
  service.each({
    "x-sifcrypt": nothing,
    annotations: nothing,
    attach: (one) => {
      if (!one.flag())
        throw one.unsupported("up shows what all of them write: up -d and logs -f SERVICE show some alone")
    },
    build: into(found, "build", (one) => readBuild(one, folderOf)),
    blkio_config: {
      weight: into(limits, "blkioWeight", whole(10, 1000)),
      weight_device: into(limits, "blkioWeightDevice", (one) =>
        one.list().map((device) => {
          const at = device.get("path")?.text() ?? ""
          return `${at}:${device.get("weight")?.whole(10, 1000) ?? 0}`
        }),
      ),
    },
    cap_add: into(found, "addCaps", texts),
    cap_drop: into(found, "dropCaps", texts),
    cgroup: only("only private is there", "private"),
    command: into(found, "command", texts),
    configs: (one) => {
      files.push(...one.list().map((each) => readFileMount(each, "config")))
    },
    container_name: (one) => {
      const text = one.text()
      if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(text)) throw one.error("it is no name for an instance")
      found.containerName = text
    },
    cpu_shares: into(limits, "cpuShares", whole(2, 262_144)),
    cpus: into(limits, "cpus", (one) => one.number(0.001, 100_000)),
    cpuset: into(limits, "cpusetCpus", text),
    depends_on: into(found, "dependsOn", readDependencies),
    deploy: deployReaders(deployed),
    dns: into(found, "dns", texts),
    entrypoint: into(found, "entrypoint", texts),
    env_file: nothing,
    environment: nothing,
    expose: readExpose,
    extra_hosts: into(found, "addHost", readHosts),
    healthcheck: into(found, "health", readHealth),
    hostname: into(found, "hostname", text),
    image: into(found, "image", imageName),
    init: nothing,
    ipc: only("only private is there", "private"),
    labels: into(found, "labels", labels),
    logging: into(found, "logs", readLogs),
    mem_limit: into(limits, "memory", size),
    mem_reservation: into(limits, "memoryReservation", size),
    memswap_limit: into(limits, "memorySwap", (one) => (one.text() === "-1" ? -1 : one.size())),
    network_mode: (one) => {
      const mode = one.text()
      if (mode !== "none" && mode !== "host" && mode !== "bridge")
        throw one.unsupported("there are none, host and bridge: another container's network is not shared")
      found.networkMode = mode === "bridge" ? "pasta" : mode
    },
    networks: into(found, "networks", readMemberships),
    oom_kill_disable: into(limits, "oomKillDisable", flag),
    pid: (one) => {
      if (one.text() !== "host") throw one.unsupported("there is host, and one of its own without it")
      found.noPid = true
    },
    pids_limit: into(limits, "pidsLimit", whole(-1, 2 ** 22)),
    platform: (one) => {
      const [, architecture] = /^linux\/([a-z0-9]+(?:\/v\d)?)$/.exec(one.text()) ?? []
      if (architecture === undefined) throw one.unsupported("it is linux/ARCHITECTURE")
      found.architecture = architecture.split("/")[0] ?? architecture
    },
    ports: into(found, "ports", (one) => one.list().map(readPort)),
    privileged: notTrue("nothing is more privileged than who starts it: cap_add names what root gives"),
    profiles: nothing,
    pull_policy: only(
      "a registry is asked what a tag means, and what is there already is not fetched: always, missing",
      ...["always", "missing", "if_not_present", "build"],
    ),
    read_only: into(found, "readOnly", flag),
    restart: into(found, "restart", readRestart),
    scale: (one) => {
      deployed.replicas ??= one.whole(0, MAX_REPLICAS)
    },
    secrets: (one) => {
      files.push(...one.list().map((each) => readFileMount(each, "secret")))
    },
    security_opt: into(found, "security", readSecurity),
    stdin_open: notTrue("a service has no standard input: sifcrypt compose run SERVICE has one"),
    stop_grace_period: into(found, "stopTimeoutMs", duration),
    stop_signal: into(found, "stopSignal", readSignal),
    tmpfs: (one) => {
      for (const each of one.list()) {
        if (each.text().includes(":")) throw each.unsupported("it has no options: PATH alone")
        mounts.scratch.push(absolute(each))
      }
    },
    tty: notTrue("a service has no terminal: sifcrypt compose run SERVICE has one"),
    user: (one) => {
      const text = one.text()
      if (text !== "root" && !/^\d{1,10}(?::\d{1,10})?$/.test(text))
        throw one.unsupported("it is UID[:GID] in numbers, or root: names are the image's")
      found.user = text === "root" ? "0" : text
    },
    volumes: (one) => {
      for (const each of one.list()) readVolume(each, mounts)
    },
    working_dir: into(found, "cwd", absolute),
    // Frequent, and refused with more than a word.
    links: "services of a network find each other by their names: networks",
    external_links: "services of a network find each other by their names: networks",
    volumes_from: "a named volume is what services share",
    devices: "binds of devices are not there",
    device_cgroup_rules: "binds of devices are not there",
    ulimits: "limits of processes are those of whoever starts them",
    sysctls: "they are the machine's",
    shm_size: "/dev/shm takes what the session's memory has",
    group_add: "a service has the groups of whoever starts it",
    domainname: "hostname may have dots",
    dns_search: "names are looked up as they are",
    dns_opt: "there are none",
    userns_mode: "it follows from who starts it",
    develop: "nothing is watched",
    gpus: "deploy.resources.reservations.devices has them",
    label_file: "labels are written in the file",
  })
  const image = found.image
  if (image === undefined)
    throw service.unsupported(
      found.build === undefined
        ? "there is neither image nor build"
        : "image says where what is built is written to, as ./web.sif",
    )
  if (found.build !== undefined && !path.isAbsolute(image))
    throw service.unsupported("image is the path of the file that build writes, as ./web.sif")
  const replicas = deployed.replicas ?? 1
  const ports = found.ports ?? []
  if (replicas > 1 && ports.length > 0)
    throw service.unsupported(`${replicas} instances of it cannot have one port of the machine`)
  if (replicas > 1 && found.containerName !== undefined)
    throw service.unsupported(`${replicas} instances of it cannot have one container_name`)
  if (found.networkMode !== undefined && found.networks !== undefined)
    throw service.error("network_mode and networks exclude each other")
  if (files.length > 32) throw service.unsupported("more than 32 secrets and configs")
  return {
    dns: [],
    addHost: [],
    readOnly: false,
    noPid: false,
    addCaps: [],
    dropCaps: [],
    security: [],
    labels: {},
    dependsOn: [],
    command: [],
    ...found,
    ...{ name, image, replicas, ports, files, ...mounts, limits },
    restart: found.restart ?? deployed.restart ?? { policy: "no" },
    nv: deployed.nv ?? false,
    networks:
      found.networks ?? (found.networkMode === undefined ? [{ network: "default", aliases: [] }] : []),
    environment: readEnvironment(service, lookup, envFiles),
    crypt: readCrypt(service.get("x-sifcrypt"), crypt),
  }
}

/** @param at - Where it stands, also when nothing is said of it. */
function readNetwork(name: string, field: Field | undefined, project: string, at: Field): Network {
  const isOurs = field?.get("external")?.flag() !== true
  const found: Draft<Network> = {
    name: isOurs ? `${project}_${name}` : name,
    external: false,
    internal: false,
  }
  field?.each({
    name: into(found, "name", text),
    external: into(found, "external", flag),
    internal: into(found, "internal", flag),
    driver: only("there is bridge", "bridge", "default"),
    driver_opts: "there are none",
    attachable: nothing,
    enable_ipv4: (one) => {
      if (!one.flag()) throw one.unsupported("only IPv4 is there")
    },
    enable_ipv6: notTrue("only IPv4 is there"),
    labels: nothing,
    ipam: {
      driver: only("addresses are chosen here", "default"),
      options: "there are none",
      config: (config) => {
        const [first, ...more] = config.list()
        if (more[0] !== undefined) throw more[0].unsupported("a network has one subnet")
        first?.each({
          subnet: into(found, "subnet", text),
          gateway: "the first address of the subnet is the gateway's",
          ip_range: "addresses are chosen here",
          aux_addresses: "addresses are chosen here",
        })
      },
    },
  })
  if (!isNetworkName(found.name))
    throw at.error(`${found.name} is no name for a network here; network_mode: host and none are none`)
  return found
}

function readVolumeResource(name: string, field: Field | undefined, project: string, at: Field): Volume {
  const isOurs = field?.get("external")?.flag() !== true
  const found: Draft<Volume> = { name: isOurs ? `${project}_${name}` : name, external: false }
  field?.each({
    name: into(found, "name", text),
    external: into(found, "external", flag),
    driver: only("a volume is a folder of yours: local", "local"),
    driver_opts: "a volume is a folder of yours; a bind has a path of its own",
    labels: nothing,
  })
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,126}$/.test(found.name))
    throw at.error(`${found.name} is no name for a volume`)
  return found
}

function readContent(field: Field): Content {
  const said: { content?: Content } = {}
  field.each({
    name: nothing,
    labels: nothing,
    file: into(said, "content", (one) => ({ file: one.text() })),
    environment: into(said, "content", (one) => ({ variable: one.text() })),
    content: into(said, "content", (one) => ({ content: one.text() })),
    external: notTrue("there is no store of them: file and environment say where one is"),
    driver: SWARM,
    driver_opts: SWARM,
    template_driver: SWARM,
  })
  if (said.content === undefined) throw field.error("there is neither file nor environment")
  return said.content
}

function resources<T>(
  root: Field,
  kind: string,
  read: (name: string, field: Field | undefined, at: Field) => T,
): Map<string, T> {
  const entries = root.get(kind)?.entries() ?? []
  return new Map(entries.map(([name, field]) => [name, read(name, field.isNull ? undefined : field, field)]))
}

/** Profiles of a service; one without any is always there. */
export function profilesOf(service: Field): readonly string[] {
  return service.get("profiles")?.texts() ?? []
}

/** What services refer to has to be there. */
function checkReferences(root: Field, model: Model): void {
  const at = (service: string, key: string): Field => root.get("services")?.get(service)?.get(key) ?? root
  for (const { name, networks, volumes, files } of model.services.values()) {
    for (const { network } of networks)
      if (!model.networks.has(network))
        throw at(name, "networks").error(`there is no network ${network} in networks`)
    for (const { volume } of volumes)
      if (!model.volumes.has(volume))
        throw at(name, "volumes").error(`there is no volume ${volume} in volumes`)
    for (const { kind, source } of files)
      if (!(kind === "secret" ? model.secrets : model.configs).has(source))
        throw at(name, `${kind}s`).error(`there is no ${kind} ${source} in ${kind}s`)
  }
}

/**
 * Services in the order in which they start: what another depends on comes first.
 *
 * @throws ComposeError `ERR_COMPOSE_FILE`.
 */
export function inOrder(services: ReadonlyMap<string, Service>): Service[] {
  const ordered = new Set<Service>()
  const visit = (service: Service, chain: readonly string[]): void => {
    if (ordered.has(service)) return
    if (chain.includes(service.name)) {
      const cycle = [...chain.slice(chain.indexOf(service.name)), service.name].join(", ")
      throw fileError(`services depend on each other: ${cycle}`)
    }
    for (const { service: name } of service.dependsOn) {
      const next = services.get(name)
      if (next !== undefined) visit(next, [...chain, service.name])
    }
    ordered.add(service)
  }
  for (const service of services.values()) visit(service, [])
  return [...ordered]
}

/**
 * Tells of a change of what the files say of a service, and of what it refers to, without saying what there is. How many instances of
 * it there are changes none of them.
 */
export function configurationOf(service: Service, model: Model): string {
  const { networks, volumes, files } = service
  const referred = [
    networks.map(({ network }) => model.networks.get(network)),
    volumes.map(({ volume }) => model.volumes.get(volume)),
    files.map(({ kind, source }) => (kind === "secret" ? model.secrets : model.configs).get(source)),
  ]
  return createHash("sha256")
    .update(JSON.stringify([{ ...service, replicas: undefined }, ...referred]))
    .digest("hex")
}

/**
 * The model of a file in its long forms.
 *
 * @param folderOf - What paths in a file are relative to.
 * @param isActive - Whether a service is there, by its profiles.
 * @throws ComposeError `ERR_COMPOSE_FILE`, `ERR_COMPOSE_UNSUPPORTED`.
 */
export function readModel(
  root: Field,
  project: string,
  lookup: Lookup,
  folderOf: FolderOf,
  isActive: (name: string, profiles: readonly string[]) => boolean,
): Model {
  root.each({
    name: nothing,
    version: nothing,
    services: nothing,
    networks: nothing,
    volumes: nothing,
    secrets: nothing,
    configs: nothing,
    models: "models are not run",
  })
  const common = {
    lookup,
    folderOf,
    envFiles: new EnvFiles(lookup),
    crypt: readCrypt(root.get("x-sifcrypt"), {}),
  }
  const all = root.get("services")?.entries() ?? []
  if (all.length > MAX_SERVICES) throw root.error(`more than ${MAX_SERVICES} services`)
  const services = new Map(
    all
      .filter(([name, field]) => isActive(name, profilesOf(field)))
      .map(([name, field]) => [name, readService(name, field, common)]),
  )
  for (const service of services.values())
    for (const { service: other, required } of service.dependsOn)
      if (required && !services.has(other)) {
        const at = root.get("services")?.get(service.name)?.get("depends_on") ?? root
        const exists = all.some(([name]) => name === other)
        throw at.error(exists ? `${other} is left out by its profiles` : `there is no service ${other}`)
      }
  inOrder(services)
  const networks = resources(root, "networks", (name, field, at) => readNetwork(name, field, project, at))
  const isDefaultUsed = [...services.values()].some((one) =>
    one.networks.some(({ network }) => network === "default"),
  )
  if (isDefaultUsed && !networks.has("default"))
    networks.set("default", readNetwork("default", undefined, project, root))
  const missing = (name: string, field: Field | undefined): Content => {
    if (field === undefined) throw root.error(`${name} says nothing of where it is`)
    return readContent(field)
  }
  const model: Model = {
    services,
    networks,
    volumes: resources(root, "volumes", (name, field, at) => readVolumeResource(name, field, project, at)),
    secrets: resources(root, "secrets", missing),
    configs: resources(root, "configs", missing),
  }
  checkReferences(root, model)
  return model
}
