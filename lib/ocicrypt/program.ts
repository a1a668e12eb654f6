// Runs a program that works with layer keys: no shell, what it reads through its standard input, what it writes bounded in size and time, and
// nothing of it left running.
import { spawn, type ChildProcessWithoutNullStreams } from "node:child_process"
import { programEnvironment } from "../caller-environment.ts"
import type { Bytes, Milliseconds } from "../units.ts"

/** What is kept of a program's complaint. */
const MAX_COMPLAINT: Bytes = 2000

/** Why there is no output: a sentence without its subject. */
export class ProgramFailure extends Error {
  /** What it wrote to its standard error, as far as that is kept. */
  readonly complaint: string
  constructor(
    message: string,
    { complaint = "", cause }: { readonly complaint?: string; readonly cause?: unknown } = {},
  ) {
    super(message, cause === undefined ? undefined : { cause })
    this.complaint = complaint
  }
}

/** How it is run. */
export interface ProgramOptions {
  /** Default: as it is named. */
  readonly argv0?: string | undefined
  readonly input?: Uint8Array | undefined
  readonly limit: Bytes
  readonly timeoutMs: Milliseconds
  /** Besides the caller's variables that hold no secrets. */
  readonly env?: Readonly<Record<string, string>> | undefined
  /** What it has as descriptor 3. */
  readonly descriptor?: number | undefined
  readonly signal?: AbortSignal | undefined
}

/**
 * Runs it to its end, which is also that of everything that it has started in its process group.
 *
 * @returns Its output, which the caller wipes.
 * @throws {@link ProgramFailure}; the signal's reason.
 */
export async function runProgram(
  program: string,
  args: readonly string[],
  { argv0, input = Buffer.alloc(0), limit, timeoutMs, env, descriptor, signal }: ProgramOptions,
): Promise<Buffer> {
  signal?.throwIfAborted()
  const child = spawn(program, [...args], {
    ...(argv0 === undefined ? {} : { argv0 }),
    env: { ...programEnvironment(), ...env },
    stdio: ["pipe", "pipe", "pipe", ...(descriptor === undefined ? [] : [descriptor])],
    // A process group of its own, which is ended as a whole.
    detached: true,
  }) as ChildProcessWithoutNullStreams
  let why: string | undefined
  let isOver = false
  const stop = (reason?: string): void => {
    why ??= reason
    // Its number may be another's by now.
    if (isOver) return
    try {
      if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL")
    } catch {
      // All of it has ended.
    }
  }
  // Who has left the group may hold the pipes open.
  const abandon = (reason?: string): void => {
    stop(reason)
    child.stdout.destroy()
    child.stderr.destroy()
  }
  const abort = (): void => {
    abandon()
  }
  const output: Buffer[] = []
  let size = 0
  let complaint = ""
  child.stdout.on("data", (chunk: Buffer) => {
    output.push(chunk)
    size += chunk.length
    if (size > limit) abandon(`wrote more than ${limit} bytes`)
  })
  child.stderr.on("data", (chunk: Buffer) => {
    if (complaint.length < MAX_COMPLAINT) complaint += chunk.toString("utf8")
  })
  child.stdin.on("error", () => undefined) // it may end without reading
  child.stdin.end(input)
  const timer = setTimeout(() => {
    abandon(`gave no answer within ${timeoutMs / 1000} s`)
  }, timeoutMs)
  // What it leaves behind it leaves no more, and the pipes come to their end.
  child.once("exit", () => {
    stop()
    isOver = true
  })
  signal?.addEventListener("abort", abort, { once: true })
  try {
    const ended = await new Promise<string | undefined>((resolve, reject) => {
      child.once("error", reject)
      child.once("close", (status, by) => {
        resolve(by ?? (status === 0 ? undefined : `status ${status ?? "unknown"}`))
      })
    })
    signal?.throwIfAborted()
    if (why !== undefined) throw new ProgramFailure(why)
    if (ended === undefined) return Buffer.concat(output)
    const last = complaint.trim().slice(0, MAX_COMPLAINT).split("\n").at(-1) ?? ""
    throw new ProgramFailure(`ended with ${ended}${last === "" ? "" : `: ${last}`}`, { complaint })
  } catch (cause) {
    signal?.throwIfAborted()
    if (cause instanceof ProgramFailure) throw cause
    const { code, message } = cause as NodeJS.ErrnoException
    throw new ProgramFailure(code === "ENOENT" ? "is not installed" : `cannot be started: ${message}`, {
      cause,
    })
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener("abort", abort)
    for (const chunk of output) chunk.fill(0)
  }
}
