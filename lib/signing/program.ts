// Runs a program that signs: what is to be signed goes to its standard input, the signature comes from its standard output.
import { programEnvironment } from "../caller-environment.ts"
import { EnvironmentError, SignatureError } from "../errors.ts"
import { terminalVariable } from "../ocicrypt/gnupg.ts"
import { ProgramFailure, runProgram } from "../outside-program.ts"
import type { Bytes } from "../units.ts"

/**
 * Runs it to its end.
 *
 * @param what - What to call it in messages.
 * @returns Its output, `limit` bytes at most.
 * @throws SignatureError `ERR_SIGNATURE_SIGN` when it fails; EnvironmentError `ERR_ENV_NO_PROGRAM`; the signal's reason.
 */
export async function runSigner(
  [program, ...args]: readonly [string, ...string[]],
  what: string,
  input: Uint8Array,
  limit: Bytes,
  signal?: AbortSignal,
): Promise<Buffer> {
  try {
    const env = { ...programEnvironment(), ...terminalVariable() }
    return await runProgram(program, args, { env, input, limit, signal })
  } catch (cause) {
    if (!(cause instanceof ProgramFailure)) throw cause
    if (cause.why === "absent")
      throw new EnvironmentError("ERR_ENV_NO_PROGRAM", `${program} is not installed`, { cause })
    const how = cause.why === "size" ? `: more than ${limit} bytes` : ` failed: it ${cause.message}`
    throw new SignatureError("ERR_SIGNATURE_SIGN", `${what}${how}`, { cause })
  }
}
