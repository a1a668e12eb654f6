// Runs a program that works with layer keys: no shell, what it reads through its standard input, what it writes bounded in size and time, and
// nothing of it left running.
import { spawn } from "node:child_process"
import { programEnvironment } from "../caller-environment.ts"
import type { Bytes, Milliseconds } from "../units.ts"

/** What is kept of a program's complaint. */
const MAX_COMPLAINT: Bytes = 2000

/** Why there is no output: a sentence without its subject. */
export class ProgramFailure extends Error {}

/** How it is run. */
export interface ProgramOptions {
  readonly input?: Uint8Array | undefined
  readonly limit: Bytes
  readonly timeoutMs: Milliseconds
  /** Besides the caller's variables that hold no secrets. */
  readonly env?: Readonly<Record<string, string>> | undefined
  /** What it reads from descriptor 3. */
  readonly secret?: Uint8Array | undefined
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
  { input = Buffer.alloc(0), limit, timeoutMs, env, secret, signal }: ProgramOptions,
): Promise<Buffer> {
  signal?.throwIfAborted()
  const child = spawn(program, [...args], {
    env: { ...programEnvironment(), ...env },
    stdio: ["pipe", "pipe", "pipe", ...(secret === undefined ? [] : ["pipe" as const])],
    // A process group of its own, which is ended as a whole.
    detached: true,
  })
  let why: string | undefined
  const stop = (reason?: string): void => {
    why ??= reason
    try {
      if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL")
    } catch {
      // All of it has ended.
    }
  }
  const abort = (): void => {
    stop()
  }
  const output: Buffer[] = []
  let size = 0
  let complaint = ""
  child.stdout.on("data", (chunk: Buffer) => {
    output.push(chunk)
    size += chunk.length
    if (size > limit) stop(`wrote more than ${limit} bytes`)
  })
  child.stderr.on("data", (chunk: Buffer) => {
    if (complaint.length < MAX_COMPLAINT) complaint += chunk.toString("utf8")
  })
  const pipe = child.stdio[3]
  for (const [stream, bytes] of [
    [child.stdin, input],
    [pipe, secret],
  ] as const)
    if (stream !== undefined && stream !== null && "end" in stream && bytes !== undefined) {
      stream.on("error", () => undefined) // it may end without reading
      stream.end(bytes)
    }
  const timer = setTimeout(() => {
    stop(`gave no answer within ${timeoutMs / 1000} s`)
    // Who has left the group may hold the pipe open.
    child.stdout.destroy()
    child.stderr.destroy()
  }, timeoutMs)
  // What it leaves behind it leaves no more, and the pipes come to their end.
  child.once("exit", () => {
    stop()
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
    throw new ProgramFailure(`ended with ${ended}${last === "" ? "" : `: ${last}`}`)
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
