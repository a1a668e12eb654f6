// What every command takes that opens an image: credentials, and how far an image's header is trusted.
import * as api from "../index.ts"
import { under, type OptionRows } from "./command.ts"
import { credentialRows, type CredentialFlags, type LayerKeyWord } from "./credentials.ts"
import { interruption } from "./interrupt.ts"
import { layerKeyRow } from "./layer-keys.ts"
import { registryHeading, registryRows, withRegistryOptions, type RegistryFlags } from "./registry.ts"
import { signerOptions, signerRows, type SignerFlags } from "./signers.ts"
import { isTerminal, notice } from "./terminal.ts"
import { count, flag, MEBIBYTES, size, text } from "./values.ts"
import { truthVariable } from "./variables.ts"

interface CostFlags {
  readonly maxKdfMemory?: number
  readonly maxKdfIterations?: number
}

export interface PlainFlags {
  readonly requireEncrypted?: true
}

export interface OpenFlags extends CredentialFlags, SignerFlags, CostFlags {
  readonly unsigned?: api.UnsignedPolicy
}

/** MiB. */
export const MAX_KDF_MEMORY: number = 4 * 1024 * 1024
export const MAX_KDF_ITERATIONS = 0xffff_ffff

/** What deriving a key may cost. */
export const costRows: OptionRows<CostFlags> = under("How far an image is trusted", {
  maxKdfMemory: [
    "--max-kdf-memory <size>",
    "memory that the image's key derivation may take, in MiB or with a unit (default 1024)",
    size(MEBIBYTES, 1, MAX_KDF_MEMORY),
  ],
  maxKdfIterations: [
    "--max-kdf-iterations <n>",
    "iterations of PBKDF2 that it may take (default 512000000)",
    count(1, MAX_KDF_ITERATIONS),
  ],
})

export const plainRows: OptionRows<PlainFlags> = {
  requireEncrypted: [
    "--require-encrypted",
    "refuse an image that is not encrypted, all of it",
    flag,
    { heading: "How far an image is trusted" },
  ],
}

/** The API's option for {@link PlainFlags}. */
export function plainOptions({ requireEncrypted }: PlainFlags): Pick<api.OpenOptions, "requireEncrypted"> {
  return { requireEncrypted: requireEncrypted ?? truthVariable("REQUIRE_ENCRYPTED") }
}

export const openRows: OptionRows<OpenFlags> = {
  ...credentialRows,
  ...signerRows,
  ...costRows,
  unsigned: [
    "--unsigned <what>",
    "an encrypted image without a signature: allow it, warn or refuse it",
    ["allow", "warn", "error"],
    { variable: "SIFCRYPT_UNSIGNED", heading: "How far an image is trusted" },
  ],
}

/** Of an image by its name, too. */
export interface ImageFlags extends OpenFlags, PlainFlags, RegistryFlags {
  readonly tmpFolder?: string
  readonly layerKeys?: readonly LayerKeyWord[]
}

export const imageRows: OptionRows<ImageFlags> = {
  ...openRows,
  ...plainRows,
  ...registryRows,
  layerKeys: under(registryHeading, { layerKeys: layerKeyRow("--key <key>") }).layerKeys,
  tmpFolder: [
    "--tmpdir <dir>",
    "for what of an image is not kept in the cache (default: the cache)",
    text,
    { heading: registryHeading },
  ],
}

/** Only the kernel engine has a use for it. */
export const cipherRows: OptionRows<Pick<api.OpenOptions, "allowCipher">> = {
  allowCipher: [
    "--allow-cipher <name>",
    "let the kernel engine use this cipher, e.g. serpent-xts-plain64",
    text,
  ],
}

const told = new Set<string>()

/** An image that is opened again, with a passphrase that was asked for, is spoken of once. */
function noticeOnce(text: string): void {
  if (told.has(text)) return
  told.add(text)
  notice(text)
}

let waiting = false

/** For whoever sits there and waits. */
function noticeWait(milliseconds: api.Milliseconds): void {
  if (waiting) return
  waiting = true
  const seconds = Math.max(1, Math.round(milliseconds / 1000))
  const time = seconds < 100 ? `${seconds} s` : `${Math.round(seconds / 60)} min`
  notice(`deriving the key may take about ${time} on this machine`)
}

/** The API's options for {@link CostFlags}. */
export function costOptions({
  maxKdfMemory,
  maxKdfIterations,
}: CostFlags): Pick<api.OpenOptions, "kdfLimits" | "onDerivation"> {
  return {
    kdfLimits: {
      ...(maxKdfMemory === undefined ? {} : { memory: Math.floor(maxKdfMemory / 1024) }),
      iterations: maxKdfIterations,
    },
    // Measuring takes time itself.
    onDerivation: isTerminal(2) ? noticeWait : undefined,
  }
}

/** The API's options for these flags. */
export function openOptions(
  flags: OpenFlags & PlainFlags & Pick<api.OpenOptions, "allowCipher">,
  credentials: readonly api.CredentialSource[],
): api.OpenOptions {
  // For people, not for logs: a script that cares says so.
  const { unsigned = isTerminal(2) ? "warn" : "allow" } = flags
  return {
    unlock: credentials,
    unsigned,
    ...signerOptions(flags),
    ...plainOptions(flags),
    onNotice: noticeOnce,
    ...costOptions(flags),
    signal: interruption,
    allowCipher: flags.allowCipher,
  }
}

/** Runs `use` with how an image by its name is found; a path needs nothing of it. */
export async function withNameOptions<T>(
  image: string,
  flags: ImageFlags,
  use: (options: api.NameOptions) => Promise<T>,
): Promise<T> {
  // Nobody is asked for a password that no registry wants.
  const asked = api.isImageName(image) ? flags : { ...flags, dockerLogin: undefined }
  return await withRegistryOptions(asked, image, flags.tmpFolder, (oci) => use({ oci }))
}

/** Opens an image, whatever names it. */
export async function openImage(
  image: string,
  flags: ImageFlags & Pick<api.OpenOptions, "allowCipher">,
  credentials: readonly api.CredentialSource[],
  options: Pick<api.OpenOptions, "purpose"> = {},
): Promise<api.Image> {
  return await withNameOptions(image, flags, (named) =>
    api.open(image, { ...openOptions(flags, credentials), ...options, ...named }),
  )
}
