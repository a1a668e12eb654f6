// The container in which the scripts of a build run: crun on a root file system under construction. The process that calls
// this is root in the workspace's namespaces already.
import { spawn } from "node:child_process"
import { once } from "node:events"
import { existsSync } from "node:fs"
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises"
import path from "node:path"
import { thenUndone } from "../disposal.ts"
import { EnvironmentError } from "../errors.ts"
import type { Bind } from "../runtime/binds.ts"
import { ownCapabilities } from "../runtime/capabilities.ts"
import { ENTRY_FOLDER } from "../runtime/entry.ts"
import { scrubbedEnvironment } from "../runtime/starter-protocol.ts"

/** What is pretended to have worked where a user namespace cannot do it. */
export type Pretence = "nothing" | "devices" | "owners"

/** A file that the container sees. */
export interface ContainerFile {
  readonly mode: number
  readonly content: string
}

/** One run of a program. */
export interface ContainerRun {
  /** In memory, private to the build. */
  readonly session: string
  readonly crun: string
  readonly root: string
  readonly writable: boolean
  readonly args: readonly string[]
  readonly env: readonly string[]
  readonly umask: number
  /** Seen in {@link ENTRY_FOLDER}, whose mount point has to exist. */
  readonly files?: Readonly<Record<string, ContainerFile>>
  readonly binds?: readonly Bind[]
  /** Seen in place of files that exist. */
  readonly covers?: Readonly<Record<string, string>>
  /** /dev, /proc, /sys and empty folders for what is temporary. */
  readonly mounts: boolean
  readonly pretence: Pretence
}

interface Mount {
  readonly destination: string
  readonly type: string
  readonly source: string
  readonly options: readonly string[]
}

const owners =
  "chown chown32 fchown fchown32 lchown lchown32 fchownat setgroups setgroups32 setuid setuid32 setgid setgid32 setreuid " +
  "setreuid32 setregid setregid32 setresuid setresuid32 setresgid setresgid32 setfsuid setfsuid32 setfsgid setfsgid32"
const S_IFMT = 0o170000
const deviceTypes = [0o020000, 0o060000]

/** Calls that do nothing and say that they worked: packages give files to users whom a lone caller cannot be. */
function seccomp(pretence: Pretence): object | undefined {
  if (pretence === "nothing") return undefined
  const done = { action: "SCMP_ACT_ERRNO", errnoRet: 0 }
  const devices = (
    [
      ["mknod", 1],
      ["mknodat", 2],
    ] as const
  ).flatMap(([name, index]) =>
    deviceTypes.map((type) => ({
      names: [name],
      args: [{ index, value: S_IFMT, valueTwo: type, op: "SCMP_CMP_MASKED_EQ" }],
      ...done,
    })),
  )
  return {
    defaultAction: "SCMP_ACT_ALLOW",
    syscalls: [...devices, ...(pretence === "owners" ? [{ names: owners.split(" "), ...done }] : [])],
  }
}

/**
 * Scripts see no process of ours, some of which hold keys, and what they leave running ends with them. Where the workspace
 * could not have its own /proc, neither can they.
 */
export function canHaveOwnProcesses(): boolean {
  return process.ppid === 1
}

function hasOwnProcesses(run: ContainerRun): boolean {
  return run.mounts && canHaveOwnProcesses()
}

function mountsOf(run: ContainerRun, folder: string): Mount[] {
  const bind = (source: string, destination: string, options: readonly string[]): Mount => ({
    destination,
    type: "none",
    source,
    options,
  })
  const empty = (destination: string): Mount => ({
    destination,
    type: "tmpfs",
    source: "tmpfs",
    options: ["nosuid", "nodev", "mode=1777"],
  })
  // crun leaves alone what is in a /dev that is bound.
  const devices = bind("/dev", "/dev", ["rbind", "rslave", "nosuid"])
  const system = run.mounts
    ? [
        devices,
        hasOwnProcesses(run)
          ? { destination: "/proc", type: "proc", source: "proc", options: ["nosuid", "nodev", "noexec"] }
          : bind("/proc", "/proc", ["rbind", "rslave", "nosuid", "nodev"]),
        bind("/sys", "/sys", ["rbind", "rslave", "nosuid", "nodev"]),
        // The machine's would keep what a script leaves there, and show it to the next.
        ...(existsSync("/dev/shm") ? [empty("/dev/shm")] : []),
        empty("/tmp"),
        empty("/var/tmp"),
      ]
    : [devices]
  const covers = Object.keys(run.covers ?? {}).map((name, index) =>
    bind(path.join(folder, `cover${index}`), name, ["bind", "nosuid", "nodev"]),
  )
  const files =
    run.files === undefined
      ? []
      : [bind(path.join(folder, "files"), ENTRY_FOLDER, ["bind", "ro", "nosuid", "nodev"])]
  const binds = (run.binds ?? []).map(({ source, destination, readOnly }) =>
    bind(source, destination, ["rbind", "rslave", "nosuid", "nodev", ...(readOnly ? ["ro"] : [])]),
  )
  return [...system, ...covers, ...files, ...binds]
}

function configuration(run: ContainerRun, folder: string): object {
  const all = ownCapabilities()
  const filter = seccomp(run.pretence)
  return {
    ociVersion: "1.0.2",
    root: { path: run.root, readonly: !run.writable },
    process: {
      terminal: false,
      cwd: "/",
      user: { uid: 0, gid: 0, umask: run.umask },
      args: run.args,
      env: run.env,
      noNewPrivileges: false,
      capabilities: { bounding: all, permitted: all, effective: all, inheritable: all, ambient: all },
    },
    mounts: mountsOf(run, folder),
    linux: {
      namespaces: [{ type: "mount" }, ...(hasOwnProcesses(run) ? [{ type: "pid" }] : [])],
      rootfsPropagation: "rslave",
      resources: {},
      seccomp: filter,
    },
  }
}

/** What the runtime itself had to complain about. */
async function runtimeError(log: string): Promise<string | undefined> {
  const lines = (await readFile(log, "utf8").catch(() => "")).split("\n")
  for (const line of lines)
    try {
      const { level, msg } = JSON.parse(line) as { level?: string; msg?: string }
      if (level === "error") return msg
    } catch {
      continue // Not of its log format, or the last, empty one.
    }
  return undefined
}

/**
 * Runs a program in the container; its output goes where this process's goes.
 *
 * @returns Its exit status, 128 and more for a signal.
 * @throws EnvironmentError `ERR_ENV_NO_KERNEL_SUPPORT` when the runtime could not start it.
 */
export async function runInContainer(run: ContainerRun): Promise<number> {
  const folder = await mkdtemp(path.join(run.session, "bundle-"))
  const status = async (): Promise<number> => {
    for (const [index, content] of Object.values(run.covers ?? {}).entries())
      await writeFile(path.join(folder, `cover${index}`), content, { mode: 0o644 })
    await mkdir(path.join(folder, "files"), { mode: 0o755 })
    for (const [name, { content, mode }] of Object.entries(run.files ?? {}))
      await writeFile(path.join(folder, "files", name), content, { mode })
    await mkdir(path.join(folder, "state"))
    await writeFile(path.join(folder, "config.json"), JSON.stringify(configuration(run, folder)), {
      mode: 0o600,
    })
    const log = path.join(folder, "log")
    const args = [
      `--log=file:${log}`,
      "--log-format=json",
      "--cgroup-manager=disabled",
      `--root=${path.join(folder, "state")}`,
      "run",
      "--no-new-keyring",
      `--bundle=${folder}`,
      "sifcrypt-build",
    ]
    const child = spawn(run.crun, args, {
      stdio: ["ignore", "inherit", "inherit"],
      env: { ...scrubbedEnvironment, _LIBCONTAINER_STATEDIR: folder },
    })
    const [code, signal] = (await once(child, "exit")) as [number | null, NodeJS.Signals | null]
    const message = code === 0 ? undefined : await runtimeError(log)
    if (message !== undefined)
      throw new EnvironmentError("ERR_ENV_NO_KERNEL_SUPPORT", `crun cannot start a container: ${message}`)
    return signal === null ? (code ?? 0) : 137
  }
  return await thenUndone(status, () => rm(folder, { recursive: true, force: true }))
}
