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
    "this machine or this user lacks something: a program, a library, a privilege, a kernel feature, or is at a limit",
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

/** The first that fits counts; of what fits none it is input or output. */
const rules: readonly (readonly [status: number, codes: RegExp])[] = [
  [exitCodes.notStarted, /^ERR_RUN/],
  [exitCodes.usage, /^ERR_(?:DEFINITION_|(?:BUILD_AGENT|BUILD_REMOTE_REFUSED|OCI_REFERENCE|BATCH_CONFIG)$)/],
  [exitCodes.usage, /^ERR_COMPOSE_(?:FILE|UNSUPPORTED)$/],
  [exitCodes.environment, /^ERR_(?:ENV_|BUILD_REMOTE_VERSION$)/],
  [exitCodes.busyOrExists, /_(?:BUSY|EXISTS)$|^ERR_SIF_SIGNED$/],
  [exitCodes.key, /^ERR_(?:KEY_|(?:BATCH_KEY|OCI_CREDENTIALS)$)|_(?:PASSPHRASE|RECIPIENTS)$/],
  [exitCodes.inputOutput, /^ERR_TREE_NOT_FOUND$/],
  [exitCodes.invalidContainer, /^ERR_(?:(?:SIF|LUKS|GOCRYPTFS|TREE)_|(?:BUILD_REMOTE|BATCH)_IMAGE$)/],
  [exitCodes.invalidContainer, /^ERR_OCI_(?:FORMAT|DIGEST|MAC|PARTIAL|LIMIT|WORK|UNSUPPORTED)$/],
  [exitCodes.signature, /^ERR_(?:SIGNATURE_|ECL_|(?:UNSIGNED|KEYRING_INSECURE|KEYRING_NO_KEY)$)/],
  [exitCodes.notStarted, /^ERR_(?:INSTANCE|NETWORK|COMPOSE_SERVICE$)/],
]

/** The exit status for an error code. */
export function exitCodeFor(code: ErrorCode): number {
  return rules.find(([, codes]) => codes.test(code))?.[0] ?? exitCodes.inputOutput
}

/** The same where a limit of this process or machine is why: what could not be read or written then need not be at fault. */
export function limitStatus(code: ErrorCode): number {
  const status = exitCodeFor(code)
  return status === exitCodes.notStarted ? status : exitCodes.environment
}
