// Runs a command and tells how long it took and how much memory it held.
import { spawn } from "node:child_process"
import { once } from "node:events"
import { readdirSync, readFileSync, writeFileSync } from "node:fs"

export interface Measured {
  readonly milliseconds: number
  /** What it, and what it waited for, took of processors: that of others at the same time is no part of it. To 10 ms. */
  readonly processorMs: number
  /** Largest resident set of the process itself, bytes; seen every 20 ms. */
  readonly peakMemory: number
  readonly stdout: string
}

/** VmHWM of a process that may be gone. */
export function residentPeak(pid: number): number {
  try {
    const kib = /^VmHWM:\s*(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]
    return Number(kib ?? 0) * 1024
  } catch {
    return 0
  }
}

/** A process, and what it holds. */
export interface Resident {
  readonly command: string
  /** Bytes. */
  readonly resident: number
}

/** A process and all below it. */
export function processesBelow(root: number): Resident[] {
  const all = readdirSync("/proc").flatMap((name) => {
    if (!/^\d+$/.test(name)) return []
    try {
      const status = readFileSync(`/proc/${name}/status`, "utf8")
      const command = readFileSync(`/proc/${name}/cmdline`, "utf8").replaceAll("\0", " ")
      const parent = Number(/^PPid:\s*(\d+)/m.exec(status)?.[1] ?? 0)
      const resident = Number(/^VmRSS:\s*(\d+) kB$/m.exec(status)?.[1] ?? 0) * 1024
      return [{ pid: Number(name), parent, command, resident }]
    } catch {
      return [] // it has ended
    }
  })
  const found = all.filter(({ pid }) => pid === root)
  for (const { pid } of found) found.push(...all.filter(({ parent }) => parent === pid))
  return found
}

/** proc(5): cutime and cstime, in ticks of 10 ms. */
function processorMsOfChildren(): number {
  const [, fields = ""] = /^.*\) (.*)$/s.exec(readFileSync("/proc/self/stat", "latin1")) ?? []
  const [user = 0, system = 0] = fields.split(" ").slice(13, 15).map(Number)
  return (user + system) * 10
}

/** Runs it to its end; anything but status 0 is an error with what it wrote. */
export async function measure(command: string, args: readonly string[], cwd?: string): Promise<Measured> {
  const before = processorMsOfChildren()
  const started = performance.now()
  const child = spawn(command, args, {
    stdio: ["ignore", "pipe", "pipe"],
    ...(cwd === undefined ? {} : { cwd }),
  })
  let stdout = ""
  let stderr = ""
  child.stdout.on("data", (chunk: Buffer) => {
    stdout += chunk.toString("utf8")
  })
  child.stderr.on("data", (chunk: Buffer) => {
    stderr += chunk.toString("utf8")
  })
  let peakMemory = 0
  const watch = setInterval(() => {
    peakMemory = Math.max(peakMemory, residentPeak(child.pid ?? 0))
  }, 20)
  const [status] = (await once(child, "close")) as [number | null]
  clearInterval(watch)
  if (status !== 0)
    throw new Error(`${command} ${args.join(" ")}: status ${String(status)}\n${stderr || stdout}`)
  const milliseconds = performance.now() - started
  return { milliseconds, processorMs: processorMsOfChildren() - before, peakMemory, stdout }
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  const upper = sorted[middle] ?? Number.NaN
  return sorted.length % 2 === 1 ? upper : (upper + (sorted[middle - 1] ?? Number.NaN)) / 2
}

/** What was measured by turns, as parts of what came beside it: whatever else a machine does meanwhile, both of a pair have some of it. */
export function medianOfPairs(values: readonly number[], others: readonly number[]): number {
  return median(values.map((value, i) => value / (others[i] ?? Number.NaN)))
}

/** The median time of several runs; `before` is not part of it. */
export async function repeat(
  times: number,
  run: () => Promise<number>,
  before: () => Promise<void> = () => Promise.resolve(),
): Promise<number> {
  const values: number[] = []
  for (let i = 0; i < times; i++) {
    await before()
    values.push(await run())
  }
  return median(values)
}

/** Forgets file contents, inodes and names that the kernel keeps. */
export async function dropCaches(): Promise<void> {
  await measure("sync", [])
  writeFileSync("/proc/sys/vm/drop_caches", "3")
}

/** A command that runs another one and prints the microseconds it took: for what is measured where it runs. */
export const timed: readonly string[] = [
  "bash",
  "-c",
  'start=$(date +%s%N); "$@" </dev/null >/dev/null || exit; end=$(date +%s%N); echo $(( (end - start) / 1000 ))',
  "timed",
]
