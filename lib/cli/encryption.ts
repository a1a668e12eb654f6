// What every command takes that writes an image, encrypted or not.
import { InvalidArgumentError, type Command } from "commander"
import type { BuildResult, EncryptedOutputOptions, EncryptionFormat, OutputOptions } from "../index.ts"
import { given, under, type OptionRows } from "./command.ts"
import { interruption } from "./interrupt.ts"
import { kdfRows, passphraseKdf, type KdfFlags } from "./kdf.ts"
import { errors, jsonRow, printJson } from "./output.ts"
import { progressRow, withProgress, type ProgressKind } from "./progress.ts"
import { humanBytes, inform, notice, printable } from "./terminal.ts"
import { flag } from "./values.ts"

export interface OutputFlags {
  readonly force?: true
  readonly json?: true
  readonly progress?: ProgressKind
}

type FormatFlags = Pick<EncryptedOutputOptions, "format" | "publicMetadata" | "anonymous">
export type EncryptionFlags = OutputFlags & KdfFlags & FormatFlags

function parseFormat(text: string): EncryptionFormat {
  if (text !== "luks" && text !== "gocryptfs") throw new InvalidArgumentError("It is luks or gocryptfs.")
  return text
}

export const outputRows: OptionRows<OutputFlags> = {
  force: ["-F, --force", "replace an existing output", flag],
  json: jsonRow,
  progress: progressRow,
}

const formatRows: OptionRows<FormatFlags> = {
  format: [
    "--format <format>",
    "encrypt as luks (default) or gocryptfs",
    parseFormat,
    { suggested: ["luks", "gocryptfs"] },
  ],
  publicMetadata: [
    "--public-metadata",
    "keep an image's definition and labels readable beside the encrypted partition",
    flag,
  ],
  anonymous: ["--anonymous", "do not say in the image whose the public keys are", flag],
}

export const encryptionRows: OptionRows<EncryptionFlags> = {
  ...outputRows,
  ...under<KdfFlags & FormatFlags>("Encryption", { ...kdfRows, ...formatRows }),
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
  return { ...given(formatRows, flags), passphraseKdf: passphraseKdf(flags, command) }
}

/** Runs `make` with progress on the terminal, and tells what was made. */
export async function showMaking(
  label: string,
  output: string,
  flags: OutputFlags,
  make: (options: OutputOptions) => Promise<BuildResult>,
): Promise<void> {
  const result = await withProgress(label, (onProgress) =>
    make({ output, force: flags.force === true, signal: interruption, onProgress, onNotice: notice }),
  )
  if (flags.json === true) await printJson(result)
  else if (errors().isTTY)
    inform(
      `${printable(result.output)}: ${result.encrypted ? "encrypted" : "plain"}, ${humanBytes(result.size)} from ${humanBytes(result.inputBytes)} in ${(result.milliseconds / 1000).toFixed(1)} s`,
    )
}
