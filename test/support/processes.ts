// What runs and what is mounted, as far as it is ours: several test runs may share a machine.
import { readdirSync, readFileSync, readlinkSync } from "node:fs"
import { setTimeout as sleep } from "node:timers/promises"

export interface ProcessInfo {
  readonly pid: number
  readonly parent: number
  /** Arguments, joined by spaces. */
  readonly command: string
  /** Of the program file, where it can be seen. */
  readonly program: string
}

function read(file: string): string {
  try {
    return readFileSync(file, "utf8")
  } catch {
    return "" // it has ended, or is not ours to look at
  }
}

function processInfo(pid: number): ProcessInfo {
  let program = ""
  try {
    program = readlinkSync(`/proc/${pid}/exe`)
  } catch {
    // a zombie, or somebody else's
  }
  return {
    pid,
    parent: Number(/^PPid:\s*(\d+)/m.exec(read(`/proc/${pid}/status`))?.[1] ?? 0),
    command: read(`/proc/${pid}/cmdline`).split("\0").join(" ").trim(),
    program,
  }
}

function allPids(): number[] {
  return readdirSync("/proc").flatMap((name) => (/^\d+$/.test(name) ? [Number(name)] : []))
}

/** Everything that runs on this machine and can be seen. */
export function allProcesses(): ProcessInfo[] {
  return allPids().map(processInfo)
}

/** What it has open. */
export function descriptorsOf(pid: number): string[] {
  try {
    return readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
      try {
        return [readlinkSync(`/proc/${pid}/fd/${fd}`)]
      } catch {
        return [] // closed meanwhile
      }
    })
  } catch {
    return [] // ended, or not ours to look at
  }
}

/** Does it have /dev/fuse open: is it a server? */
export function holdsFuse(pid: number): boolean {
  return descriptorsOf(pid).includes("/dev/fuse")
}

/** Does it take connections over TCP? */
export function listens(pid: number): boolean {
  const sockets = ["tcp", "tcp6"].flatMap((kind) =>
    [...read(`/proc/${pid}/net/${kind}`).matchAll(/^\s*\d+: \S+ \S+ 0A (?:\S+ +){5}(\d+)/gm)].map(
      ([, inode]) => `socket:[${inode ?? ""}]`,
    ),
  )
  return descriptorsOf(pid).some((target) => sockets.includes(target))
}

/** The living processes with this supplementary group: a command that was started with it, and all that came of it. */
export function processesOfGroup(group: number): ProcessInfo[] {
  return allPids()
    .filter((pid) => {
      const status = read(`/proc/${pid}/status`)
      const groups = /^Groups:\s*(.*)$/m.exec(status)?.[1] ?? ""
      return groups.split(" ").includes(String(group)) && !/^State:\s*[ZX]/m.test(status)
    })
    .map(processInfo)
}

/** Sends a signal to all of a group that are still there. */
export function signalGroup(group: number, signal: NodeJS.Signals): void {
  for (const { pid } of processesOfGroup(group))
    try {
      process.kill(pid, signal)
    } catch {
      // It has ended since it was seen.
    }
}

/** A process and all below it. */
export function processesBelow(root: number): ProcessInfo[] {
  const all = allProcesses()
  const found = all.filter(({ pid }) => pid === root)
  for (const { pid } of found) found.push(...all.filter(({ parent }) => parent === pid))
  return found
}

/** Mount points in or at a folder, in this mount namespace. */
export function mountsIn(folder: string): string[] {
  return read("/proc/self/mountinfo")
    .split("\n")
    .map((line) =>
      (line.split(" ")[4] ?? "").replace(/\\(\d{3})/g, (_, octal: string) =>
        String.fromCharCode(parseInt(octal, 8)),
      ),
    )
    .filter((target) => target === folder || target.startsWith(`${folder}/`))
}

/** Loop devices whose backing file lies in a folder. */
export function loopDevicesOf(folder: string): string[] {
  return readdirSync("/sys/block").filter((name) =>
    read(`/sys/block/${name}/loop/backing_file`).startsWith(`${folder}/`),
  )
}

/** Names of the mappings of device-mapper. */
export function mappings(): string[] {
  return readdirSync("/sys/block").flatMap((name) => {
    const mapping = read(`/sys/block/${name}/dm/name`).trim()
    return mapping === "" ? [] : [mapping]
  })
}

/** Waits until `condition` gives something true, and gives that. */
export async function waitFor<T>(
  what: string,
  condition: () => T | Promise<T>,
  timeoutMs: number = 10_000,
): Promise<NonNullable<T>> {
  const end = performance.now() + timeoutMs
  for (;;) {
    const value = await condition()
    if (value !== undefined && value !== null && value !== false) return value
    if (performance.now() > end) throw new Error(`${what}: not within ${timeoutMs} ms`)
    await sleep(10)
  }
}

/** Waits until there is no process any more that came of commands of this group; says which there are. */
export async function noneOfGroup(group: number, what: string, timeoutMs?: number): Promise<void> {
  try {
    await waitFor(what, () => processesOfGroup(group).length === 0, timeoutMs)
  } catch (cause) {
    const left = processesOfGroup(group).map(({ pid, command }) => `${pid} ${command}`)
    throw new Error(`${what}: left is ${left.join("; ")}`, { cause })
  }
}

/** Processor time of a process so far, in milliseconds. */
export function processorMs(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "latin1").split(") ")[1]?.split(" ") ?? []
  return (Number(fields[11]) + Number(fields[12])) * 10
}
