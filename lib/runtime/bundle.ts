// The OCI bundle: config.json for crun and the files that are bound into the container. Mounts follow the peers' defaults.
import { existsSync, lstatSync, readdirSync, readFileSync, realpathSync, statSync } from "node:fs"
import { isIP } from "node:net"
import path from "node:path"
import { callerOpenFiles, messageName } from "../caller-environment.ts"
import type { ReadableTree } from "../device/tree.ts"
import { RunError } from "../errors.ts"
import { folderAt, isWithin, leftOut, type Bind, type Place } from "./binds.ts"
import type { Confinement } from "./confinement.ts"
import { ENTRY_FOLDER, SHELL_PATH, entryScript, ociRunScript } from "./entry.ts"
import { DEFAULT_PATH, hostScript, overrideScript, type PayloadEnvironment } from "./environment.ts"
import { RESOLVER, type ConnectedNetwork } from "./network.ts"
import { optionError, type ExecOptions, type MemoryFile } from "./options.ts"
import { groupWith, passwdWith, type Identity } from "./passwd.ts"
import type { TerminalSize } from "./terminal.ts"
import type { Bytes } from "../units.ts"

export type Action = "exec" | "run" | "shell" | "test" | "start"

/** What a container is for that others join: nothing runs in it by itself. */
export const NOTHING = "nothing"

/** The word for sifcrypt-init: to go on when its program has ended. */
export const STAY = "--stay"

/** What {@link makeBundle} needs to know. */
export interface BundleOptions {
  /** undefined: not known before it runs. */
  readonly tree: ReadableTree | undefined
  readonly image: string
  readonly action: Action | typeof NOTHING
  readonly argv: readonly string[]
  readonly identity: Identity
  /** Resolved; undefined: there is none. */
  readonly hostCwd: string | undefined
  /** What the caller asked for, with what that implies. */
  readonly asked?: ExecOptions | undefined
  /** All of them, the defaults included. */
  readonly places: readonly Place[]
  /** Which image that the starter mounts a bind is out of. */
  readonly imageNumber?: ((bind: Bind) => number | undefined) | undefined
  /** The folder of {@link chooseSession}. */
  readonly session: string
  readonly environment: PayloadEnvironment
  /** The size of its terminal; undefined: it has none. */
  readonly terminal: TerminalSize | undefined
  readonly umask: number
  /** The first process of a payload that needs one, and what crun calls to restore the root's mount flags. */
  readonly init: string
  /** What interprets the image's scripts. */
  readonly shell: string
  readonly confinement: Confinement
  /** It goes on when what it was started with has ended. */
  readonly stays?: boolean | undefined
  /** What asks it whether it is well. */
  readonly health?: readonly string[] | undefined
  /** The root can be written to; otherwise it only looks so to the runtime. */
  readonly writableRoot: boolean
  /** Of the mount that the root is in, if it is a folder that is written to. */
  readonly rootFlags?: ReadonlySet<string> | undefined
  /**
   * What is not there to be mounted over: `made` (the default), by the runtime; `listed`, as the root is a folder that may be somebody
   * else's, by the starter in a layer of its own; `missing`, as the root is a folder that is written to: what has no place in it is left out.
   */
  readonly mountPoints?: "made" | "listed" | "missing"
  /** `linux.resources` and where they are enforced. */
  readonly resources: object
  readonly cgroupsPath: string | undefined
}

interface OciMount {
  readonly destination: string
  readonly type: "none" | "proc" | "tmpfs" | "devpts" | "mqueue"
  readonly source: string
  readonly options: readonly string[]
}

/**
 * A folder to mount the session's tmpfs over, in the container's mount namespace only. It must not lie in anything that
 * is bound into the container, or the bundle and the image would be seen twice there.
 */
export function chooseSession(bound: readonly string[]): string {
  const candidates = ["/mnt", "/media", "/srv", "/opt", "/var/opt", "/var/local", "/usr/local/share", "/boot"]
  const found = candidates.find(
    (folder) =>
      lstatSync(folder, { throwIfNoEntry: false })?.isDirectory() === true &&
      realpathSync(folder) === folder &&
      !bound.some((source) => source !== "/" && (isWithin(folder, source) || isWithin(source, folder))),
  )
  if (found === undefined)
    throw new RunError(
      "ERR_RUN",
      `none of ${candidates.join(", ")} can hold the session: they are missing or bound`,
    )
  return found
}

const MAX_FILES = 32
const MAX_FILE: Bytes = 1 << 20
const MAX_SERVERS = 3 // resolv.conf(5)
const MAX_TABLE_SIZE = 1 << 20

async function imageFile(tree: ReadableTree | undefined, file: string): Promise<string> {
  const found = await tree?.find(file, true)
  if (tree === undefined || found?.type !== "file") return ""
  return (await tree.read(file, 0, Math.min(found.size, MAX_TABLE_SIZE))).toString("utf8")
}

/** A mount point that is a symbolic link would let the image choose what is covered. */
async function checkRoot(options: BundleOptions): Promise<void> {
  const folders = ["/dev", "/proc", "/sys", "/etc", "/.sifcrypt"]
  const kinds = await Promise.all(folders.map(async (folder) => await options.tree?.find(folder, false)))
  for (const [index, found] of kinds.entries()) {
    const folder = folders[index] ?? ""
    if (found !== undefined && found.type !== "directory")
      throw new RunError(
        "ERR_RUN",
        `${options.image}: ${folder} in the image is no folder but a ${found.type}`,
        {
          path: options.image,
        },
      )
  }
}

async function chooseCwd(options: BundleOptions): Promise<string> {
  const { asked = {}, places, image, identity } = options
  const exists = async (folder: string): Promise<boolean> => {
    const decided = folderAt(places, folder)
    if (decided !== undefined) return decided
    if (["/proc", "/sys", "/dev"].some((kernel) => isWithin(folder, kernel))) return existsSync(folder)
    return (await options.tree?.find(folder, true))?.type === "directory"
  }
  if (asked.cwd !== undefined) {
    const inside = path.posix.resolve("/", asked.cwd)
    if (!(await exists(inside)))
      throw new RunError("ERR_RUN", `${image}: there is no folder ${asked.cwd} inside`, { path: image })
    return inside
  }
  const wanted = asked.contain === true ? undefined : options.hostCwd
  if (wanted !== undefined && (await exists(wanted))) return wanted
  const instead = (await exists(identity.home)) ? identity.home : "/"
  if (wanted !== undefined)
    asked.onNotice?.(`the working folder ${wanted} is not there inside: ${instead} takes its place`)
  return instead
}

function bindMount(source: string, destination: string, options: readonly string[]): OciMount {
  return { destination, type: "none", source, options }
}

/** What an ordinary user's containers may write in memory, as the peers limit it. */
const userMemoryLimit = "size=64m"

function memoryMount(destination: string, mode: number, limit: readonly string[]): OciMount {
  const options = ["nosuid", "nodev", `mode=${mode.toString(8)}`, ...limit]
  return { destination, type: "tmpfs", source: "tmpfs", options }
}

/** Is it a node of a device, or where these are? */
function isForDevices(source: string): boolean {
  if (isWithin(source, "/dev")) return true
  const found = statSync(source, { throwIfNoEntry: false })
  return found?.isCharacterDevice() === true || found?.isBlockDevice() === true
}

/**
 * What the starter binds into the session, with its flags, for crun to bind it on: in a user namespace crun takes over the
 * flags that are there and sets no others.
 */
class SessionBinds {
  readonly #session: string
  readonly #words: string[] = []
  /** By where it is bound; of an image it is not known. */
  readonly #sources = new Map<string, string>()
  #count = 0
  constructor(session: string) {
    this.#session = session
  }

  /** The mount of the container for one of them. */
  add(
    source: string,
    destination: string,
    from: { readonly image?: number; readonly readOnly?: boolean } = {},
  ): OciMount {
    const devices = from.image === undefined && isForDevices(source)
    const readOnly = from.readOnly === true
    const image = from.image === undefined ? "" : String(from.image)
    this.#words.push(image, source, `${devices ? "d" : ""}${readOnly ? "r" : ""}`)
    const flags = ["rbind", "rslave", "nosuid", ...(devices ? [] : ["nodev"]), ...(readOnly ? ["ro"] : [])]
    const place = `${this.#session}/bound/${this.#count++}`
    if (from.image === undefined) this.#sources.set(place, source)
    return bindMount(place, destination, flags)
  }

  /** What of the host is bound at this place of the session. */
  sourceOf(place: string): string | undefined {
    return this.#sources.get(place)
  }

  get record(): Buffer {
    return bundleFile("binds", 0o600, bundleWords(this.#words))
  }
}

/** /etc files of the host that the image should see as they are. */
function hostFiles(
  options: BundleOptions,
  without: ReadonlySet<string>,
  bound: ReadonlySet<string>,
  binds: SessionBinds,
): OciMount[] {
  const { asked = {} } = options
  const mounts: OciMount[] = []
  const files = without.has("bind-paths") ? [] : ["/etc/hosts", "/etc/localtime"]
  for (const file of [...files, "/etc/resolv.conf"]) {
    if (!existsSync(file) || without.has(file) || bound.has(file)) continue
    if (file === "/etc/hosts" && (asked.addHost ?? []).length > 0) continue
    if (file === "/etc/resolv.conf" && (asked.dns ?? options.confinement.network) !== undefined) continue
    mounts.push(binds.add(realpathSync(file), file))
  }
  return mounts
}

/** A folder for devices, with terminals of its own. */
function ownDev({ confinement }: BundleOptions): readonly [OciMount, OciMount] {
  const pts: OciMount = {
    destination: "/dev/pts",
    type: "devpts",
    source: "devpts",
    options: [
      ...["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
      // The terminals' group has no number in a user namespace of one.
      ...(confinement.privileged ? ["gid=5"] : []),
    ],
  }
  return [
    { destination: "/dev", type: "tmpfs", source: "tmpfs", options: ["nosuid", "mode=755", "size=65536k"] },
    pts,
  ]
}

/** A /dev with what every program expects and nothing of the host's machine; crun makes the nodes. */
function minimalDev(options: BundleOptions, without: ReadonlySet<string>): OciMount[] {
  const { privileged } = options.confinement
  const limit = privileged ? [] : [userMemoryLimit]
  const shm = { ...memoryMount("/dev/shm", 0o1777, limit), source: "shm" }
  const [dev, pts] = ownDev(options)
  const queues: OciMount = {
    destination: "/dev/mqueue",
    type: "mqueue",
    source: "mqueue",
    options: ["nosuid", "noexec", "nodev"],
  }
  return [dev, ...(without.has("devpts") ? [] : [pts]), shm, ...(options.asked?.ipc === true ? [queues] : [])]
}

/** What of the machine's /dev is not needed beside the container's own terminals and what crun makes. */
const madeInside: ReadonlySet<string> = new Set([
  ...["console", "core", "fd", "ptmx", "pts", "stderr", "stdin", "stdout"],
])

/** What is in the machine's /dev, links followed; not what they lead to elsewhere, but for the shared memory of older systems. */
function deviceBehind(name: string): string | undefined {
  try {
    const device = realpathSync(`/dev/${name}`)
    return device.startsWith("/dev/") || name === "shm" ? device : undefined
  } catch (error) {
    // A link that leads nowhere, or a device that is gone.
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined
    throw error
  }
}

/**
 * What is in the machine's /dev, in a folder of the container's own: crun binds a payload's terminal to /dev/console, which a machine that
 * is a container itself need not have, and which it makes in a /dev that is not the machine's.
 */
function composedDev(options: BundleOptions, without: ReadonlySet<string>): OciMount[] {
  const [dev, pts] = ownDev(options)
  const names = readdirSync("/dev").filter((name) => !madeInside.has(name))
  const devices = names.flatMap((name) => {
    const source = deviceBehind(name)
    return source === undefined ? [] : [bindMount(source, `/dev/${name}`, ["rbind", "rslave", "nosuid"])]
  })
  return [dev, ...(without.has("devpts") ? [] : [pts]), ...devices]
}

const kernelFolders: ReadonlySet<string> = new Set(["/dev", "/proc", "/sys"])

/** /dev, /proc and /sys. */
function kernelMounts(options: BundleOptions, without: ReadonlySet<string>): OciMount[] {
  const bind = (folder: string, flags: readonly string[]): OciMount[] =>
    without.has(folder.slice(1)) ? [] : [bindMount(folder, folder, ["rbind", "rslave", "nosuid", ...flags])]
  const dev = (): OciMount[] => {
    if (options.asked?.contain === true) return minimalDev(options, without)
    return options.terminal !== undefined && !existsSync("/dev/console")
      ? composedDev(options, without)
      : bind("/dev", [])
  }
  const ownProcesses = options.confinement.namespaces.some(({ type }) => type === "pid")
  const proc: OciMount[] =
    ownProcesses && !without.has("proc")
      ? [{ destination: "/proc", type: "proc", source: "proc", options: ["nosuid", "nodev", "noexec"] }]
      : bind("/proc", ["nodev"])
  return [...(without.has("dev") ? [] : dev()), ...proc, ...bind("/sys", ["nodev"])]
}

/** What this machine has there; nothing where there is no such file. */
function machineFile(file: string): string {
  return existsSync(file) ? readFileSync(file, "utf8") : ""
}

/** What of the machine's resolv.conf is not about where its servers are. */
function searchedDomains(): string {
  const lines = machineFile("/etc/resolv.conf").split("\n")
  return lines
    .filter((line) => /^(?:domain|search|options)\s/.test(line))
    .map((line) => `${line}\n`)
    .join("")
}

/** Who answers for names: of networks that others are in their own servers. A name without a dot is one of theirs, and not searched. */
function resolverFile({ joined }: ConnectedNetwork): string {
  if (joined.length === 0) return `nameserver ${RESOLVER}\n${searchedDomains()}`
  return [
    ...joined.slice(0, MAX_SERVERS).map(({ gateway }) => `nameserver ${gateway}\n`),
    "options ndots:0\n",
  ].join("")
}

// gethostname(2): at most 64 bytes; what else a name may hold: hostname(7).
const machineName = /^[A-Za-z0-9](?:[A-Za-z0-9.-]{0,62}[A-Za-z0-9])?$/

function hostLine(text: string): string {
  const colon = text.indexOf(":")
  const name = text.slice(0, Math.max(colon, 0))
  const address = text.slice(colon + 1)
  if (!machineName.test(name) || isIP(address) === 0)
    throw optionError("addHost", `${text}: not NAME:ADDRESS`)
  return `${address}\t${name}\n`
}

/** Files that are made for this payload, by the place where they are seen. */
async function ownFiles(
  options: BundleOptions,
  without: ReadonlySet<string>,
): Promise<ReadonlyMap<string, string>> {
  const { tree, identity, asked = {} } = options
  const files = new Map<string, string>([
    ["/etc/passwd", passwdWith(await imageFile(tree, "/etc/passwd"), identity)],
    ["/etc/group", groupWith(await imageFile(tree, "/etc/group"), identity)],
  ])
  const { network } = options.confinement
  // In networks with a name their own servers ask those.
  if (asked.dns !== undefined && (network?.joined ?? []).length === 0) {
    const wrong = asked.dns.find((address) => isIP(address) === 0)
    if (wrong !== undefined) throw optionError("dns", `${wrong} is no address`)
    files.set("/etc/resolv.conf", asked.dns.map((address) => `nameserver ${address}\n`).join(""))
  } else if (network !== undefined) files.set("/etc/resolv.conf", resolverFile(network))
  const hosts = (asked.addHost ?? []).map(hostLine)
  if (hosts.length > 0) files.set("/etc/hosts", `${machineFile("/etc/hosts")}\n${hosts.join("")}`)
  if (asked.hostname !== undefined) {
    if (!machineName.test(asked.hostname))
      throw optionError("hostname", `${asked.hostname} is no name of a machine`)
    files.set("/etc/hostname", `${asked.hostname}\n`)
  }
  for (const place of without) files.delete(place)
  return files
}

/** Where an image is; one that is in no file any more has its name only. */
export function placeOf(image: string): string {
  return existsSync(image) ? path.resolve(image) : image
}

/** Who the payload is told that it is: what is in the environment before the image's scripts. */
function firstVariables(options: BundleOptions): Map<string, string> {
  const { asked = {}, identity, image, action } = options
  const openFiles = callerOpenFiles()
  return new Map([
    ["PATH", DEFAULT_PATH],
    ["HOME", identity.home],
    ...(["APPTAINER", "SINGULARITY"] as const).flatMap((family): [string, string][] => [
      [`${family}_NAME`, path.basename(placeOf(image))],
      [`${family}_CONTAINER`, placeOf(image)],
    ]),
    // Node has raised it, and what runs the scripts would raise it again: that sets it (native/shell).
    ["_sifcrypt_name", messageName()],
    // What interprets the scripts is written in Go, and takes it out again.
    ["GOTRACEBACK", "none"],
    ...(openFiles === undefined ? [] : [["_sifcrypt_open_files", String(openFiles)] as const]),
    ...(asked.app === undefined ? [] : [["SINGULARITY_APPNAME", asked.app] as const]),
    ...(asked.shell === undefined || action !== "shell" ? [] : [["SINGULARITY_SHELL", asked.shell] as const]),
  ])
}

/** What is in the environment after the image's scripts, unless they have set it. */
function lastVariables(options: BundleOptions): Map<string, string> {
  const { asked = {}, action, places } = options
  const nested = places
    .filter((place) => place.source !== undefined && place.nested === true)
    .map(({ destination }) => destination)
    .join(",")
  return new Map([
    ["APPTAINER_COMMAND", action],
    ["APPTAINER_APPNAME", asked.app ?? ""],
    ["APPTAINER_BIND", nested],
    ["SINGULARITY_BIND", nested],
    ...(asked.noEval === true
      ? ([
          ["APPTAINER_NO_EVAL", "1"],
          ["SINGULARITY_NO_EVAL", "1"],
        ] as const)
      : []),
  ])
}

/** A list, as the starter takes it. */
export function bundleWords(list: readonly string[]): string {
  return list.map((word) => `${word}\0`).join("")
}

/** A file of a bundle, as the starter takes it. */
export function bundleFile(name: string, mode: number, content: string | Uint8Array): Buffer {
  const bytes = typeof content === "string" ? Buffer.from(content, "utf8") : content
  return Buffer.concat([Buffer.from(`${mode.toString(8)} ${bytes.length} ${name}\n`), bytes])
}

/** What has to be there for these, a folder or a file: not what lies in another of them. What is out of an image is the runtime's to make. */
function mountPointWords(
  mounts: readonly OciMount[],
  files: ReadonlySet<string>,
  binds: SessionBinds,
): string {
  const words = mounts.flatMap(({ destination, source, type }, index) => {
    const isInside = mounts.some(
      (other, at) =>
        at !== index && other.destination !== destination && isWithin(destination, other.destination),
    )
    if (isInside) return []
    if (type !== "none" || destination === ENTRY_FOLDER) return ["d", destination]
    if (files.has(destination)) return ["f", destination]
    const shown = binds.sourceOf(source) ?? source
    const isFolder = statSync(shown, { throwIfNoEntry: false })?.isDirectory()
    return isFolder === undefined ? [] : [isFolder ? "d" : "f", destination]
  })
  return words.map((word) => `${word}\0`).join("")
}

/**
 * Why nothing can be mounted there; undefined: as far as is known before, something can. Inside what is mounted as well the
 * runtime makes it.
 *
 * @param isFolder - What is to be mounted; undefined: that shows when it is.
 */
async function obstacleAt(
  options: BundleOptions,
  destination: string,
  isFolder: boolean | undefined,
): Promise<string | undefined> {
  const others = options.places.map((place) => place.destination)
  const covered = [...others, "/dev", "/proc", "/sys"].some(
    (folder) => folder !== destination && isWithin(destination, folder),
  )
  if (covered || options.tree === undefined) return undefined
  const isFixed = options.mountPoints === "missing"
  // A link that leads to something of another kind gives way.
  const found = await options.tree.find(destination, isFixed)
  if (found === undefined) {
    if (isFixed) return `there is no ${destination} inside, and with --writable none is made`
    for (let above = path.dirname(destination); above !== "/"; above = path.dirname(above)) {
      const { type } = (await options.tree.find(above, true)) ?? {}
      if (type === "directory") break
      if (type !== undefined) return `${above} is no folder inside`
    }
    return undefined
  }
  if (found.type === "symlink" || isFolder === undefined || (found.type === "directory") === isFolder)
    return undefined
  return `${destination} is ${isFolder ? "no folder" : "a folder"} inside`
}

/** Tells of what is left out, which nobody has asked for. */
function tellOfObstacle({ image, asked }: BundleOptions, obstacle: string): void {
  asked?.onNotice?.(`${image}: ${obstacle}: it is not bound`)
}

/**
 * The places where something can be mounted.
 *
 * @throws RunError `ERR_RUN_BIND` for one that was asked for.
 */
async function possiblePlaces(options: BundleOptions): Promise<readonly Place[]> {
  const isFolder = (place: Place): boolean | undefined => {
    if (place.source === undefined) return true
    return place.image === undefined ? statSync(place.source).isDirectory() : undefined
  }
  let places = options.places
  for (const place of options.places) {
    // What lies in another one is made there, if that is mounted.
    const obstacle = await obstacleAt({ ...options, places }, place.destination, isFolder(place))
    if (obstacle === undefined) continue
    if (place.source === undefined || place.nested !== undefined)
      throw new RunError(
        "ERR_RUN_BIND",
        `${options.image}: ${place.source ?? "an empty folder"}: ${obstacle}`,
        {
          path: options.image,
        },
      )
    tellOfObstacle(options, obstacle)
    places = places.filter((other) => other !== place)
  }
  return places
}

/** The files that are given along, each under a name of its own. */
function memoryFiles({ asked = {} }: BundleOptions): readonly (MemoryFile & { readonly name: string })[] {
  const files = asked.files ?? []
  if (files.length > MAX_FILES) throw optionError("files", `more than ${MAX_FILES}`)
  for (const [at, { path: place, content }] of files.entries()) {
    if (!path.isAbsolute(place) || path.posix.normalize(place) !== place || place.endsWith("/"))
      throw optionError("files", `${place} is no absolute path of a file`)
    if (files.findIndex((other) => other.path === place) !== at)
      throw optionError("files", `${place} is given twice`)
    if (content.length > MAX_FILE) throw optionError("files", `${place} has more than ${MAX_FILE} bytes`)
  }
  return files.map((file, at) => ({ ...file, name: `memory-${at}` }))
}

/** What makes sure of the confinement, and starts nothing. */
const isCheck = (argument: string): boolean => argument.startsWith("--check-")

/**
 * Composes the bundle of one run.
 *
 * @returns Records as the starter reads them.
 * @throws RunError when the image cannot be run as asked.
 */
export async function makeBundle(given: BundleOptions): Promise<Buffer> {
  await checkRoot(given)
  const options = { ...given, places: await possiblePlaces(given) }
  const { tree, places, session, asked = {} } = options
  const { confinement } = options
  const { uid, gid, groups } = confinement.ids
  const environment: PayloadEnvironment = {
    ...options.environment,
    host: new Map([...options.environment.host, ...lastVariables(options)]),
  }
  const without = leftOut({ noMount: asked.noMount ?? [] })
  const own = await ownFiles(options, without)
  const bound = new Set(places.map(({ destination }) => destination))
  const binds = new SessionBinds(session)
  const root = `${session}/root`
  const files = `${session}/files`
  const inMemory = memoryFiles(options)
  const cwd = await chooseCwd(options)
  const args =
    options.action === NOTHING
      ? []
      : ["--", SHELL_PATH, `${ENTRY_FOLDER}/entry`, options.action, ...options.argv]
  const env = [...firstVariables(options), ...environment.others].map(([name, value]) => `${name}=${value}`)
  const initArguments = [...confinement.initArguments, ...(options.stays === true ? [STAY] : [])]
  const { capabilities: all, namespaces, innerUser, seccomp, apparmorProfile, selinuxLabel } = confinement
  const init = `${ENTRY_FOLDER}/init`
  const defaults = [
    ...kernelMounts(options, without),
    ...hostFiles(options, without, bound, binds),
    ...[...own.keys()].map((file) =>
      bindMount(`${files}/${path.basename(file)}`, file, ["bind", "nosuid", "nodev"]),
    ),
  ]
  const isDefaultFolder = (mount: OciMount): boolean =>
    mount.type !== "none" || kernelFolders.has(mount.destination)
  const obstacles = await Promise.all(
    defaults.map((mount) => obstacleAt(options, mount.destination, isDefaultFolder(mount))),
  )
  for (const obstacle of obstacles) if (obstacle !== undefined) tellOfObstacle(options, obstacle)
  const limit = confinement.privileged ? [] : [userMemoryLimit]
  const bindOf = (bind: Bind): OciMount => {
    const image = options.imageNumber?.(bind)
    const { source, destination, readOnly } = bind
    return image === undefined
      ? binds.add(source, destination, { readOnly })
      : binds.add(bind.image?.path ?? "/", destination, { readOnly, image })
  }
  const mounts: OciMount[] = [
    ...defaults.filter(({ destination }, index) => !bound.has(destination) && obstacles[index] === undefined),
    bindMount(files, ENTRY_FOLDER, ["bind", "ro", "nosuid", "nodev"]),
    bindMount(options.shell, SHELL_PATH, ["bind", "ro", "nosuid", "nodev"]),
    ...(initArguments.length > 0 ? [bindMount(options.init, init, ["bind", "ro", "nosuid", "nodev"])] : []),
    ...places.map((place) =>
      place.source === undefined ? memoryMount(place.destination, place.mode, limit) : bindOf(place),
    ),
    ...inMemory.map(({ name, path: place }) =>
      bindMount(`${files}/${name}`, place, ["bind", "ro", "nosuid", "nodev", "noexec"]),
    ),
  ]
  const points =
    given.mountPoints === "listed"
      ? [
          bundleFile(
            "mount-points",
            0o600,
            mountPointWords(mounts, new Set([...own.keys(), ...inMemory.map((file) => file.path)]), binds),
          ),
        ]
      : []
  const mapping = (id: number): readonly object[] => [{ containerID: id, hostID: 0, size: 1 }]
  const config = {
    ociVersion: "1.0.2",
    root: { path: root, readonly: !options.writableRoot },
    process: {
      terminal: options.terminal !== undefined,
      ...(options.terminal === undefined
        ? {}
        : { consoleSize: { width: options.terminal.columns, height: options.terminal.rows } }),
      cwd,
      user: {
        uid,
        gid,
        umask: options.umask,
        ...(groups.length > 0 ? { additionalGids: groups } : {}),
      },
      args: initArguments.length > 0 ? [init, ...initArguments, ...args] : args.slice(1),
      env: [...env, `PWD=${cwd}`],
      noNewPrivileges: confinement.noNewPrivileges,
      capabilities: { bounding: all, permitted: all, effective: all, inheritable: all, ambient: all },
      apparmorProfile,
      selinuxLabel,
    },
    hostname: asked.hostname,
    mounts,
    // crun drops nosuid and nodev from the root where no user namespace locks them
    ...(innerUser
      ? {}
      : {
          hooks: {
            createContainer: [
              {
                path: options.init,
                args: [
                  "sifcrypt-init",
                  "remount-root",
                  ...(options.writableRoot ? ["--writable"] : []),
                  ...(confinement.suid && options.rootFlags?.has("nosuid") !== true ? ["--suid"] : []),
                  ...(options.rootFlags?.has("noexec") === true ? ["--noexec"] : []),
                  root,
                ],
              },
            ],
          },
        }),
    linux: {
      namespaces,
      ...(innerUser ? { uidMappings: mapping(uid), gidMappings: mapping(gid) } : {}),
      rootfsPropagation: "rslave",
      resources: options.resources,
      cgroupsPath: options.cgroupsPath,
      seccomp,
    },
  }
  const health = {
    ...config.process,
    terminal: false,
    args: [
      ...(confinement.initArguments.length > 0
        ? [init, ...confinement.initArguments.filter(isCheck), "--"]
        : []),
      ...[SHELL_PATH, `${ENTRY_FOLDER}/entry`, "exec", ...(options.health ?? [])],
    ],
  }
  const runScript = ociRunScript(await imageFile(tree, "/.singularity.d/runscript"))
  return Buffer.concat([
    bundleFile("config.json", 0o600, JSON.stringify(config)),
    ...(options.health === undefined ? [] : [bundleFile("health.json", 0o600, JSON.stringify(health))]),
    binds.record,
    // Links of the image may lead to where nothing is.
    bundleFile(
      "places",
      0o600,
      bundleWords(
        mounts.flatMap(({ destination, type, source }) => [destination, type === "none" ? source : ""]),
      ),
    ),
    ...points,
    bundleFile("entry", 0o644, entryScript),
    // What is bound over them needs a place.
    bundleFile("shell", 0o755, ""),
    ...(initArguments.length > 0 ? [bundleFile("init", 0o755, "")] : []),
    bundleFile(
      "overrides.sh",
      0o644,
      overrideScript(environment, asked.evaluate === true && asked.noEval !== true),
    ),
    bundleFile("host.sh", 0o644, hostScript(environment)),
    ...[...own].map(([file, content]) => bundleFile(path.basename(file), 0o644, content)),
    ...inMemory.map(({ name, mode = 0o444, content }) => bundleFile(name, mode, content)),
    ...(runScript === undefined ? [] : [bundleFile("runscript", 0o644, runScript)]),
  ])
}
