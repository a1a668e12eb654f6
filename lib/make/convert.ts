// From one image to another: what was plain becomes encrypted and back, or gets a new volume key and other recipients,
// in one pass. Everything beside the root file system comes along.
import * as is from "../arguments.ts"
import {
  credentialList,
  Credentials,
  wipeCredentials,
  type Credential,
  type CredentialSource,
} from "../encryption/credentials.ts"
import { unsignedPolicy, type OpenOptions } from "../container/image.ts"
import { kdfLimits } from "../device/luks-header.ts"
import { verifyOptions } from "../signing/verify.ts"
import type { Opening } from "../encryption/encryption-format.ts"
import { findCryptoMessages } from "../encryption/unlock.ts"
import { BuildError } from "../errors.ts"
import { fingerprint } from "../key/fingerprint.ts"
import { Secret } from "../key/secret.ts"
import { messageMark, type SifObject } from "../sif/format.ts"
import { checkFormat, checkStretching, recipientsOf } from "../encryption/encrypt.ts"
import { sortMessages } from "../encryption/recipient-list.ts"
import { stayRows, whoStays, type StayOptions } from "../encryption/staying.ts"
import { checkTarget } from "../file/output.ts"
import { openImageSource, type SourceImage } from "../source/source.ts"
import {
  encryptedOutputRows,
  makeImage,
  outputRows,
  type BuildResult,
  type EncryptedOutputOptions,
  type OutputOptions,
} from "./write-image.ts"

/** How {@link encrypt} encrypts. */
export interface EncryptOptions extends EncryptedOutputOptions, Pick<TrustOptions, "verify"> {
  /** A plain image. */
  readonly image: string
  /** Whoever shall be able to open the new one: every RSA key and passphrase. */
  readonly recipients: readonly CredentialSource[]
}

/** How far an image is trusted. */
export type TrustOptions = Pick<OpenOptions, "kdfLimits" | "onDerivation" | "unsigned" | "verify">

/** How {@link decrypt} decrypts. */
export interface DecryptOptions extends OutputOptions, TrustOptions {
  /** An encrypted image. */
  readonly image: string
  /** Opens it. */
  readonly unlock: readonly CredentialSource[]
}

/** How {@link reencrypt} encrypts anew. */
export interface ReencryptOptions
  extends EncryptedOutputOptions, TrustOptions, Pick<StayOptions, "keep" | "onConfirm"> {
  /** An encrypted image. */
  readonly image: string
  /** Opens it. */
  readonly unlock: readonly CredentialSource[]
  /**
   * Whoever shall be able to open the new one, besides those that `keep` names. Default with neither: the RSA recipients of
   * the image, if all of them are known otherwise, and the passphrase that opened it.
   */
  readonly recipients?: readonly CredentialSource[]
}

const trustRows: is.Rows<TrustOptions> = {
  kdfLimits,
  onDerivation: is.callback,
  unsigned: unsignedPolicy,
  verify: is.notUndefined(verifyOptions),
}

const checkEncrypt = is.shape<EncryptOptions>({
  ...encryptedOutputRows,
  image: is.required(is.path),
  recipients: is.required(credentialList),
  verify: trustRows.verify,
})
const checkDecrypt = is.shape<DecryptOptions>({
  ...outputRows,
  ...trustRows,
  image: is.required(is.path),
  unlock: is.required(credentialList),
})
const checkReencrypt = is.shape<ReencryptOptions>({
  ...stayRows,
  ...encryptedOutputRows,
  ...trustRows,
  image: is.required(is.path),
  unlock: is.required(credentialList),
  recipients: is.notUndefined(credentialList),
})

async function openEncrypted(
  options: DecryptOptions | ReencryptOptions,
): Promise<Awaited<ReturnType<typeof openImageSource>> & { readonly opening: Opening }> {
  const { image } = options
  using credentials = new Credentials(options.unlock)
  const source = await openImageSource(image, credentials, options)
  const { opening } = source.image
  if (opening !== undefined) return { ...source, opening }
  await source[Symbol.asyncDispose]()
  throw new BuildError("ERR_BUILD_SOURCE", `${image} is not encrypted`, { path: image })
}

/** The keyslots of passphrases that nobody gave; they do not come along. */
function unknownPassphrases(messages: readonly SifObject[], opening: Opening): readonly number[] {
  const { unlocked, recipient } = opening
  // Messages that name no keyslot have one of them.
  const unnamed =
    recipient === undefined && messages.some(({ extra }) => messageMark(extra) === undefined) ? 1 : 0
  return unlocked.otherKeyslots(messages).slice(unnamed)
}

/** Whoever stays of those who could open an image. */
async function stayingOf(
  { sif, primary }: SourceImage,
  opening: Opening,
  options: StayOptions,
): Promise<Credential[]> {
  const { onNotice = () => undefined } = options
  const { marks } = opening.unlocked.lock
  const { current } = sortMessages(findCryptoMessages(sif, primary), marks, opening.recipient?.message)
  const { keys } = await whoStays(
    { image: sif, partition: primary, opening },
    { messages: current, keyslots: [], openedBy: undefined },
    options,
  )
  const lost = unknownPassphrases(current, opening)
  if (lost.length > 0)
    onNotice(`a passphrase that was not given does not open the new image (keyslot ${lost.join(", ")})`)
  const passphrase = opening.recipient === undefined ? ["the passphrase"] : []
  return [
    ...keys.map(({ key }): Credential => ({ kind: "rsa", key, origin: fingerprint(key) })),
    ...passphrase.map((origin): Credential => ({
      kind: "passphrase",
      passphrase: new Secret(opening.secret.bytes),
      origin,
    })),
  ]
}

function nameOf(recipient: Credential): string {
  return recipient.kind === "rsa" ? fingerprint(recipient.key) : recipient.origin
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
export async function encrypt(given: EncryptOptions): Promise<BuildResult> {
  const options = checkEncrypt(given, "options")
  return await convert(options, async () => {
    const { image, format, onNotice, verify, signal } = options
    checkStretching(options)
    using credentials = new Credentials(options.recipients)
    const recipients = await recipientsOf({ recipients: credentials, format, onNotice, signal })
    try {
      await using source = await openImageSource(image, undefined, { verify, signal })
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
export async function decrypt(given: DecryptOptions): Promise<BuildResult> {
  const options = checkDecrypt(given, "options")
  return await convert(options, async () => {
    await using source = await openEncrypted(options)
    return await makeImage(options, [], source)
  })
}

/**
 * Makes an encrypted image of an encrypted one, with a new volume key: whoever kept the old one cannot read the new
 * image.
 *
 * @throws As {@link decrypt}; KeyError `ERR_KEY_UNCONFIRMED` naming those who would stay of whom nothing but the image says so,
 * `ERR_KEY_MISSING` those whose public keys the image lacks.
 */
export async function reencrypt(given: ReencryptOptions): Promise<BuildResult> {
  const options = checkReencrypt(given, "options")
  return await convert(options, async () => {
    const { recipients: wanted, format, keep, onNotice = () => undefined, signal } = options
    checkStretching(options)
    using credentials = new Credentials(wanted)
    const named =
      wanted === undefined
        ? undefined
        : await recipientsOf({ recipients: credentials, format, onNotice, signal })
    let recipients = named ?? []
    try {
      await using source = await openEncrypted(options)
      if (named === undefined || keep !== undefined) {
        const staying = await stayingOf(source.image, source.opening, options)
        const origins = new Set(staying.map(({ origin }) => origin))
        const isNew = (one: Credential): boolean => one.kind !== "rsa" || !origins.has(fingerprint(one.key))
        recipients = [...staying, ...recipients.filter(isNew)]
        onNotice(`encrypted for: ${recipients.map(nameOf).join(", ")}`)
      }
      checkFormat(recipients, format)
      return await makeImage(options, recipients, source)
    } finally {
      wipeCredentials(recipients)
    }
  })
}
