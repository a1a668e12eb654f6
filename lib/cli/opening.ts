// What every command takes that opens an image: credentials, and how far an image's header is trusted.
import { InvalidArgumentError, Option, type Command } from "commander"
import type { CredentialSource, OpenOptions, UnsignedPolicy } from "../index.ts"
import { addCredentialOptions, type CredentialFlags } from "./credentials.ts"
import { interruption } from "./interrupt.ts"
import { addSignerOptions, signerOptions, type SignerFlags } from "./signers.ts"
import { isTerminal, notice, printable } from "./terminal.ts"

export interface OpenFlags extends CredentialFlags, SignerFlags {
  /** MiB. */
  readonly maxKdfMemory?: number
  readonly maxKdfIterations?: number
  readonly allowCipher?: string
  readonly unsigned?: UnsignedPolicy
}

const MAX_MEMORY = 4 * 1024 * 1024
const MAX_ITERATIONS = 0xffff_ffff
/** Passes over that memory that are still waited for. */
const PASSES = 8

function parseMebibytes(text: string): number {
  const value = /^\d{1,7}$/.test(text) ? Number(text) : 0
  if (value < 1 || value > MAX_MEMORY) throw new InvalidArgumentError(`It is 1 to ${MAX_MEMORY} MiB.`)
  return value
}

function parseIterations(text: string): number {
  const value = /^\d{1,10}$/.test(text) ? Number(text) : 0
  if (value < 1 || value > MAX_ITERATIONS) throw new InvalidArgumentError(`It is 1 to ${MAX_ITERATIONS}.`)
  return value
}

/** Adds the options of {@link OpenFlags}, except the one for ciphers, which only the kernel engine has a use for. */
export function addOpenOptions(command: Command): Command {
  return addSignerOptions(addCredentialOptions(command))
    .option(
      "--max-kdf-memory <mib>",
      "memory that the image's key derivation may take, MiB (default 1024)",
      parseMebibytes,
    )
    .option(
      "--max-kdf-iterations <n>",
      "iterations of PBKDF2 that it may take (default 8000000)",
      parseIterations,
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
    ...(allowCipher === undefined ? {} : { allowCipher }),
    kdfLimits: {
      ...(maxKdfMemory === undefined
        ? {}
        : { memory: maxKdfMemory * 1024, work: maxKdfMemory * 1024 * PASSES }),
      ...(maxKdfIterations === undefined ? {} : { iterations: maxKdfIterations }),
    },
  }
}
