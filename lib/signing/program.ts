// Runs a program that signs: what is to be signed goes to its standard input, the signature comes from its standard output.
import { spawn } from "node:child_process"
import { programEnvironment } from "../caller-environment.ts"
import { EnvironmentError, SignatureError } from "../errors.ts"
import { terminalVariable } from "../ocicrypt/gnupg.ts"
import type { Bytes } from "../units.ts"

/** What is kept of a program's complaint. */
const MAX_COMPLAINT: Bytes = 2000

/**
 * Runs it to its end.
 *
 * @param what - What to call it in messages.
 * @returns Its output, `limit` bytes at most.
 * @throws SignatureError `ERR_SIGNATURE_SIGN` when it fails; EnvironmentError `ERR_ENV_NO_PROGRAM`; the signal's reason.
 */
export async function runProgram(
  argv: readonly [string, ...string[]],
  what: string,
  input: Uint8Array,
  limit: Bytes,
  signal?: AbortSignal,
): Promise<Buffer> {
  signal?.throwIfAborted()
  const [program, ...args] = argv
  const child = spawn(program, args, {
    env: { ...programEnvironment(), ...terminalVariable() },
    stdio: "pipe",
  })
  const stop = (): void => {
    child.stdout.destroy()
    child.kill()
  }
  const output: Buffer[] = []
  let size = 0
  let complaint = ""
  child.stdout.on("data", (chunk: Buffer) => {
    output.push(chunk)
    size += chunk.length
    if (size > limit) stop()
  })
  child.stderr.on("data", (chunk: Buffer) => {
    if (complaint.length < MAX_COMPLAINT) complaint += chunk.toString("utf8")
  })
  child.stdin.on("error", () => undefined) // it may end without reading
  child.stdin.end(input)
  signal?.addEventListener("abort", stop, { once: true })
  try {
    const ended = await new Promise<string | undefined>((resolve, reject) => {
      child.once("error", reject)
      child.once("close", (status, by) => {
        resolve(by ?? (status === 0 ? undefined : `status ${status ?? "unknown"}`))
      })
    })
    signal?.throwIfAborted()
    if (size > limit) throw new SignatureError("ERR_SIGNATURE_SIGN", `${what}: more than ${limit} bytes`)
    if (ended === undefined) return Buffer.concat(output)
    const lines = complaint.trim().slice(0, MAX_COMPLAINT).split("\n")
    const last = lines.at(-1) ?? ""
    throw new SignatureError(
      "ERR_SIGNATURE_SIGN",
      `${what} failed: it ended with ${ended}${last === "" ? "" : `: ${last}`}`,
    )
  } catch (cause) {
    signal?.throwIfAborted()
    if ((cause as NodeJS.ErrnoException).code === "ENOENT")
      throw new EnvironmentError("ERR_ENV_NO_PROGRAM", `${program} is not installed`, { cause })
    throw cause
  } finally {
    signal?.removeEventListener("abort", stop)
  }
}
