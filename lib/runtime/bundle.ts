// The OCI bundle: config.json for crun and the files that are bound into the container. Mounts follow the peers' defaults.
import { existsSync, lstatSync, realpathSync, statSync } from "node:fs"
import { isIP } from "node:net"
import path from "node:path"
import type { Tree } from "../device/tree.ts"
import { RunError } from "../errors.ts"
import { folderAt, isWithin, leftOut, type Bind, type Place } from "./binds.ts"
import type { Confinement } from "./confinement.ts"
import { ENTRY_FOLDER, entryScript, ociRunScript } from "./entry.ts"
import {
  DEFAULT_PATH,
  hostScript,
  overrideScript,
  staticEnvironment,
  staticExports,
  type PayloadEnvironment,
} from "./environment.ts"
import { optionError, type ExecOptions } from "./options.ts"
import { groupWith, passwdWith, type Identity } from "./passwd.ts"
import type { TerminalSize } from "./terminal.ts"

export type Action = "exec" | "run" | "shell" | "test" | "start"

/** What {@link makeBundle} needs to know. */
export interface BundleOptions {
  /** undefined: not known before it runs. */
  readonly tree: Tree | undefined
  readonly image: string
  readonly action: Action
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
  readonly confinement: Confinement
  /** The root can be written to; otherwise it only looks so to the runtime. */
  readonly writableRoot: boolean
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

const MAX_TABLE_SIZE = 1 << 20

async function imageFile(tree: Tree | undefined, file: string): Promise<string> {
  const found = await tree?.find(file, true)
  if (tree === undefined || found?.type !== "file") return ""
  return (await tree.read(file, 0, Math.min(found.size, MAX_TABLE_SIZE))).toString("utf8")
}

/** A mount point that is a symbolic link would let the image choose what is covered. */
async function checkRoot(options: BundleOptions): Promise<void> {
  const folders = ["/dev", "/proc", "/sys", "/etc"]
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
    if (!path.isAbsolute(asked.cwd) || !(await exists(path.posix.normalize(asked.cwd))))
      throw new RunError("ERR_RUN", `${image}: there is no folder ${asked.cwd} inside`, { path: image })
    return path.posix.normalize(asked.cwd)
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
    this.#words.push(from.image === undefined ? "" : String(from.image), source, devices ? "d" : "")
    const flags = ["rbind", "rslave", "nosuid", ...(devices ? [] : ["nodev"])]
    return bindMount(`${this.#session}/bound/${this.#count++}`, destination, [
      ...flags,
      ...(from.readOnly === true ? ["ro"] : []),
    ])
  }

  get record(): Buffer {
    return record("binds", 0o600, words(this.#words))
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
    if (file === "/etc/resolv.conf" && asked.dns !== undefined) continue
    mounts.push(binds.add(realpathSync(file), file))
  }
  return mounts
}

/** A /dev with what every program expects and nothing of the host's machine; crun makes the nodes. */
function minimalDev(options: BundleOptions, without: ReadonlySet<string>): OciMount[] {
  const { privileged } = options.confinement
  const limit = privileged ? [] : [userMemoryLimit]
  const shm = { ...memoryMount("/dev/shm", 0o1777, limit), source: "shm" }
  const pts: OciMount = {
    destination: "/dev/pts",
    type: "devpts",
    source: "devpts",
    options: [
      ...["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
      // The terminals' group has no number in a user namespace of one.
      ...(privileged ? ["gid=5"] : []),
    ],
  }
  const queues: OciMount = {
    destination: "/dev/mqueue",
    type: "mqueue",
    source: "mqueue",
    options: ["nosuid", "noexec", "nodev"],
  }
  return [
    { destination: "/dev", type: "tmpfs", source: "tmpfs", options: ["nosuid", "mode=755", "size=65536k"] },
    ...(without.has("devpts") ? [] : [pts]),
    shm,
    ...(options.asked?.ipc === true ? [queues] : []),
  ]
}

/** /dev, /proc and /sys. */
function kernelMounts(options: BundleOptions, without: ReadonlySet<string>): OciMount[] {
  const bind = (folder: string, flags: readonly string[]): OciMount[] =>
    without.has(folder.slice(1)) ? [] : [bindMount(folder, folder, ["rbind", "rslave", "nosuid", ...flags])]
  const dev = options.asked?.contain === true ? minimalDev(options, without) : bind("/dev", [])
  const ownProcesses = options.confinement.namespaces.some(({ type }) => type === "pid")
  const proc: OciMount[] =
    ownProcesses && !without.has("proc")
      ? [{ destination: "/proc", type: "proc", source: "proc", options: ["nosuid", "nodev", "noexec"] }]
      : bind("/proc", ["nodev"])
  return [...(without.has("dev") ? [] : dev), ...proc, ...bind("/sys", ["nodev"])]
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
  if (asked.dns !== undefined) {
    const wrong = asked.dns.find((address) => isIP(address) === 0)
    if (wrong !== undefined) throw optionError("dns", `${wrong} is no address`)
    files.set("/etc/resolv.conf", asked.dns.map((address) => `nameserver ${address}\n`).join(""))
  }
  if (asked.hostname !== undefined) {
    // gethostname(2): at most 64 bytes; what else a name may hold: hostname(7).
    if (!/^[A-Za-z0-9](?:[A-Za-z0-9.-]{0,62}[A-Za-z0-9])?$/.test(asked.hostname))
      throw optionError("hostname", `${asked.hostname} is no name of a machine`)
    files.set("/etc/hostname", `${asked.hostname}\n`)
  }
  for (const place of without) files.delete(place)
  return files
}

/** Who the payload is told that it is: what is in the environment before the image's scripts. */
function firstVariables(options: BundleOptions): Map<string, string> {
  const { asked = {}, identity, image, action } = options
  return new Map([
    ["PATH", DEFAULT_PATH],
    ["HOME", identity.home],
    ...(["APPTAINER", "SINGULARITY"] as const).flatMap((family): [string, string][] => [
      [`${family}_NAME`, path.basename(image)],
      [`${family}_CONTAINER`, path.resolve(image)],
    ]),
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

/** What the image's scripts set, as far as it can be known without a shell. */
async function imageVariables(options: BundleOptions): Promise<Map<string, string> | undefined> {
  const { tree, image, asked = {} } = options
  const folder = "/.singularity.d/env"
  if ((await tree?.find(folder, true))?.type !== "directory") return undefined
  const found = new Map<string, string>()
  const names = ((await tree?.list(folder)) ?? []).map(({ name }) => name.toString("utf8")).sort()
  for (const name of names.filter((one) => one.endsWith(".sh"))) {
    const variables = staticExports(await imageFile(tree, `${folder}/${name}`))
    // What every image has, for a shell.
    const isCommon = /^(?:94-appsbase|95-apps|99-base|99-runtimevars)\.sh$/.test(name)
    if (variables === undefined && !isCommon)
      asked.onNotice?.(`${image}: there is no /bin/sh in the image, so ${folder}/${name} is left out`)
    for (const [key, value] of variables ?? []) found.set(key, value)
  }
  return found
}

/** The process to start: through the entry script where the image has a shell, else the program itself. */
async function processArguments(options: BundleOptions): Promise<{ args: string[]; env: string[] }> {
  const { tree, action, argv, environment, image } = options
  const first = firstVariables(options)
  const asList = (variables: ReadonlyMap<string, string>): string[] =>
    [...variables].map(([key, value]) => `${key}=${value}`)
  if (tree === undefined || (await tree.find("/bin/sh", true))?.type === "file")
    return { args: ["/bin/sh", `${ENTRY_FOLDER}/entry`, action, ...argv], env: asList(first) }
  if (action !== "exec")
    throw new RunError(
      "ERR_RUN",
      `${image}: there is no /bin/sh in the image, so there is nothing to ${action}`,
      { path: image },
    )
  for (const [key, value] of lastVariables(options)) first.set(key, value)
  for (const family of ["APPTAINER", "SINGULARITY"])
    first.set(`${family}_ENVIRONMENT`, "/.singularity.d/env/91-environment.sh")
  const env = staticEnvironment(first, await imageVariables(options), environment)
  return { args: [...argv], env: asList(env) }
}

function words(list: readonly string[]): string {
  return list.map((word) => `${word}\0`).join("")
}

function record(name: string, mode: number, content: string): Buffer {
  const bytes = Buffer.from(content, "utf8")
  return Buffer.concat([Buffer.from(`${mode.toString(8)} ${bytes.length} ${name}\n`), bytes])
}

/**
 * Composes the bundle of one run.
 *
 * @returns Records as the starter reads them.
 * @throws RunError when the image cannot be run as asked.
 */
export async function makeBundle(options: BundleOptions): Promise<Buffer> {
  const { tree, places, session, asked = {} } = options
  await checkRoot(options)
  const { confinement } = options
  const { uid, gid, groups } = confinement.ids
  const environment: PayloadEnvironment = {
    host: new Map([...options.environment.host, ...lastVariables(options)]),
    overrides: options.environment.overrides,
  }
  const without = leftOut({ noMount: asked.noMount ?? [] })
  const own = await ownFiles(options, without)
  const bound = new Set(places.map(({ destination }) => destination))
  const binds = new SessionBinds(session)
  const root = `${session}/root`
  const files = `${session}/files`
  const cwd = await chooseCwd(options)
  const { args, env } = await processArguments(options)
  const {
    capabilities: all,
    initArguments,
    namespaces,
    innerUser,
    seccomp,
    apparmorProfile,
    selinuxLabel,
  } = confinement
  const init = `${ENTRY_FOLDER}/init`
  const defaults = [
    ...kernelMounts(options, without),
    ...hostFiles(options, without, bound, binds),
    ...[...own.keys()].map((file) =>
      bindMount(`${files}/${path.basename(file)}`, file, ["bind", "nosuid", "nodev"]),
    ),
  ]
  const limit = confinement.privileged ? [] : [userMemoryLimit]
  const bindOf = (bind: Bind): OciMount => {
    const image = options.imageNumber?.(bind)
    const { source, destination, readOnly } = bind
    return image === undefined
      ? binds.add(source, destination, { readOnly })
      : binds.add(bind.image?.path ?? "/", destination, { readOnly, image })
  }
  const mounts: OciMount[] = [
    ...defaults.filter(({ destination }) => !bound.has(destination)),
    bindMount(files, ENTRY_FOLDER, ["bind", "ro", "nosuid", "nodev"]),
    ...(initArguments.length > 0 ? [bindMount(options.init, init, ["bind", "ro", "nosuid", "nodev"])] : []),
    ...places.map((place) =>
      place.source === undefined ? memoryMount(place.destination, place.mode, limit) : bindOf(place),
    ),
  ]
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
      args: initArguments.length > 0 ? [init, ...initArguments, "--", ...args] : args,
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
                  ...(confinement.suid ? ["--suid"] : []),
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
  const runScript = ociRunScript(await imageFile(tree, "/.singularity.d/runscript"))
  return Buffer.concat([
    record("config.json", 0o600, JSON.stringify(config)),
    binds.record,
    // Links of the image may lead to where nothing is.
    record(
      "places",
      0o600,
      words(mounts.flatMap(({ destination, type, source }) => [destination, type === "none" ? source : ""])),
    ),
    record("entry", 0o755, entryScript),
    // What is bound over it needs a place.
    ...(initArguments.length > 0 ? [record("init", 0o755, "")] : []),
    record(
      "overrides.sh",
      0o644,
      overrideScript(environment, asked.evaluate === true && asked.noEval !== true),
    ),
    record("host.sh", 0o644, hostScript(environment)),
    ...[...own].map(([file, content]) => record(path.basename(file), 0o644, content)),
    ...(runScript === undefined ? [] : [record("runscript", 0o644, runScript)]),
  ])
}
