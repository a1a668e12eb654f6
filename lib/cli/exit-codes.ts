// Exit statuses, promised to scripts in docs/cli.md. Node keeps 1 to 14 for itself (1: a defect of ours); retired numbers
// are never used again. A payload's own status passes through unchanged.
import type { ErrorCode } from "../index.ts"

export const exitCodes = {
  done: 0,
  usage: 20,
  invalidContainer: 21,
  key: 22,
  busyOrExists: 23,
  environment: 24,
  inputOutput: 25,
  signature: 26,
  /** What the peers use for anything that keeps a payload from starting. */
  notStarted: 255,
  interrupted: 130,
  terminated: 143,
} as const

const busy: ReadonlySet<ErrorCode> = new Set([
  "ERR_SIF_BUSY",
  "ERR_SIF_SIGNED",
  "ERR_KEYRING_BUSY",
  "ERR_BUILD_EXISTS",
  "ERR_LOOP_BUSY",
  "ERR_DM_EXISTS",
  "ERR_MOUNT_BUSY",
  "ERR_INSTANCE_EXISTS",
])

/** The exit status for an error code. */
export function exitCodeFor(code: ErrorCode): number {
  if (code.startsWith("ERR_DEFINITION_") || code === "ERR_BUILD_AGENT") return exitCodes.usage
  if (busy.has(code)) return exitCodes.busyOrExists
  if (code.startsWith("ERR_KEY_") || code.endsWith("_PASSPHRASE") || code.endsWith("_RECIPIENTS"))
    return exitCodes.key
  if (code === "ERR_OCI_REFERENCE") return exitCodes.usage
  if (code === "ERR_OCI_CREDENTIALS") return exitCodes.key
  if (/^ERR_OCI_(?:FORMAT|DIGEST|LIMIT|WORK|UNSUPPORTED)$/.test(code)) return exitCodes.invalidContainer
  if (/^ERR_(?:SIF|LUKS|GOCRYPTFS|TREE)_/.test(code))
    return code === "ERR_TREE_NOT_FOUND" ? exitCodes.inputOutput : exitCodes.invalidContainer
  if (code === "ERR_UNSIGNED" || /^ERR_(?:SIGNATURE|ECL)_/.test(code)) return exitCodes.signature
  if (code === "ERR_KEYRING_INSECURE" || code === "ERR_KEYRING_NO_KEY") return exitCodes.signature
  if (code.startsWith("ERR_ENV_")) return exitCodes.environment
  if (code.startsWith("ERR_RUN") || code.startsWith("ERR_INSTANCE")) return exitCodes.notStarted
  return exitCodes.inputOutput
}
