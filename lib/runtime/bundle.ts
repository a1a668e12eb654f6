// The OCI bundle: config.json for crun and the files that are bound into the container. Mounts follow the peers' defaults.
import { existsSync, lstatSync, readFileSync, realpathSync } from "node:fs"
import path from "node:path"
import type { Tree } from "../device/tree.ts"
import { RunError } from "../errors.ts"
import { hostPath, isWithin, type Bind } from "./binds.ts"
import { ENTRY_FOLDER, entryScript } from "./entry.ts"
import { DEFAULT_PATH, hostScript, overrideScript, type PayloadEnvironment } from "./environment.ts"
import { groupWith, passwdWith, type Identity } from "./passwd.ts"

export type Action = "exec" | "run" | "shell" | "test"

/** What {@link makeBundle} needs to know. */
export interface BundleOptions {
  /** undefined: not known before it runs. */
  readonly tree: Tree | undefined
  readonly image: string
  readonly action: Action
  readonly argv: readonly string[]
  readonly identity: Identity
  /** Resolved. */
  readonly hostCwd: string
  /** As asked for; undefined: the host's, if it is seen inside. */
  readonly cwd: string | undefined
  /** All of them, the defaults included. */
  readonly binds: readonly Bind[]
  /** The folder of {@link chooseSession}. */
  readonly session: string
  readonly environment: PayloadEnvironment
  readonly terminal: boolean
  readonly umask: number
  /** The program crun calls to restore the root's mount flags. */
  readonly starter: string
}

interface OciMount {
  readonly destination: string
  readonly type: "none"
  readonly source: string
  readonly options: readonly string[]
}

/** In the order of their numbers: linux/capability.h. */
const capabilities = (
  "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE " +
  "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN " +
  "SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE " +
  "MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
).split(" ")

/** The capabilities this process has. */
function ownCapabilities(): string[] {
  const hex = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? "0"
  const mask = BigInt(`0x${hex}`)
  return capabilities.filter((_, bit) => ((mask >> BigInt(bit)) & 1n) === 1n).map((name) => `CAP_${name}`)
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

async function chooseCwd(options: BundleOptions, binds: readonly Bind[]): Promise<string> {
  const exists = async (folder: string): Promise<boolean> => {
    const host = hostPath(binds, folder)
    if (host !== undefined) return existsSync(host)
    if (["/proc", "/sys", "/dev"].some((kernel) => isWithin(folder, kernel))) return existsSync(folder)
    return (await options.tree?.find(folder, true))?.type === "directory"
  }
  if (options.cwd !== undefined) {
    if (!path.isAbsolute(options.cwd) || !(await exists(path.posix.normalize(options.cwd))))
      throw new RunError("ERR_RUN", `${options.image}: there is no folder ${options.cwd} inside`, {
        path: options.image,
      })
    return path.posix.normalize(options.cwd)
  }
  for (const folder of [options.hostCwd, options.identity.home]) if (await exists(folder)) return folder
  return "/"
}

/** /etc files of the host that the image should see as they are. */
async function hostFiles(tree: Tree | undefined): Promise<OciMount[]> {
  const mounts: OciMount[] = []
  for (const file of ["/etc/hosts", "/etc/localtime", "/etc/resolv.conf"]) {
    if (!existsSync(file)) continue
    // A link that leads nowhere in the image is no place to bind to.
    const dangling =
      (await tree?.find(file, false)) !== undefined && (await tree?.find(file, true)) === undefined
    if (dangling && file !== "/etc/resolv.conf") continue
    mounts.push(bindMount(realpathSync(file), file, ["bind", "nosuid", "nodev"]))
  }
  return mounts
}

function bindMount(source: string, destination: string, options: readonly string[]): OciMount {
  return { destination, type: "none", source, options }
}

/** The process to start: through the entry script where the image has a shell, else the program itself. */
async function processArguments(options: BundleOptions): Promise<{ args: string[]; env: string[] }> {
  const { tree, action, argv, identity, environment, image } = options
  const name = path.basename(image)
  const absolute = path.resolve(image)
  const env = new Map([
    ["PATH", DEFAULT_PATH],
    ["HOME", identity.home],
    ...(["APPTAINER", "SINGULARITY"] as const).flatMap((family): [string, string][] => [
      [`${family}_NAME`, name],
      [`${family}_CONTAINER`, absolute],
    ]),
  ])
  const asList = (): string[] => [...env].map(([key, value]) => `${key}=${value}`)
  if (tree === undefined || (await tree.find("/bin/sh", true))?.type === "file")
    return { args: ["/bin/sh", `${ENTRY_FOLDER}/entry`, action, ...argv], env: asList() }
  if (action !== "exec")
    throw new RunError(
      "ERR_RUN",
      `${image}: there is no /bin/sh in the image, so there is nothing to ${action}`,
      {
        path: image,
      },
    )
  for (const [key, value] of [...environment.host, ...environment.overrides]) env.set(key, value)
  return { args: [...argv], env: asList() }
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
  const { tree, identity, environment } = options
  await checkRoot(options)
  const { uid, gid } = identity
  const { binds, session } = options
  const root = `${session}/root`
  const files = `${session}/files`
  const privileged = uid === 0
  const cwd = await chooseCwd(options, binds)
  const { args, env } = await processArguments(options)
  const all = privileged ? ownCapabilities() : []
  const mounts: OciMount[] = [
    bindMount("/dev", "/dev", ["rbind", "rslave", "nosuid"]),
    bindMount("/proc", "/proc", ["rbind", "rslave", "nosuid", "nodev"]),
    bindMount("/sys", "/sys", ["rbind", "rslave", "nosuid", "nodev"]),
    ...(await hostFiles(tree)),
    bindMount(`${files}/passwd`, "/etc/passwd", ["bind", "nosuid", "nodev"]),
    bindMount(`${files}/group`, "/etc/group", ["bind", "nosuid", "nodev"]),
    bindMount(files, ENTRY_FOLDER, ["bind", "ro", "nosuid", "nodev"]),
    ...binds.map(({ source, destination, readOnly }) =>
      bindMount(source, destination, ["rbind", "rslave", "nosuid", "nodev", ...(readOnly ? ["ro"] : [])]),
    ),
  ]
  const mapping = (id: number): readonly object[] => [{ containerID: id, hostID: 0, size: 1 }]
  const config = {
    ociVersion: "1.0.2",
    root: { path: root, readonly: true },
    process: {
      terminal: options.terminal,
      cwd,
      user: {
        uid,
        gid,
        umask: options.umask,
        ...(privileged ? { additionalGids: supplementaryGroups(gid) } : {}),
      },
      args,
      env: [...env, `PWD=${cwd}`],
      noNewPrivileges: true,
      capabilities: { bounding: all, permitted: all, effective: all, inheritable: all, ambient: all },
    },
    mounts,
    // crun drops nosuid and nodev from the root where no user namespace locks them
    ...(privileged
      ? {
          hooks: {
            createContainer: [{ path: options.starter, args: ["sifcrypt-starter", "remount-root", root] }],
          },
        }
      : {}),
    linux: {
      namespaces: [{ type: "mount" }, ...(privileged ? [] : [{ type: "user" }])],
      ...(privileged ? {} : { uidMappings: mapping(uid), gidMappings: mapping(gid) }),
      rootfsPropagation: "rslave",
      resources: {},
    },
  }
  return Buffer.concat([
    record("config.json", 0o600, JSON.stringify(config)),
    record("entry", 0o755, entryScript),
    record("overrides.sh", 0o644, overrideScript(environment)),
    record("host.sh", 0o644, hostScript(environment)),
    record("passwd", 0o644, passwdWith(await imageFile(tree, "/etc/passwd"), identity)),
    record("group", 0o644, groupWith(await imageFile(tree, "/etc/group"), identity)),
  ])
}

function supplementaryGroups(gid: number): number[] {
  return (process.getgroups?.() ?? []).filter((group) => group !== gid)
}
