// What an instance uses: as its cgroup counts it, or as its processes do.
import { readdirSync, readFileSync, readlinkSync } from "node:fs"
import path from "node:path"
import type { Bytes } from "../units.ts"

/** What an instance uses at a moment. */
export interface InstanceStats {
  /** Who counted: the instance's cgroup, or /proc of the processes that are there, without those that have ended. */
  readonly source: "cgroup" | "processes"
  /** Processor time since its start, nanoseconds. */
  readonly cpuTime: number
  /** With `processes` what is shared is counted by parts. */
  readonly memory: Bytes
  /** undefined: none but the machine's. */
  readonly memoryLimit: Bytes | undefined
  /** From and to block devices; undefined where nobody counts it. */
  readonly readBytes: Bytes | undefined
  readonly writtenBytes: Bytes | undefined
  /** With `cgroup` threads are counted as well. */
  readonly processes: number
  readonly processLimit: number | undefined
}

const NANOSECONDS = 1e9
const CGROUPS = "/sys/fs/cgroup"
/** USER_HZ, in which /proc counts: the same on every Linux that Node runs on. */
const TICKS = 100
const PAGE = 4096

function read(file: string): string | undefined {
  try {
    return readFileSync(file, "utf8")
  } catch {
    return undefined
  }
}

/** `max` stands for none. */
function limit(file: string): number | undefined {
  const text = read(file)?.trim() ?? "max"
  return text === "max" ? undefined : Number(text)
}

/** The sum of a counter over all devices; undefined: there is no such file. */
function sumOf(file: string, key: string): number | undefined {
  const text = read(file)
  if (text === undefined) return undefined
  return [...text.matchAll(new RegExp(`\\b${key}=(\\d+)`, "g"))].reduce((sum, [, n]) => sum + Number(n), 0)
}

/** The folder of version 2 that the runtime made for a container; undefined: it made none. */
function cgroupOf(process: number, id: string): string | undefined {
  const place = /^0::(.*)$/m.exec(read(`/proc/${process}/cgroup`) ?? "")?.[1]
  if (place?.includes(id) !== true) return undefined
  const folder = path.join(CGROUPS, place)
  return read(path.join(folder, "cgroup.procs")) === undefined ? undefined : folder
}

function fromCgroup(folder: string): InstanceStats {
  const at = (name: string): string => path.join(folder, name)
  const microseconds = Number(/^usage_usec (\d+)$/m.exec(read(at("cpu.stat")) ?? "")?.[1] ?? 0)
  return {
    source: "cgroup",
    cpuTime: microseconds * 1000,
    memory: Number(read(at("memory.current")) ?? 0),
    memoryLimit: limit(at("memory.max")),
    readBytes: sumOf(at("io.stat"), "rbytes"),
    writtenBytes: sumOf(at("io.stat"), "wbytes"),
    processes: Number(read(at("pids.current")) ?? 0),
    processLimit: limit(at("pids.max")),
  }
}

/** Those that see what the container sees, however they came there. */
function processesLike(first: number): number[] {
  const namespaceOf = (pid: string): string | undefined => {
    try {
      return readlinkSync(`/proc/${pid}/ns/mnt`)
    } catch {
      // Another user's, or gone.
      return undefined
    }
  }
  const own = namespaceOf(String(first))
  if (own === undefined) return []
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name) && namespaceOf(name) === own)
    .map(Number)
}

/** proc(5): utime and stime, and those of children that were waited for, in the fields behind the name. */
function cpuTimeOf(pid: number): number {
  const stat = read(`/proc/${pid}/stat`) ?? ""
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ")
  const ticks = [11, 12, 13, 14].reduce((sum, field) => sum + Number(fields[field] ?? 0), 0)
  return (ticks / TICKS) * NANOSECONDS
}

function memoryOf(pid: number): Bytes {
  const shared = /^Pss:\s*(\d+) kB$/m.exec(read(`/proc/${pid}/smaps_rollup`) ?? "")?.[1]
  if (shared !== undefined) return Number(shared) * 1024
  return Number(read(`/proc/${pid}/statm`)?.split(" ")[1] ?? 0) * PAGE
}

function fromProcesses(pids: readonly number[]): InstanceStats {
  const sum = (of: (pid: number) => number): number => pids.reduce((total, pid) => total + of(pid), 0)
  const counted = (key: string): number | undefined => {
    const found = pids.flatMap((pid) => {
      const value = new RegExp(`^${key}: (\\d+)$`, "m").exec(read(`/proc/${pid}/io`) ?? "")?.[1]
      return value === undefined ? [] : [Number(value)]
    })
    return found.length === 0 ? undefined : found.reduce((total, value) => total + value, 0)
  }
  return {
    source: "processes",
    cpuTime: sum(cpuTimeOf),
    memory: sum(memoryOf),
    memoryLimit: undefined,
    readBytes: counted("read_bytes"),
    writtenBytes: counted("write_bytes"),
    processes: pids.length,
    processLimit: undefined,
  }
}

/**
 * What a container uses.
 *
 * @param first - Its first process.
 * @param id - Its name at the runtime.
 */
export function statsOf(first: number, id: string): InstanceStats {
  const folder = cgroupOf(first, id)
  return folder === undefined ? fromProcesses(processesLike(first)) : fromCgroup(folder)
}
