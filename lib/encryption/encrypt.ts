// Who may open a new image, and what makes its encrypted partition.
import { number, oneOf, required, shape, type Check } from "../arguments.ts"
import { randomFillSync, type KeyObject } from "node:crypto"
import {
  credentialVariable,
  resolveRecipients,
  type Credential,
  type Credentials,
  type CredentialSource,
} from "./credentials.ts"
import {
  makeGocryptfs,
  MAX_PASSWORD_SIZE,
  PASSPHRASE_SCRYPT,
  RANDOM_SECRET_SCRYPT,
} from "../device/gocryptfs.ts"
import { decodeLuksHeader, DEFAULT_KDF_LIMITS, UNLIMITED } from "../device/luks-header.ts"
import { FIPS_PASSPHRASE_KDF, formatLuks, PASSPHRASE_KDF, RANDOM_SECRET_KDF } from "../device/luks.ts"
import { BuildError, GocryptfsError, KeyError } from "../errors.ts"
import { encodeCryptoMessage } from "../key/crypto-message.ts"
import { fingerprint } from "../key/fingerprint.ts"
import { wrapSecret } from "../key/rsa-oaep.ts"
import { Secret } from "../key/secret.ts"
import type { NativeBuildCipher, NativeKdf } from "../native/binding.ts"
import { cryptoMessageExtra, DEFAULT_SLOTS, FileSystem } from "../sif/format.ts"
import type { Bytes } from "../units.ts"

const RSA_SECRET_SIZE: Bytes = 64 // what the peers use as LUKS key file
/** Random bytes behind the hexadecimal digits that the peers use as gocryptfs password. */
const RSA_PASSWORD_ENTROPY: Bytes = 16
const LINE_END = 0x0a

/** How an image is encrypted: LUKS2 around its squashfs, or gocryptfs as Apptainer's ordinary users have it. */
export type EncryptionFormat = "luks" | "gocryptfs"

/** How a passphrase is stretched; an RSA key's secret is random and needs none. */
export interface PassphraseKdf {
  /** `pbkdf2` where only FIPS-approved functions may be used. */
  readonly type: "argon2id" | "pbkdf2"
  /** Of Argon2, KiB; default 256 MiB, the same wherever an image is built. */
  readonly memory?: number
  /** Passes of Argon2 (default 4) or iterations of PBKDF2 (default 2,000,000). */
  readonly iterations?: number
}

export const encryptionFormat: Check<EncryptionFormat> = oneOf("luks", "gocryptfs")

/** {@link passphraseKdfFor} has their ranges. */
const anyNumber = number(-Infinity, Infinity)
export const passphraseKdf: Check<PassphraseKdf> = shape<PassphraseKdf>({
  type: required(oneOf("argon2id", "pbkdf2")),
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
 * gocryptfs has one password: that of all RSA recipients, or a passphrase.
 *
 * @throws GocryptfsError `ERR_GOCRYPTFS_RECIPIENTS`.
 */
export function checkFormat(recipients: readonly Credential[], format: EncryptionFormat | undefined): void {
  if (format !== "gocryptfs") return
  const passphrases = recipients.flatMap((one) => (one.kind === "passphrase" ? [one] : []))
  const refuse = (what: string): never => {
    throw new GocryptfsError("ERR_GOCRYPTFS_RECIPIENTS", what)
  }
  if (passphrases.length > 1) refuse("gocryptfs has one password: two passphrases cannot open one image")
  if (passphrases.length > 0 && passphrases.length < recipients.length)
    refuse("gocryptfs has one password: RSA keys and a passphrase cannot open one image")
  for (const { passphrase, origin } of passphrases) {
    if (passphrase.bytes.includes(LINE_END))
      refuse(`${origin}: gocryptfs takes a passphrase up to its first line end, and this one has one inside`)
    if (passphrase.length > MAX_PASSWORD_SIZE)
      refuse(`${origin}: gocryptfs takes at most ${MAX_PASSWORD_SIZE} bytes of passphrase`)
  }
}

/**
 * Least and most of what {@link PassphraseKdf} takes: libcryptsetup refuses less, and more is refused when the image is
 * opened, as two passphrases together must stay below the limits that hold there.
 */
export const passphraseKdfLimits: Readonly<
  Record<"memory" | "argon2id" | "pbkdf2", readonly [number, number]>
> = {
  memory: [32, DEFAULT_KDF_LIMITS.memory],
  argon2id: [4, 1000],
  pbkdf2: [1000, 3_500_000],
}

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
  const most = DEFAULT_KDF_LIMITS.work / 2
  if (kdf.memory * kdf.iterations > most)
    throw new RangeError(
      `memory times passes of argon2id is at most ${most} KiB, not ${kdf.memory * kdf.iterations}`,
    )
  return kdf
}

/** Can a passphrase be stretched so in that format? */
export function checkStretching(options: {
  readonly passphraseKdf?: PassphraseKdf
  readonly format?: EncryptionFormat
}): void {
  passphraseKdfFor(options.passphraseKdf)
  if (options.format === "gocryptfs" && options.passphraseKdf !== undefined)
    throw new RangeError("gocryptfs stretches a passphrase with scrypt: passphraseKdf is LUKS2's")
}

/** What makes an encrypted partition: what stands before the data, how the data is encrypted, and who may open it. */
export interface Encryption extends Disposable {
  /** Of the partition. */
  readonly fileSystem: number
  /** Stands before the encrypted data; mostly zeros, to be written with holes. */
  readonly header: Buffer
  readonly cipher: NativeBuildCipher
  /** One for each RSA recipient, in their order. */
  readonly messages: readonly CryptoMessage[]
}

/** A crypto message object. */
export interface CryptoMessage {
  /** The recipient's fingerprint; empty for an anonymous one. */
  readonly name: string
  readonly data: Buffer
  readonly extra: Buffer
}

/** What crypto messages are made of, besides their recipients. */
export interface MessageSecret {
  readonly secret: Uint8Array
  /** Names the keyslot that the secret opens. */
  readonly mark: string
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

/**
 * Draws a new volume key and secret for these recipients. Disposing forgets the key.
 *
 * @param anonymous - Say nowhere whom the RSA recipients' messages are for.
 * @param format - For gocryptfs the recipients are RSA keys or one passphrase, as {@link recipientsOf} has checked.
 * @throws LuksError `ERR_LUKS_FORMAT`; EnvironmentError; RangeError for costs that cannot be had.
 */
export async function prepareEncryption(
  recipients: readonly Credential[],
  passphraseKdf: PassphraseKdf | undefined,
  anonymous: boolean = false,
  format: EncryptionFormat = "luks",
): Promise<Encryption> {
  return format === "gocryptfs"
    ? await gocryptfsEncryption(recipients, anonymous)
    : await luksEncryption(recipients, passphraseKdf, anonymous)
}

async function luksEncryption(
  recipients: readonly Credential[],
  passphraseKdf: PassphraseKdf | undefined,
  anonymous: boolean,
): Promise<Encryption> {
  const rsa = recipients.flatMap((recipient) => (recipient.kind === "rsa" ? [recipient.key] : []))
  const passphrases = recipients.flatMap((recipient) =>
    recipient.kind === "passphrase" ? [recipient.passphrase.bytes] : [],
  )
  const kdf = passphraseKdfFor(passphraseKdf)
  using secret = new Secret(Buffer.alloc(RSA_SECRET_SIZE))
  randomFillSync(secret.bytes)
  const keyslots = [
    ...(rsa.length === 0 ? [] : [{ secret: secret.bytes, kdf: RANDOM_SECRET_KDF }]),
    ...passphrases.map((passphrase) => ({ secret: passphrase, kdf })),
  ]
  const { header, volumeKey } = await formatLuks({ keyslots })
  const [first] = decodeLuksHeader(header, 2 * header.length, { limits: UNLIMITED }).keyslots
  const from = { secret: secret.bytes, mark: first?.mark ?? "" }
  const messages = rsa.map((key) => cryptoMessage(key, from, anonymous))
  return {
    fileSystem: FileSystem.encryptedSquashfs,
    header,
    cipher: { type: "xts", volumeKey, sectorSize: 4096, ivTweak: 0 },
    messages,
    [Symbol.dispose](): void {
      volumeKey.fill(0)
    },
  }
}

/** 32 lower-case hexadecimal digits: what the peers wrap for gocryptfs. Never a string, which could not be wiped. */
export function randomGocryptfsPassword(): Secret {
  using entropy = new Secret(new Uint8Array(RSA_PASSWORD_ENTROPY))
  randomFillSync(entropy.bytes)
  const digits = Buffer.from("0123456789abcdef", "latin1")
  const password = new Secret(new Uint8Array(2 * RSA_PASSWORD_ENTROPY))
  for (const [i, byte] of entropy.bytes.entries()) {
    password.bytes[2 * i] = digits[byte >> 4] ?? 0
    password.bytes[2 * i + 1] = digits[byte & 15] ?? 0
  }
  return password
}

/** Recipients were checked: RSA keys, or one passphrase. */
async function gocryptfsEncryption(
  recipients: readonly Credential[],
  anonymous: boolean,
): Promise<Encryption> {
  const rsa = recipients.flatMap((recipient) => (recipient.kind === "rsa" ? [recipient.key] : []))
  const passphrase = recipients.find((recipient) => recipient.kind === "passphrase")?.passphrase
  using random = passphrase === undefined ? randomGocryptfsPassword() : undefined
  const password = (passphrase ?? random)?.bytes
  if (password === undefined) throw new TypeError("an encrypted image has a recipient")
  const cost = passphrase === undefined ? RANDOM_SECRET_SCRYPT : PASSPHRASE_SCRYPT
  const { config, mark, contentKey, file } = await makeGocryptfs(password, cost)
  const from = { secret: password, mark }
  return {
    fileSystem: FileSystem.gocryptfsSquashfs,
    header: Buffer.alloc(0),
    cipher: { type: "gocryptfs", contentKey, file, config },
    messages: rsa.map((key) => cryptoMessage(key, from, anonymous)),
    [Symbol.dispose](): void {
      contentKey.fill(0)
    },
  }
}
