// What every command takes that writes an image, encrypted or not.
import { InvalidArgumentError, type Command } from "commander"
import {
  passphraseKdfLimits,
  type BuildResult,
  type EncryptedOutputOptions,
  type EncryptionFormat,
  type OutputOptions,
  type PassphraseKdf,
} from "../index.ts"
import { interruption } from "./interrupt.ts"
import { errors, print } from "./output.ts"
import { humanBytes, notice, printable, Progress } from "./terminal.ts"

export interface OutputFlags {
  readonly force?: true
  readonly json?: true
}

export interface EncryptionFlags extends OutputFlags {
  readonly publicMetadata?: true
  readonly anonymous?: true
  readonly format?: EncryptionFormat
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

function parseMebibytes(text: string): number {
  const most = passphraseKdfLimits.memory[1] / 1024
  const value = /^\d{1,7}$/.test(text) ? Number(text) : 0
  if (value < 1 || value > most) throw new InvalidArgumentError(`It is 1 to ${most} MiB.`)
  return value
}

function parseFormat(text: string): EncryptionFormat {
  if (text !== "luks" && text !== "gocryptfs") throw new InvalidArgumentError("It is luks or gocryptfs.")
  return text
}

/** Both options together. */
function passphraseKdf(flags: EncryptionFlags, command: Command): PassphraseKdf | undefined {
  if (flags.format === "gocryptfs" && (flags.pbkdf !== undefined || flags.pbkdfMemory !== undefined))
    command.error(
      "error: --pbkdf and --pbkdf-memory are LUKS2's; gocryptfs stretches a passphrase with scrypt",
    )
  if (flags.pbkdfMemory === undefined) return flags.pbkdf
  if (flags.pbkdf?.type === "pbkdf2")
    command.error("error: --pbkdf-memory is Argon2's; pbkdf2 takes no memory")
  return { ...(flags.pbkdf ?? { type: "argon2id" }), memory: flags.pbkdfMemory * 1024 }
}

/** Adds the options of {@link OutputFlags}. */
export function addOutputOptions(command: Command): Command {
  return command
    .option("-F, --force", "replace an existing output")
    .option("--json", "print the result as JSON")
}

/** Adds the options of {@link EncryptionFlags}. */
export function addEncryptionOptions(command: Command): Command {
  return addOutputOptions(command)
    .option("--format <format>", "encrypt as luks (default) or gocryptfs", parseFormat)
    .option(
      "--pbkdf <function[:iterations]>",
      "stretches a passphrase: argon2id (default) or pbkdf2",
      parseKdf,
    )
    .option("--pbkdf-memory <mib>", "memory that Argon2 takes, MiB (default 256)", parseMebibytes)
    .option(
      "--public-metadata",
      "keep an image's definition and labels readable beside the encrypted partition",
    )
    .option("--anonymous", "do not say in the image whose the public keys are")
}

/** The API's options for {@link EncryptionFlags}. */
export function encryptionOptions(
  flags: EncryptionFlags,
  command: Command,
): Omit<EncryptedOutputOptions, keyof OutputOptions> {
  const kdf = passphraseKdf(flags, command)
  return {
    ...(flags.publicMetadata === undefined ? {} : { publicMetadata: true }),
    ...(flags.anonymous === undefined ? {} : { anonymous: true }),
    ...(flags.format === undefined ? {} : { format: flags.format }),
    ...(kdf === undefined ? {} : { passphraseKdf: kdf }),
  }
}

/** Runs `make` with progress on the terminal, and tells what was made. */
export async function showMaking(
  label: string,
  output: string,
  flags: OutputFlags,
  make: (options: OutputOptions) => Promise<BuildResult>,
): Promise<void> {
  const progress = new Progress(label)
  const options: OutputOptions = {
    output,
    force: flags.force === true,
    signal: interruption,
    onProgress: (bytes) => {
      progress.update(bytes)
    },
    onNotice: (text) => {
      notice(printable(text))
    },
  }
  const result = await make(options).finally(() => {
    progress.done()
  })
  if (flags.json === true) await print(`${JSON.stringify(result)}\n`)
  else if (errors().isTTY)
    notice(
      `${printable(result.output)}: ${result.encrypted ? "encrypted" : "plain"}, ${humanBytes(result.size)} from ${humanBytes(result.inputBytes)} in ${(result.milliseconds / 1000).toFixed(1)} s`,
    )
}
