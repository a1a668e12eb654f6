// Runs the command as people do: a process with an environment of its own, as root or as an ordinary user.
import { spawn, type ChildProcess, type StdioOptions } from "node:child_process"
import { once } from "node:events"
import { userInfo } from "node:os"
import path from "node:path"
import { fileURLToPath } from "node:url"
import { newFolder } from "./scratch.ts"

export const packageRoot: string = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "..", "..")
export const cli: string = path.join(packageRoot, "dist", "cli", "main.js")

export const isRoot: boolean = process.getuid?.() === 0

/** An ordinary user that no passwd knows; where an ordinary user runs the tests, that one. */
export const userId: number = isRoot ? 2345 : (process.getuid?.() ?? 0)

/** Whom a command runs as: whoever runs the tests (root in CI), an ordinary user, or one that passwd knows. */
export type As = "self" | "user" | "nobody"

const ids: Readonly<Record<As, number>> = {
  self: process.getuid?.() ?? 0,
  user: userId,
  nobody: isRoot ? 65534 : userId,
}

/** The user and group id behind it. */
export function idOf(as: As): number {
  return ids[as]
}

let homes: Readonly<Record<As, string>> | undefined

/** The home folder of commands run by the tests. */
export function homeOf(as: As): string {
  homes ??= {
    self: newFolder("home"),
    user: newFolder("user-home", ids.user),
    nobody: newFolder("nobody-home", ids.nobody),
  }
  return homes[as]
}

/** Where payloads have it: what the system's list of users says counts for more than the environment. */
export function homeInside(as: As): string {
  if (as !== "user") return "/root"
  try {
    return isRoot ? homeOf(as) : userInfo().homedir
  } catch {
    return homeOf(as)
  }
}

export interface CommandOptions {
  /** Default: an ordinary user. */
  readonly as?: As
  readonly env?: Readonly<Record<string, string>>
  readonly cwd?: string
  readonly input?: Uint8Array | string
  /** Leaves its standard input open, for the test to end. */
  readonly holdInput?: boolean
  /** Killed after so long, default 60 s. */
  readonly timeoutMs?: number
  /** A supplementary group (root only): marks the command and all that comes of it. */
  readonly group?: number
  /** Put before the command: `["unshare", "-m", …]`. It runs as whoever runs the tests. */
  readonly wrapper?: readonly string[]
}

export interface Result {
  /** Exit status, 128 plus the signal's number when a signal ended it. */
  readonly status: number | null
  readonly signal: NodeJS.Signals | null
  readonly stdout: Buffer
  readonly stderr: string
  /** Of standard output. */
  readonly text: string
}

/** Starts any program with the rights and environment that the options ask for. */
export function startProgram(
  argv: readonly string[],
  options: CommandOptions & { readonly stdio?: StdioOptions } = {},
): ChildProcess {
  const { as = "user", env = {}, cwd, group, wrapper = [], stdio = "pipe" } = options
  const drop = isRoot && (as !== "self" || group !== undefined)
  const id = ids[as]
  const rights = drop
    ? [
        "setpriv",
        `--reuid=${id}`,
        `--regid=${id}`,
        group === undefined ? "--clear-groups" : `--groups=${group}`,
      ]
    : []
  const [program = "", ...args] = [...wrapper, ...rights, ...argv]
  return spawn(program, args, {
    stdio,
    ...(cwd === undefined ? {} : { cwd }),
    env: { PATH: process.env["PATH"], HOME: homeOf(as), LANG: "C.UTF-8", ...env },
  })
}

/** Waits for its end with everything it wrote. */
export async function finish(child: ChildProcess, options: CommandOptions = {}): Promise<Result> {
  const { input, holdInput = false, timeoutMs = 60_000 } = options
  const stdout: Buffer[] = []
  const stderr: Buffer[] = []
  child.stdout?.on("data", (chunk: Buffer) => stdout.push(chunk))
  child.stderr?.on("data", (chunk: Buffer) => stderr.push(chunk))
  child.stdin?.on("error", () => undefined) // it may end without reading
  if (!holdInput) child.stdin?.end(input)
  const late = new AbortController()
  const timer = setTimeout(() => {
    late.abort()
    child.kill("SIGKILL")
  }, timeoutMs)
  try {
    const [status, signal] = (await once(child, "close")) as [number | null, NodeJS.Signals | null]
    if (late.signal.aborted)
      throw new Error(`${child.spawnargs.join(" ")} did not end within ${timeoutMs} ms`)
    const output = Buffer.concat(stdout)
    return {
      status,
      signal,
      stdout: output,
      text: output.toString("utf8"),
      stderr: Buffer.concat(stderr).toString("utf8"),
    }
  } finally {
    clearTimeout(timer)
  }
}

/** Runs any program to its end. */
export async function runProgram(argv: readonly string[], options: CommandOptions = {}): Promise<Result> {
  return await finish(startProgram(argv, options), options)
}

/** Starts `sifcrypt` and leaves it running. */
export function startSifcrypt(
  args: readonly string[],
  options: CommandOptions & { readonly stdio?: StdioOptions } = {},
): ChildProcess {
  return startProgram([cli, ...args], options)
}

/** Runs `sifcrypt` to its end. */
export async function sifcrypt(args: readonly string[], options: CommandOptions = {}): Promise<Result> {
  return await finish(startSifcrypt(args, options), options)
}

/** Runs `sifcrypt`, which has to succeed. */
export async function sifcryptOk(args: readonly string[], options: CommandOptions = {}): Promise<Result> {
  const result = await sifcrypt(args, options)
  if (result.status !== 0)
    throw new Error(
      `sifcrypt ${args.join(" ")}: ${result.signal ?? `status ${String(result.status)}`}\n${result.stderr}`,
    )
  return result
}
