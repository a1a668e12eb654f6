// What every command takes that writes an image, encrypted or not.
import { InvalidArgumentError, type Command } from "commander"
import {
  type BuildResult,
  type EncryptedOutputOptions,
  type EncryptionFormat,
  type OutputOptions,
} from "../index.ts"
import { interruption } from "./interrupt.ts"
import { addKdfOptions, passphraseKdf, type KdfFlags } from "./kdf.ts"
import { errors, print } from "./output.ts"
import { humanBytes, notice, printable, Progress } from "./terminal.ts"

export interface OutputFlags {
  readonly force?: true
  readonly json?: true
}

export interface EncryptionFlags extends OutputFlags, KdfFlags {
  readonly publicMetadata?: true
  readonly anonymous?: true
  readonly format?: EncryptionFormat
}

function parseFormat(text: string): EncryptionFormat {
  if (text !== "luks" && text !== "gocryptfs") throw new InvalidArgumentError("It is luks or gocryptfs.")
  return text
}

/** Adds the options of {@link OutputFlags}. */
export function addOutputOptions(command: Command): Command {
  return command
    .option("-F, --force", "replace an existing output")
    .option("--json", "print the result as JSON")
}

/** Adds the options of {@link EncryptionFlags}. */
export function addEncryptionOptions(command: Command): Command {
  return addKdfOptions(addOutputOptions(command))
    .option("--format <format>", "encrypt as luks (default) or gocryptfs", parseFormat)
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
  if (flags.format === "gocryptfs" && (flags.pbkdf !== undefined || flags.pbkdfMemory !== undefined))
    command.error(
      "error: --pbkdf and --pbkdf-memory are LUKS2's; gocryptfs stretches a passphrase with scrypt",
    )
  const kdf = passphraseKdf(flags, command)
  return {
    publicMetadata: flags.publicMetadata,
    anonymous: flags.anonymous,
    format: flags.format,
    passphraseKdf: kdf,
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
