// Limits on what a container may use, as flags or as the peers' cgroups file, and who enforces them.
import { accessSync, constants, existsSync, readFileSync, statfsSync, statSync } from "node:fs"
import { availableParallelism } from "node:os"
import path from "node:path"
import { readBounded } from "../bounded-file.ts"
import { EnvironmentError, RunError } from "../errors.ts"
import type { ResourceLimits } from "./options.ts"

type Resources = Record<string, unknown>

const PERIOD = 100_000 // microseconds, as the peers have it
const MAX_FILE_SIZE = 1 << 20
function refuse(what: string): never {
  throw new RunError("ERR_RUN_OPTION", what)
}

function inRange<T extends number | undefined>(value: T, what: string, least: number, most: number): T {
  if (value !== undefined && !(value >= least && value <= most))
    refuse(`${what} is ${least} to ${most}, not ${value}`)
  return value
}

/** The interpreter of the image's scripts has five threads, and their programs some more. */
const LEAST_PROCESSES = 8

/** With fewer it could only end in a trace of its own, after the image has been opened. */
function checkProcesses(limit: unknown, where: string = ""): void {
  if (typeof limit === "number" && limit > 0 && limit < LEAST_PROCESSES)
    refuse(
      `${where}the limit of processes is ${LEAST_PROCESSES} or more, not ${limit}: starting a payload takes them`,
    )
}

function weightDevice(text: string): object {
  const [, device = "", weight = ""] =
    /^(.+):(\d+)$/.exec(text) ?? refuse(`blkio weight ${text} is not DEVICE:WEIGHT`)
  const number =
    statSync(device, { throwIfNoEntry: false })?.rdev ?? refuse(`blkio weight: there is no device ${device}`)
  // glibc's makedev(3)
  const major = Math.floor(number / 256) % 4096
  const minor = (number % 256) + Math.floor(number / 2 ** 20) * 256
  return { major, minor, weight: inRange(Number(weight), "a blkio weight", 10, 1000) }
}

/** Are there any limits among the options? */
export function hasLimits(options: ResourceLimits): boolean {
  return Object.keys(resourcesOf(options)).length > 0
}

/** `linux.resources` of these limits. */
export function resourcesOf(limits: ResourceLimits, processors: number = availableParallelism()): Resources {
  const { cpus, cpuShares, cpusetCpus, cpusetMems, memory, memoryReservation, memorySwap } = limits
  const { oomKillDisable, pidsLimit, blkioWeight, blkioWeightDevice } = limits
  const time = inRange(cpus, "the number of cpus", 0.01, processors)
  const cpu = {
    ...(time === undefined ? {} : { quota: Math.round(time * PERIOD), period: PERIOD }),
    ...{ shares: inRange(cpuShares, "cpu shares", 2, 262_144), cpus: cpusetCpus, mems: cpusetMems },
  }
  for (const list of [cpusetCpus, cpusetMems])
    if (list !== undefined && !/^\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*$/.test(list))
      refuse(`${list} is no list of numbers and ranges`)
  if (memorySwap !== undefined && memory === undefined) refuse("a limit of swap needs one of memory")
  if (memorySwap !== undefined && memory !== undefined && memorySwap !== -1 && memorySwap < memory)
    refuse("the limit of memory and swap together is less than that of memory")
  const memories = {
    limit: inRange(memory, "the limit of memory", 1, Number.MAX_SAFE_INTEGER),
    reservation: memoryReservation,
    swap: memorySwap,
    disableOOMKiller: oomKillDisable === true || undefined,
  }
  const blockIO = {
    weight: inRange(blkioWeight, "the blkio weight", 10, 1000),
    weightDevice: blkioWeightDevice?.map(weightDevice),
  }
  const pids = { limit: inRange(pidsLimit, "the limit of processes", -1, 2 ** 31) }
  checkProcesses(pidsLimit)
  const all = Object.entries({ cpu, memory: memories, blockIO, pids }).map(
    ([name, section]) => [name, Object.entries(section).filter(([, value]) => value !== undefined)] as const,
  )
  return Object.fromEntries(
    all.flatMap(([name, set]) => (set.length === 0 ? [] : [[name, Object.fromEntries(set)]])),
  )
}

/** Sections of the peers' file, which are those of the runtime's configuration. */
const sections: ReadonlySet<string> = new Set(
  "memory cpu pids blockIO hugepageLimits network rdma devices unified".split(" "),
)

/** The largest that JSON.stringify writes as a 64-bit integer: as good as no limit, as all above 2^53 is. */
const MOST = 2 ** 63 - 4096

/** JSON has no integers of 64 bits, which these files are full of. */
function withNumbers(value: unknown): unknown {
  if (typeof value === "bigint") return Math.max(-MOST, Math.min(MOST, Number(value)))
  if (Array.isArray(value)) return value.map(withNumbers)
  if (typeof value !== "object" || value === null || value instanceof Date) return value
  return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, withNumbers(one)]))
}

/**
 * Reads a cgroups file (TOML).
 *
 * @throws RunError `ERR_RUN_OPTION`.
 */
export async function readResources(file: string, signal?: AbortSignal): Promise<Resources> {
  const { parse } = await import("smol-toml")
  let parsed: Resources
  try {
    const text = (await readBounded(file, MAX_FILE_SIZE, { signal })).toString("utf8")
    parsed = withNumbers(parse(text, { integersAsBigInt: "asNeeded" })) as Resources
  } catch (cause) {
    signal?.throwIfAborted()
    const why = cause instanceof Error ? (cause.message.split("\n")[0] ?? "") : String(cause)
    throw new RunError("ERR_RUN_OPTION", `cgroups file ${file}: ${why}`, { path: file, cause })
  }
  for (const name of Object.keys(parsed))
    if (!sections.has(name)) refuse(`cgroups file ${file}: there is no section ${name}`)
  checkProcesses((parsed["pids"] as Resources | undefined)?.["limit"], `cgroups file ${file}: `)
  return parsed
}

/** Who enforces limits, and where. */
export interface CgroupPlan {
  readonly manager: "cgroupfs" | "systemd"
  /** `linux.cgroupsPath`. */
  readonly path: string
  /** Of cgroupfs: what is to be removed, should the runtime not come to it. */
  readonly folder: string | undefined
}

const CGROUPS = "/sys/fs/cgroup"
const CGROUP2_MAGIC = 0x63677270 // linux/magic.h

function isCgroup2(folder: string): boolean {
  try {
    return statfsSync(folder).type === CGROUP2_MAGIC
  } catch {
    return false
  }
}

function isWritable(folder: string): boolean {
  try {
    accessSync(folder, constants.W_OK)
    accessSync(path.join(folder, "cgroup.procs"), constants.W_OK)
    return true
  } catch {
    return false
  }
}

/**
 * Finds out who can enforce limits here.
 *
 * @param id - Names the container.
 * @throws EnvironmentError `ERR_ENV_NO_CGROUP`.
 */
export function planCgroup(uid: number, id: string): CgroupPlan {
  const none = (why: string): never => {
    throw new EnvironmentError("ERR_ENV_NO_CGROUP", `limits cannot be applied: ${why}`)
  }
  if (!isCgroup2(CGROUPS))
    none(
      existsSync(CGROUPS)
        ? "this machine has version 1 of cgroups, alone or beside version 2; limits need version 2 alone"
        : "this machine has no cgroups",
    )
  if (uid === 0 && existsSync("/run/systemd/system"))
    return { manager: "systemd", path: `system.slice:sifcrypt:${id}`, folder: undefined }
  if (uid === 0) return { manager: "cgroupfs", path: `/${id}`, folder: `/${id}` }
  // A process may only be moved within what its user owns.
  const own = /^0::(.*)$/m.exec(readFileSync("/proc/self/cgroup", "utf8"))?.[1] ?? "/"
  const parent = path.posix.dirname(own)
  if (own === "/" || !isWritable(path.join(CGROUPS, parent)) || !isWritable(path.join(CGROUPS, own)))
    none(`the cgroup ${own} is not delegated to user ${uid}`)
  const folder = path.posix.join(parent, id)
  return { manager: "cgroupfs", path: folder, folder }
}
