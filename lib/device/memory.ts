// How much memory this process may still take: what the machine has free, and what its cgroups leave of their limits.
import { readFileSync } from "node:fs"
import path from "node:path"
import { EnvironmentError } from "../errors.ts"
import type { Bytes } from "../units.ts"

/** The tightest limit and what is left below it. */
export interface FreeMemory {
  readonly bytes: Bytes
  /** What sets it: `this machine` or `the cgroup /…`. */
  readonly limit: string
}

function readText(file: string): string | undefined {
  try {
    return readFileSync(file, "utf8")
  } catch {
    // Not every kernel has every file; a limit that cannot be read is the kernel's to enforce.
    return undefined
  }
}

/** `max`, or what is as good as no limit, is undefined. */
function readNumber(file: string): number | undefined {
  const value = Number(readText(file)?.trim())
  return Number.isSafeInteger(value) ? value : undefined
}

function field(text: string | undefined, pattern: RegExp): number | undefined {
  const digits = text === undefined ? undefined : pattern.exec(text)?.[1]
  return digits === undefined ? undefined : Number(digits)
}

/** What a cgroup leaves; the page cache counts as used there but is given up when needed. */
function freeInGroup(folder: string, names: { max: string; current: string }): Bytes | undefined {
  const max = readNumber(path.join(folder, names.max))
  const current = readNumber(path.join(folder, names.current))
  if (max === undefined || current === undefined) return undefined
  const cache = field(readText(path.join(folder, "memory.stat")), /^(?:total_)?inactive_file (\d+)$/m) ?? 0
  return Math.max(0, max - current + cache)
}

/** The cgroup folders of this process, innermost first, with the names of their files. */
function* groups(
  root: string,
): Generator<{ folder: string; name: string; files: { max: string; current: string } }> {
  for (const line of (readText(path.join(root, "proc/self/cgroup")) ?? "").split("\n")) {
    const [, controllers, group] = /^\d+:([^:]*):(\/.*)$/.exec(line) ?? []
    if (controllers === undefined || group === undefined) continue
    const unified = controllers === ""
    if (!unified && !controllers.split(",").includes("memory")) continue
    const base = path.join(root, unified ? "sys/fs/cgroup" : "sys/fs/cgroup/memory")
    const files = unified
      ? { max: "memory.max", current: "memory.current" }
      : { max: "memory.limit_in_bytes", current: "memory.usage_in_bytes" }
    for (let name = path.posix.normalize(group); ; name = path.posix.dirname(name)) {
      yield { folder: path.join(base, name), name, files }
      if (name === "/") break
    }
  }
}

/**
 * The memory that can still be had.
 *
 * @param root - Where /proc and /sys are; for tests.
 * @returns undefined where the system does not tell.
 */
export function freeMemory(root: string = "/"): FreeMemory | undefined {
  const available = field(readText(path.join(root, "proc/meminfo")), /^MemAvailable:\s*(\d+) kB$/m)
  const candidates: FreeMemory[] =
    available === undefined ? [] : [{ bytes: available * 1024, limit: "this machine" }]
  for (const { folder, name, files } of groups(root)) {
    const bytes = freeInGroup(folder, files)
    if (bytes !== undefined) candidates.push({ bytes, limit: `the cgroup ${name}` })
  }
  return candidates.reduce<FreeMemory | undefined>(
    (least, next) => (least === undefined || next.bytes < least.bytes ? next : least),
    undefined,
  )
}

/**
 * Is there memory for a key derivation?
 *
 * @param what - Whose, for the message.
 * @throws EnvironmentError `ERR_ENV_NO_MEMORY` that says how much is needed and what is free.
 */
export function requireMemory(kib: number, what: string, free: FreeMemory | undefined): void {
  if (free === undefined || kib * 1024 <= free.bytes) return
  const mebibytes = (bytes: number): string => `${Math.floor(bytes / (1024 * 1024))} MiB`
  throw new EnvironmentError(
    "ERR_ENV_NO_MEMORY",
    `${what} needs ${mebibytes(kib * 1024)} of memory for its key derivation; ${free.limit} has ${mebibytes(free.bytes)} left`,
  )
}
