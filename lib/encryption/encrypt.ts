// Who may open a new image, and what makes its encrypted partition.
import * as is from "../arguments.ts"
import type { KeyObject } from "node:crypto"
import {
  credentialVariable,
  resolveRecipients,
  type Credential,
  type Credentials,
  type CredentialSource,
} from "./credentials.ts"
import { DEFAULT_KDF_LIMITS } from "../device/luks-header.ts"
import { FIPS_PASSPHRASE_KDF, PASSPHRASE_KDF } from "../device/luks.ts"
import { BuildError, KeyError } from "../errors.ts"
import { encodeCryptoMessage } from "../key/crypto-message.ts"
import { fingerprint } from "../key/fingerprint.ts"
import { wrapSecret } from "../key/rsa-oaep.ts"
import type { NativeKdf } from "../native/binding.ts"
import { cryptoMessageExtra, DEFAULT_SLOTS } from "../sif/format.ts"
import type { CryptoMessage, EncryptionFormat, MessageSecret, NewPartition } from "./encryption-format.ts"
import { formats } from "./partition.ts"

const DEFAULT_FORMAT: EncryptionFormat = "luks"

/** How a passphrase is stretched; an RSA key's secret is random and needs none. */
export interface PassphraseKdf {
  /** `pbkdf2` where only FIPS-approved functions may be used. */
  readonly type: "argon2id" | "pbkdf2"
  /** Of Argon2, KiB; default 256 MiB, the same wherever an image is built. */
  readonly memory?: number
  /** Passes of Argon2 (default 4) or iterations of PBKDF2 (default 2,000,000). */
  readonly iterations?: number
}

export const encryptionFormat: is.Check<EncryptionFormat> = is.oneOf(
  ...(Object.keys(formats) as EncryptionFormat[]),
)

/** {@link passphraseKdfFor} has their ranges. */
const anyNumber = is.number(-Infinity, Infinity)
export const passphraseKdf: is.Check<PassphraseKdf> = is.shape<PassphraseKdf>({
  type: is.required(is.oneOf("argon2id", "pbkdf2")),
  memory: anyNumber,
  iterations: anyNumber,
})

/** The part of a build's options that says who may open the image. */
export interface RecipientOptions {
  readonly recipients?: Credentials | undefined
  readonly encrypt?: boolean | undefined
  /** What opens a source: a variable there that nobody asked to encrypt with is told of. */
  readonly unlock?: readonly CredentialSource[] | undefined
  /** Asks for encryption as `encrypt` does. */
  readonly format?: EncryptionFormat | undefined
  readonly onNotice?: ((text: string) => void) | undefined
  readonly signal?: AbortSignal | undefined
}

/**
 * Whoever shall be able to open a new image; none: it stays plain.
 *
 * @throws KeyError, before anything is built.
 */
export async function recipientsOf(options: RecipientOptions): Promise<Credential[]> {
  const { recipients: wanted, encrypt = false, format, onNotice = () => undefined, signal } = options
  if (!encrypt && format === undefined && wanted === undefined) {
    const variable = credentialVariable(options.unlock ?? [])
    if (variable !== undefined)
      onNotice(`${variable} is set, but encryption was not asked for: the image will be plain`)
    return []
  }
  const recipients = wanted === undefined ? [] : await resolveRecipients(wanted, onNotice, signal)
  if (recipients.length === 0)
    throw new KeyError("ERR_KEY_MISSING", "an encrypted image was asked for and no key was given")
  const messages = recipients.filter(({ kind }) => kind === "rsa").length
  if (messages >= DEFAULT_SLOTS)
    throw new BuildError(
      "ERR_BUILD_OUTPUT",
      `an image holds ${DEFAULT_SLOTS - 1} RSA recipients, not ${messages}`,
    )
  checkFormat(recipients, format)
  return recipients
}

/**
 * Can these open an image of that format?
 *
 * @throws GocryptfsError `ERR_GOCRYPTFS_RECIPIENTS`.
 */
export function checkFormat(
  recipients: readonly Credential[],
  format: EncryptionFormat = DEFAULT_FORMAT,
): void {
  formats[format].checkRecipients?.(recipients)
}

/** Least and most of what {@link PassphraseKdf} takes: libcryptsetup refuses less, and a small node would wait long for more. */
export const passphraseKdfLimits: Readonly<
  Record<"memory" | "argon2id" | "pbkdf2", readonly [number, number]>
> = {
  memory: [32, DEFAULT_KDF_LIMITS.memory],
  argon2id: [4, 1000],
  pbkdf2: [1000, 3_500_000],
}

/** KiB times passes: 4 over 1 GiB. */
const MAX_PASSPHRASE_WORK = 4 * 1024 * 1024

/** The cost of stretching a passphrase, checked. */
export function passphraseKdfFor(wanted: PassphraseKdf = { type: "argon2id" }): NativeKdf {
  const preset = wanted.type === "pbkdf2" ? FIPS_PASSPHRASE_KDF : PASSPHRASE_KDF
  const check = (what: string, value: number, [least, most]: readonly [number, number]): number => {
    if (!Number.isInteger(value) || value < least || value > most)
      throw new RangeError(`the ${what} of ${wanted.type} is ${least} to ${most}, not ${value}`)
    return value
  }
  if (wanted.type === "pbkdf2" && wanted.memory !== undefined) throw new RangeError("pbkdf2 takes no memory")
  const kdf = {
    ...preset,
    iterations: check(
      "number of iterations",
      wanted.iterations ?? preset.iterations,
      passphraseKdfLimits[wanted.type],
    ),
    memory:
      wanted.memory === undefined
        ? preset.memory
        : check("memory in KiB", wanted.memory, passphraseKdfLimits.memory),
  }
  if (kdf.memory * kdf.iterations > MAX_PASSPHRASE_WORK)
    throw new RangeError(
      `memory times passes of argon2id is at most ${MAX_PASSPHRASE_WORK} KiB, not ${kdf.memory * kdf.iterations}`,
    )
  return kdf
}

/** Can a passphrase be stretched so in that format? */
export function checkStretching(options: {
  readonly passphraseKdf?: PassphraseKdf
  readonly format?: EncryptionFormat
}): void {
  passphraseKdfFor(options.passphraseKdf)
  const { name, ownKdf } = formats[options.format ?? DEFAULT_FORMAT]
  if (ownKdf !== undefined && options.passphraseKdf !== undefined)
    throw new RangeError(`${name} stretches a passphrase with ${ownKdf}: passphraseKdf is LUKS2's`)
}

/** Wraps a secret for a recipient. */
export function cryptoMessage(
  key: KeyObject,
  { secret, mark }: MessageSecret,
  anonymous: boolean,
): CryptoMessage {
  return {
    name: anonymous ? "" : fingerprint(key),
    data: encodeCryptoMessage(wrapSecret(key, secret), anonymous ? undefined : key),
    extra: cryptoMessageExtra(mark),
  }
}

/** What makes an encrypted partition. Disposing forgets the data key. */
export interface Encryption extends NewPartition, Disposable {
  /** Of the partition. */
  readonly fileSystem: number
}

/** Starts loading what {@link prepareEncryption} needs, while its caller does something else. */
export function loadEncryption(format: EncryptionFormat = DEFAULT_FORMAT): void {
  formats[format].prepare?.()
}

/**
 * Draws a new data key and secret for these recipients.
 *
 * @param anonymous - Say nowhere whom the RSA recipients' messages are for.
 * @param format - That can have these recipients, as {@link recipientsOf} has checked.
 * @throws LuksError `ERR_LUKS_FORMAT`; EnvironmentError; RangeError for costs that cannot be had.
 */
export async function prepareEncryption(
  recipients: readonly Credential[],
  passphraseKdf: PassphraseKdf | undefined,
  anonymous: boolean = false,
  format: EncryptionFormat = DEFAULT_FORMAT,
): Promise<Encryption> {
  const keys = recipients.flatMap((one) => (one.kind === "rsa" ? [one.key] : []))
  const passphrases = recipients.flatMap((one) => (one.kind === "passphrase" ? [one.passphrase.bytes] : []))
  const made = await formats[format].create(
    { rsa: keys.length > 0, passphrases, kdf: passphraseKdfFor(passphraseKdf) },
    (from) => keys.map((key) => cryptoMessage(key, from, anonymous)),
  )
  return {
    ...made,
    fileSystem: formats[format].fileSystem,
    [Symbol.dispose](): void {
      made.cipher.key.fill(0)
    },
  }
}
