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

/** Each of them that is promised: in a word, and as docs/cli.md has it. */
export const exitMeanings: readonly (readonly [status: number, word: string, meaning: string])[] = [
  [0, "done", "done"],
  [1, "defect", "a defect of sifcrypt; please report it"],
  [20, "usage", "usage: an unknown option or command, a missing or senseless argument"],
  [21, "image", "not a valid image, or one that cannot be read here"],
  [22, "key", "key or passphrase wrong, missing or unusable"],
  [23, "busy or exists", "busy, or exists already"],
  [
    24,
    "machine",
    "this machine or this user lacks something: a program, a library, a privilege, a kernel feature",
  ],
  [
    25,
    "input or output",
    "input or output: a file is missing or cannot be read or written, also inside the image",
  ],
  [26, "signatures", "refused for its signatures: none, by nobody who is known, or broken"],
  [130, "interrupted", "interrupted by SIGINT; everything is undone, or was never to be seen"],
  [
    143,
    "ended",
    "ended by SIGTERM; everything is undone; likewise 129 (SIGHUP), 138 (SIGUSR1), 140 (SIGUSR2)",
  ],
  [
    255,
    "not started",
    "the payload, an instance or a service could not be started, or there is no such instance or network",
  ],
]

/** What of a command says which of them it has. */
interface Ending {
  readonly passesOn?: true
  readonly notStarted?: readonly [word: string, meaning: string]
  readonly commands?: readonly Ending[]
}

const startsSomething = ({ passesOn, notStarted, commands = [] }: Ending): boolean =>
  passesOn === true || notStarted !== undefined || commands.some(startsSomething)

/** Those of a command, or of a group of them. */
export function exitMeaningsOf(row: Ending): typeof exitMeanings {
  return exitMeanings.flatMap((one) => {
    if (one[0] !== exitCodes.notStarted) return [one]
    if (row.notStarted !== undefined) return [[exitCodes.notStarted, ...row.notStarted] as const]
    return startsSomething(row) ? [one] : []
  })
}

const busy: ReadonlySet<ErrorCode> = new Set([
  "ERR_SIF_BUSY",
  "ERR_SIF_SIGNED",
  "ERR_KEYRING_BUSY",
  "ERR_BUILD_EXISTS",
  "ERR_LOOP_BUSY",
  "ERR_DM_EXISTS",
  "ERR_MOUNT_BUSY",
  "ERR_INSTANCE_EXISTS",
  "ERR_NETWORK_EXISTS",
  "ERR_NETWORK_BUSY",
])

/** The exit status for an error code. */
export function exitCodeFor(code: ErrorCode): number {
  if (code.startsWith("ERR_DEFINITION_") || code === "ERR_BUILD_AGENT") return exitCodes.usage
  if (code === "ERR_BUILD_REMOTE_REFUSED") return exitCodes.usage
  if (code === "ERR_BUILD_REMOTE_VERSION") return exitCodes.environment
  if (code === "ERR_BUILD_REMOTE_IMAGE") return exitCodes.invalidContainer
  if (busy.has(code)) return exitCodes.busyOrExists
  if (code.startsWith("ERR_KEY_") || code.endsWith("_PASSPHRASE") || code.endsWith("_RECIPIENTS"))
    return exitCodes.key
  if (code === "ERR_OCI_REFERENCE" || code === "ERR_BATCH_CONFIG") return exitCodes.usage
  if (code === "ERR_COMPOSE_FILE" || code === "ERR_COMPOSE_UNSUPPORTED") return exitCodes.usage
  if (code === "ERR_COMPOSE_SERVICE") return exitCodes.notStarted
  if (code === "ERR_BATCH_KEY") return exitCodes.key
  if (code === "ERR_BATCH_IMAGE") return exitCodes.invalidContainer
  if (code === "ERR_OCI_CREDENTIALS") return exitCodes.key
  if (/^ERR_OCI_(?:FORMAT|DIGEST|MAC|PARTIAL|LIMIT|WORK|UNSUPPORTED)$/.test(code))
    return exitCodes.invalidContainer
  if (/^ERR_(?:SIF|LUKS|GOCRYPTFS|TREE)_/.test(code))
    return code === "ERR_TREE_NOT_FOUND" ? exitCodes.inputOutput : exitCodes.invalidContainer
  if (code === "ERR_UNSIGNED" || /^ERR_(?:SIGNATURE|ECL)_/.test(code)) return exitCodes.signature
  if (code === "ERR_KEYRING_INSECURE" || code === "ERR_KEYRING_NO_KEY") return exitCodes.signature
  if (code.startsWith("ERR_ENV_")) return exitCodes.environment
  if (/^ERR_(?:RUN|INSTANCE|NETWORK)/.test(code)) return exitCodes.notStarted
  return exitCodes.inputOutput
}
