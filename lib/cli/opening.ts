// What every command takes that opens an image: credentials, and how far an image's header is trusted.
import { Option, type Command } from "commander"
import type { CredentialSource, OpenOptions, UnsignedPolicy } from "../index.ts"
import { addCredentialOptions, type CredentialFlags } from "./credentials.ts"
import { interruption } from "./interrupt.ts"
import { addSignerOptions, signerOptions, type SignerFlags } from "./signers.ts"
import { isTerminal, notice, printable } from "./terminal.ts"
import { count, MEBIBYTES, size } from "./values.ts"

export interface OpenFlags extends CredentialFlags, SignerFlags {
  readonly maxKdfMemory?: number
  readonly maxKdfIterations?: number
  readonly allowCipher?: string
  readonly unsigned?: UnsignedPolicy
}

/** MiB. */
const MAX_MEMORY = 4 * 1024 * 1024
const MAX_ITERATIONS = 0xffff_ffff
/** Passes over that memory that are still waited for. */
const PASSES = 8

/** Adds the options of {@link OpenFlags}, except the one for ciphers, which only the kernel engine has a use for. */
export function addOpenOptions(command: Command): Command {
  return addSignerOptions(addCredentialOptions(command))
    .option(
      "--max-kdf-memory <size>",
      "memory that the image's key derivation may take, in MiB or with a unit (default 1024)",
      size(MEBIBYTES, 1, MAX_MEMORY),
    )
    .option(
      "--max-kdf-iterations <n>",
      "iterations of PBKDF2 that it may take (default 8000000)",
      count(1, MAX_ITERATIONS),
    )
    .addOption(
      new Option("--unsigned <what>", "an encrypted image without a signature: allow it, warn or refuse it")
        .choices(["allow", "warn", "error"] satisfies UnsignedPolicy[])
        .env("SIFCRYPT_UNSIGNED"),
    )
}

const told = new Set<string>()

/** An image that is opened again, with a passphrase that was asked for, is spoken of once. */
function noticeOnce(text: string): void {
  if (told.has(text)) return
  told.add(text)
  notice(printable(text))
}

/** The API's options for these flags. */
export function openOptions(flags: OpenFlags, credentials: readonly CredentialSource[]): OpenOptions {
  const { maxKdfMemory, maxKdfIterations, allowCipher } = flags
  // For people, not for logs: a script that cares says so.
  const { unsigned = isTerminal(2) ? "warn" : "allow" } = flags
  const verify = signerOptions(flags)
  return {
    unlock: credentials,
    unsigned,
    ...(verify === undefined ? {} : { verify }),
    onNotice: noticeOnce,
    signal: interruption,
    allowCipher,
    kdfLimits: {
      ...(maxKdfMemory === undefined
        ? {}
        : { memory: Math.floor(maxKdfMemory / 1024), work: Math.floor((maxKdfMemory * PASSES) / 1024) }),
      iterations: maxKdfIterations,
    },
  }
}
