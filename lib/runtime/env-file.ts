// The file of --env-file: assignments that a shell on the host evaluates.
import { statSync } from "node:fs"
import path from "node:path"
import { RunError } from "../errors.ts"
import { ProgramFailure, runProgram } from "../outside-program.ts"
import type { Bytes } from "../units.ts"
import { isFamilyVariable, shellQuote } from "./environment.ts"
import { findProgram } from "./program.ts"

const MAX_OUTPUT: Bytes = 1 << 20
/** A shell has these of its own. */
const ofTheShell: ReadonlySet<string> = new Set([
  "EUID",
  "GID",
  "HOME",
  "IFS",
  "OLDPWD",
  "OPTIND",
  "PPID",
  "PS4",
  "PWD",
  "SHLVL",
  "UID",
  "_",
])

/**
 * Evaluates a file of assignments with /bin/sh. Its text may use the caller's variables, but of what it runs itself nothing
 * inherits them.
 *
 * @param host - The caller's variables; keys and settings of ours and the peers are left out.
 * @param args - The payload's, as `$1` and so on.
 * @throws RunError `ERR_RUN_OPTION` when it cannot be read or evaluated; the signal's reason.
 */
export async function readEnvFile(
  file: string,
  host: Readonly<Record<string, string | undefined>>,
  args: readonly string[],
  signal?: AbortSignal,
): Promise<Map<string, string>> {
  const refuse = (why: string, cause?: unknown): RunError =>
    new RunError("ERR_RUN_OPTION", `--env-file ${file}: ${why}`, { path: file, cause })
  const absolute = path.resolve(file)
  const info = statSync(absolute, { throwIfNoEntry: false })
  if (info === undefined) throw refuse("there is no such file")
  // A device may have no end, and the shell reads on until there is one.
  if (!info.isFile() && !info.isFIFO()) throw refuse("it is no file")
  if (info.size > MAX_OUTPUT) throw refuse(`it has more than ${MAX_OUTPUT} bytes`)
  const names = Object.keys(host).filter(
    (name) => /^[A-Za-z_]\w*$/.test(name) && !isFamilyVariable(name) && !ofTheShell.has(name),
  )
  // What the shell knows and does not export: so what is exported afterwards is what the file sets.
  const known = [...names, "HOME"].map((name) => `${name}=${shellQuote(host[name] ?? "")}\n`).join("")
  const list = findProgram("env", "it lists variables")
  // From standard input: neither the command line nor the environment is the place for what the caller keeps in variables.
  const script = `${known}set -a\n. ${shellQuote(absolute)} </dev/null\nset +a\nexec ${list} -0\n`
  const shell = findProgram("sh", "it evaluates --env-file")
  const output = await runProgram(shell, ["-s", "--", ...args], {
    env: {},
    input: script,
    limit: MAX_OUTPUT,
    killSignal: "SIGKILL",
    signal,
  }).catch((cause: unknown) => {
    if (!(cause instanceof ProgramFailure)) throw cause
    throw refuse(`the shell ${cause.message}`, cause)
  })
  const found = new Map<string, string>()
  for (const entry of output.toString("utf8").split("\0")) {
    const equals = entry.indexOf("=")
    const name = entry.slice(0, Math.max(0, equals))
    if (name !== "" && !ofTheShell.has(name)) found.set(name, entry.slice(equals + 1))
  }
  return found
}
