// Runs a program to its end: no shell, what it reads through its standard input, what it writes bounded in size and time.
import { spawn, type ChildProcess } from "node:child_process"
import type { Readable, Writable } from "node:stream"
import type { Bytes, Milliseconds } from "./units.ts"

/** What is kept of a program's complaint. */
const MAX_COMPLAINT: Bytes = 2000

/** What was asked to end, and may clean up, gets so long for it. */
const GRACE: Milliseconds = 2000

/** Why there is no output: a sentence without its subject. */
export class ProgramFailure extends Error {
  readonly why: "absent" | "unstartable" | "size" | undefined
  /** What it wrote to its standard error, as far as that is kept. */
  readonly complaint: string
  constructor(
    message: string,
    { why, complaint = "", cause }: Partial<Pick<ProgramFailure, "why" | "complaint" | "cause">> = {},
  ) {
    super(message, cause === undefined ? undefined : { cause })
    this.why = why
    this.complaint = complaint
  }
}

/** How it is run. */
export interface ProgramOptions {
  /** Default: as it is named. */
  readonly argv0?: string | undefined
  /** All of it. */
  readonly env: Readonly<Record<string, string | undefined>>
  /** Default: none, and no pipe for it. */
  readonly input?: string | Uint8Array | undefined
  readonly limit: Bytes
  /** Default: as long as it likes. */
  readonly timeoutMs?: Milliseconds | undefined
  /** What becomes of its standard error; default: a complaint. */
  readonly errors?: "inherit" | "ignore" | undefined
  /** What it has as descriptor 3. */
  readonly descriptor?: number | undefined
  /** In a session of its own, without the caller's terminal, which ends with it: all that it has started. */
  readonly alone?: boolean | undefined
  /** What ends it; default: SIGTERM, and SIGKILL soon after, or SIGKILL at once all of a session. */
  readonly killSignal?: "SIGKILL" | undefined
  /** So long after its end, what it has started may go on writing; default: for as long as that likes. */
  readonly lingerMs?: Milliseconds | undefined
  /** Default: status 0 is no failure. */
  readonly accepts?: ((status: number, output: Buffer) => boolean) | undefined
  readonly signal?: AbortSignal | undefined
}

function notStarted(cause: unknown): ProgramFailure {
  const { code, message } = cause as NodeJS.ErrnoException
  return code === "ENOENT"
    ? new ProgramFailure("is not installed", { why: "absent", cause })
    : new ProgramFailure(`cannot be started: ${message}`, { why: "unstartable", cause })
}

/** What Node does not tell by an event, such as too long a command, is told in the same way. */
function start(...args: Parameters<typeof spawn>): ChildProcess {
  try {
    return spawn(...args)
  } catch (cause) {
    throw notStarted(cause)
  }
}

/**
 * Runs it.
 *
 * @returns Its output, which the caller wipes.
 * @throws {@link ProgramFailure}; the signal's reason.
 */
export async function runProgram(
  program: string,
  args: readonly string[],
  options: ProgramOptions,
): Promise<Buffer> {
  const { argv0, env, input, limit, timeoutMs, errors = "pipe", descriptor, lingerMs, signal } = options
  const { alone = false, killSignal, accepts = (status) => status === 0 } = options
  signal?.throwIfAborted()
  const extra = descriptor === undefined ? [] : [descriptor]
  const child = start(program, [...args], {
    ...(argv0 === undefined ? {} : { argv0 }),
    env,
    stdio: [input === undefined ? "ignore" : "pipe", "pipe", errors, ...extra],
    detached: alone,
  })
  const ended = new Promise<NodeJS.Signals | number>((resolve, reject) => {
    child.once("error", reject)
    child.once("close", (status, by) => {
      resolve(by ?? status ?? -1)
    })
  })
  // Node's types do not know that there are none when the process has no descriptors left.
  const streams = child.stdio as readonly unknown[] | undefined
  const [stdin, stdout] = (streams ?? []) as readonly [Writable?, Readable?]
  const { stderr } = child
  let failure: ProgramFailure | undefined
  let isOver = false
  let patience: NodeJS.Timeout | undefined
  const stop = (): void => {
    // Its number may be another's by now.
    if (isOver) return
    try {
      if (!alone) {
        child.kill(killSignal)
        patience ??= setTimeout(() => child.kill("SIGKILL"), GRACE)
      } else if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL")
    } catch {
      // All of it has ended.
    }
  }
  // Who has left the group, or outlives the shell that started it, may hold the pipes open.
  const abandon = (why?: ProgramFailure): void => {
    failure ??= why
    stop()
    stdout?.destroy()
    stderr?.destroy()
  }
  const abort = (): void => {
    abandon()
  }
  const pieces: Buffer[] = []
  let size = 0
  let complaint = ""
  stdout?.on("error", (cause) => {
    abandon(new ProgramFailure(`cannot be heard: ${cause.message}`, { cause }))
  })
  // What it complains of is no answer.
  stderr?.on("error", () => undefined)
  stdout?.on("data", (piece: Buffer) => {
    pieces.push(piece)
    size += piece.length
    if (size > limit) abandon(new ProgramFailure(`wrote more than ${limit} bytes`, { why: "size" }))
  })
  stderr?.on("data", (piece: Buffer) => {
    if (complaint.length < MAX_COMPLAINT) complaint += piece.toString("utf8")
  })
  stdin?.on("error", () => undefined) // it may end without reading
  stdin?.end(input)
  const timer =
    timeoutMs === undefined
      ? undefined
      : setTimeout(() => {
          abandon(new ProgramFailure(`gave no answer within ${timeoutMs / 1000} s`))
        }, timeoutMs)
  child.once("exit", () => {
    // What it leaves behind it leaves no more, and the pipes come to their end.
    if (alone) stop()
    else if (lingerMs !== undefined) setTimeout(() => stdout?.destroy(), lingerMs).unref()
    isOver = true
    clearTimeout(patience)
  })
  signal?.addEventListener("abort", abort, { once: true })
  try {
    const how = await ended
    signal?.throwIfAborted()
    if (failure !== undefined) throw failure
    const output = Buffer.concat(pieces)
    if (typeof how === "number" && accepts(how, output)) return output
    output.fill(0)
    const last = complaint.trim().slice(0, MAX_COMPLAINT).split("\n").at(-1) ?? ""
    const end = typeof how === "number" ? `status ${how}` : how
    throw new ProgramFailure(`ended with ${end}${last === "" ? "" : `: ${last}`}`, { complaint })
  } catch (cause) {
    signal?.throwIfAborted()
    throw cause instanceof ProgramFailure ? cause : notStarted(cause)
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener("abort", abort)
    for (const piece of pieces) piece.fill(0)
  }
}
