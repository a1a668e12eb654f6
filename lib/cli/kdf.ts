// How a new passphrase is stretched, as options.
import { InvalidArgumentError, type Command } from "commander"
import { passphraseKdfLimits, type PassphraseKdf } from "../index.ts"
import type { OptionRows } from "./command.ts"
import { MEBIBYTES, size } from "./values.ts"

export interface KdfFlags {
  readonly pbkdf?: PassphraseKdf
  readonly pbkdfMemory?: number
}

function parseKdf(text: string): PassphraseKdf {
  const match = /^(argon2id|pbkdf2)(?::(\d{1,10}))?$/.exec(text)
  if (match === null)
    throw new InvalidArgumentError("It is argon2id or pbkdf2, with :ITERATIONS if you like.")
  const type = match[1] as PassphraseKdf["type"]
  if (match[2] === undefined) return { type }
  const iterations = Number(match[2])
  const [least, most] = passphraseKdfLimits[type]
  if (iterations < least || iterations > most)
    throw new InvalidArgumentError(`The iterations of ${type} are ${least} to ${most}.`)
  return { type, iterations }
}

const MAX_MEMORY = (passphraseKdfLimits.memory[1] * 1024) / MEBIBYTES.worth

export const kdfRows: OptionRows<KdfFlags> = {
  pbkdf: [
    "--pbkdf <function[:iterations]>",
    "stretches a passphrase: argon2id (default) or pbkdf2",
    parseKdf,
    { suggested: ["argon2id", "pbkdf2"] },
  ],
  pbkdfMemory: [
    "--pbkdf-memory <size>",
    "memory that Argon2 takes, in MiB or with a unit (default 256)",
    size(MEBIBYTES, 1, MAX_MEMORY),
  ],
}

/** Both options together. */
export function passphraseKdf(flags: KdfFlags, command: Command): PassphraseKdf | undefined {
  if (flags.pbkdfMemory === undefined) return flags.pbkdf
  if (flags.pbkdf?.type === "pbkdf2")
    command.error("error: --pbkdf-memory is Argon2's; pbkdf2 takes no memory")
  return { ...(flags.pbkdf ?? { type: "argon2id" }), memory: Math.floor(flags.pbkdfMemory / 1024) }
}
