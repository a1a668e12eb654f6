// From one image to another: what was plain becomes encrypted and back, or gets a new volume key and other recipients,
// in one pass. Everything beside the root file system comes along.
import { timingSafeEqual, type KeyObject } from "node:crypto"
import { wipeCredentials, type Credential, type CredentialOptions } from "../encryption/credentials.ts"
import type { OpenOptions } from "../container/image.ts"
import { dataKey, findCryptoMessages, marksOf, type Opening } from "../encryption/unlock.ts"
import { BuildError, KeyError } from "../errors.ts"
import { decodeRecipient, MAX_MESSAGE_SIZE, recipientProof } from "../key/crypto-message.ts"
import { fingerprint } from "../key/fingerprint.ts"
import { Secret } from "../key/secret.ts"
import { messageMark, messageProof, type SifObject } from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import { checkFormat, checkStretching, recipientsOf } from "../encryption/encrypt.ts"
import { checkTarget } from "../file/output.ts"
import { openImageSource, type SourceImage } from "../source/source.ts"
import {
  makeImage,
  type BuildResult,
  type EncryptedOutputOptions,
  type OutputOptions,
} from "./write-image.ts"

/** How {@link encrypt} encrypts. */
export interface EncryptOptions extends EncryptedOutputOptions, Pick<TrustOptions, "verify"> {
  /** A plain image. */
  readonly image: string
  /** Whoever shall be able to open the new one: every RSA key and passphrase. */
  readonly credentials: CredentialOptions
}

/** How far an image is trusted. */
export type TrustOptions = Pick<OpenOptions, "kdfLimits" | "unsigned" | "verify">

/** How {@link decrypt} decrypts. */
export interface DecryptOptions extends OutputOptions, TrustOptions {
  /** An encrypted image. */
  readonly image: string
  /** Opens it. */
  readonly credentials: CredentialOptions
}

/** How {@link reencrypt} encrypts anew. */
export interface ReencryptOptions extends EncryptedOutputOptions, TrustOptions {
  /** An encrypted image. */
  readonly image: string
  /** Opens it. */
  readonly credentials: CredentialOptions
  /**
   * Whoever shall be able to open the new one. Default: whose public keys the image carries, and the passphrase that
   * opened it.
   */
  readonly recipients?: CredentialOptions
}

async function openEncrypted(
  options: DecryptOptions | ReencryptOptions,
): Promise<Awaited<ReturnType<typeof openImageSource>> & { readonly opening: Opening }> {
  const { image, credentials } = options
  const source = await openImageSource(image, credentials, options)
  const { opening } = source.image
  if (opening !== undefined) return { ...source, opening }
  await source[Symbol.asyncDispose]()
  throw new BuildError("ERR_BUILD_SOURCE", `${image} is not encrypted`, { path: image })
}

/** The messages that a change of recipients which was killed has left open nothing, and make nobody a recipient. */
function isStale(message: SifObject, { unlocked }: Opening): boolean {
  const mark = messageMark(message.extra)
  return mark !== undefined && !marksOf(unlocked).has(mark)
}

/** The keyslots of passphrases that nobody gave; they do not come along. */
function unknownPassphrases(messages: readonly SifObject[], opening: Opening): readonly number[] {
  const { unlocked, recipient } = opening
  if (unlocked.kind !== "luks") return []
  const marks = messages.map(({ extra }) => messageMark(extra))
  const others = unlocked.header.keyslots.filter(
    ({ id, mark }) => id !== unlocked.keyslot && !marks.includes(mark),
  )
  // Messages that name no keyslot have one of them.
  const unnamed = recipient === undefined && marks.includes(undefined) ? 1 : 0
  return others.slice(unnamed).map(({ id }) => id)
}

/**
 * Whose message it is; undefined: the image does not say, or somebody says so who could not open it. The key that opened
 * needs no proof.
 */
async function keyOf(image: SifImage, message: SifObject, opening: Opening): Promise<KeyObject | undefined> {
  const { unlocked, recipient } = opening
  if (recipient?.message.id === message.id) return recipient.key
  const key = decodeRecipient(await image.data(message, MAX_MESSAGE_SIZE))
  if (key === undefined) return undefined
  const proof = recipientProof(key, dataKey(unlocked).bytes)
  return timingSafeEqual(messageProof(message.extra), proof) ? key : undefined
}

/**
 * Whoever could open an image, as far as it says who that was.
 *
 * @throws KeyError `ERR_KEY_MISSING`.
 */
async function sameRecipients(
  source: SourceImage,
  opening: Opening,
  onNotice: (text: string) => void = () => undefined,
): Promise<Credential[]> {
  const { sif, primary } = source
  const { path } = sif
  const messages = findCryptoMessages(sif, primary).filter((message) => !isStale(message, opening))
  const keys = new Map<string, KeyObject>()
  const unknown: number[] = []
  for (const message of messages) {
    const key = await keyOf(sif, message, opening)
    if (key === undefined) unknown.push(message.id)
    else keys.set(fingerprint(key), key)
  }
  if (unknown.length > 0)
    throw new KeyError(
      "ERR_KEY_MISSING",
      `${path} does not show the public ${unknown.length === 1 ? "key" : "keys"} of its RSA ` +
        `${unknown.length === 1 ? "recipient" : "recipients"} in crypto message ${unknown.join(", ")}`,
      { path },
    )
  const lost = unknownPassphrases(messages, opening)
  if (lost.length > 0)
    onNotice(`a passphrase that was not given does not open the new image (keyslot ${lost.join(", ")})`)
  const passphrase = opening.recipient === undefined ? ["the passphrase"] : []
  onNotice(`encrypted for: ${[...keys.keys(), ...passphrase].join(", ")}`)
  return [
    ...[...keys].map(([origin, key]): Credential => ({ kind: "rsa", key, origin })),
    ...passphrase.map((origin): Credential => ({
      kind: "passphrase",
      passphrase: new Secret(opening.secret.bytes),
      origin,
    })),
  ]
}

/** Times `work`, between looking at the target and the result. */
async function convert(
  options: OutputOptions,
  work: () => Promise<Omit<BuildResult, "milliseconds">>,
): Promise<BuildResult> {
  const started = performance.now()
  options.signal?.throwIfAborted()
  await checkTarget(options.output, options.force ?? false)
  return { ...(await work()), milliseconds: Math.round(performance.now() - started) }
}

/**
 * Makes an encrypted image of a plain one. {@link decrypt} gives back the partition, bit for bit, and every object
 * beside it but signatures.
 *
 * @throws As {@link build}; BuildError `ERR_BUILD_SOURCE` when the image is encrypted already; SignatureError with `verify`.
 */
export async function encrypt(options: EncryptOptions): Promise<BuildResult> {
  return await convert(options, async () => {
    const { image, credentials, format, onNotice, verify, signal } = options
    checkStretching(options)
    const recipients = await recipientsOf({
      credentials,
      encrypt: true,
      ...(format === undefined ? {} : { format }),
      ...(onNotice === undefined ? {} : { onNotice }),
    })
    try {
      await using source = await openImageSource(image, undefined, {
        ...(verify === undefined ? {} : { verify }),
        ...(signal === undefined ? {} : { signal }),
      })
      return await makeImage(options, recipients, source)
    } finally {
      wipeCredentials(recipients)
    }
  })
}

/**
 * Makes a plain image of an encrypted one. What was sealed in it stands beside the root file system again.
 *
 * @throws SifError, KeyError, LuksError, TreeError of the image; BuildError `ERR_BUILD_SOURCE` when it is not encrypted,
 * `ERR_BUILD_EXISTS`, `ERR_BUILD_OUTPUT`; EnvironmentError; the signal's reason.
 */
export async function decrypt(options: DecryptOptions): Promise<BuildResult> {
  return await convert(options, async () => {
    await using source = await openEncrypted(options)
    return await makeImage(options, [], source)
  })
}

/**
 * Makes an encrypted image of an encrypted one, with a new volume key: whoever kept the old one cannot read the new
 * image.
 *
 * @throws As {@link decrypt}; KeyError `ERR_KEY_MISSING` naming the recipients whose public keys the image lacks.
 */
export async function reencrypt(options: ReencryptOptions): Promise<BuildResult> {
  return await convert(options, async () => {
    const { recipients: wanted, format, onNotice } = options
    checkStretching(options)
    const given =
      wanted === undefined
        ? undefined
        : await recipientsOf({
            credentials: wanted,
            encrypt: true,
            ...(format === undefined ? {} : { format }),
            ...(onNotice === undefined ? {} : { onNotice }),
          })
    let recipients = given ?? []
    try {
      await using source = await openEncrypted(options)
      if (given === undefined) recipients = await sameRecipients(source.image, source.opening, onNotice)
      checkFormat(recipients, format)
      return await makeImage(options, recipients, source)
    } finally {
      wipeCredentials(recipients)
    }
  })
}
