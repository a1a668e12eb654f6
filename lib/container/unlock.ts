// From an image and credentials to the volume key: policy first, then crypto messages and keyslots.
import { KeyError, LuksError } from "../errors.ts"
import { parseLuksHeader, type LuksHeader, type LuksPolicy } from "../device/luks-header.ts"
import { prepareLuks, unlockLuks } from "../device/luks.ts"
import { decodeCryptoMessage, MAX_MESSAGE_SIZE } from "../key/crypto-message.ts"
import { unwrapSecret } from "../key/rsa-oaep.ts"
import { Secret } from "../key/secret.ts"
import { DataType, MessageFormat, MessageType, type SifObject, type SifPartition } from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import { resolveOpeners, wipeCredentials, type Credential, type CredentialOptions } from "./credentials.ts"

/** An encrypted partition that was opened. */
export interface Unlocked {
  readonly header: LuksHeader
  /** Owned by who asked for it. */
  readonly volumeKey: Secret
}

/** The crypto messages that go with a partition, in the order a reader tries them. */
export function findCryptoMessages(image: SifImage, partition: SifPartition): readonly SifObject[] {
  return image.objects.filter(
    ({ type, link, extra }) =>
      type === DataType.cryptoMessage &&
      link.to === "object" &&
      link.id === partition.id &&
      extra.readInt32LE(0) === MessageFormat.pem &&
      extra.readInt32LE(4) === MessageType.rsaOaep,
  )
}

/** As many as an image of ours can have. Each costs a private-key operation. */
const MAX_MESSAGES = 48

interface Attempt {
  readonly image: SifImage
  readonly partition: SifPartition
  readonly header: LuksHeader
  readonly messages: readonly SifObject[]
  readonly signal: AbortSignal | undefined
  /** Why a crypto message could not be read. */
  damaged?: unknown
}

async function unlockWith(attempt: Attempt, secret: Uint8Array): Promise<Unlocked> {
  const { partition, header, image } = attempt
  const { volumeKey } = await unlockLuks({
    fd: image.fd,
    offset: partition.offset,
    header,
    secret,
    path: image.path,
  })
  try {
    return { header, volumeKey: new Secret(volumeKey) }
  } finally {
    volumeKey.fill(0)
  }
}

/** undefined: not for this credential. */
async function tryCredential(attempt: Attempt, credential: Credential): Promise<Unlocked | undefined> {
  if (credential.kind === "passphrase") {
    try {
      return await unlockWith(attempt, credential.passphrase.bytes)
    } catch (error) {
      if (error instanceof LuksError && error.code === "ERR_LUKS_PASSPHRASE") return undefined
      throw error
    }
  }
  const { image, messages, signal } = attempt
  let damaged: unknown
  for (const message of messages) {
    signal?.throwIfAborted()
    const data = await image.data(message, MAX_MESSAGE_SIZE)
    let wrapped: Buffer
    try {
      wrapped = decodeCryptoMessage(data)
    } catch (error) {
      // Perhaps it is somebody else's; told when nothing opens.
      damaged ??= error
      continue
    }
    const secret = unwrapSecret(credential.key, wrapped)
    if (secret === undefined) continue
    try {
      return await unlockWith(attempt, secret)
    } catch (error) {
      // The message was ours, so the key is right and the image is not.
      if (error instanceof LuksError && error.code === "ERR_LUKS_PASSPHRASE")
        throw new LuksError(
          "ERR_LUKS_HEADER",
          `${image.path}: the secret in crypto message ${message.id} opens no keyslot: one of the two was replaced`,
          { path: image.path, cause: error },
        )
      throw error
    } finally {
      secret.fill(0)
    }
  }
  if (damaged !== undefined) attempt.damaged ??= damaged
  return undefined
}

function refusal(attempt: Attempt, tried: readonly Credential[]): KeyError | LuksError {
  const { image, messages } = attempt
  const { path } = image
  const origins = tried.map(({ origin }) => origin).join(", ")
  const recipients = `${messages.length} RSA ${messages.length === 1 ? "recipient" : "recipients"}`
  if (tried.length === 0)
    return new KeyError(
      "ERR_KEY_MISSING",
      `${path} is encrypted (${messages.length > 0 ? `for ${recipients}` : "with a passphrase"}) and no key was given`,
      { path },
    )
  if (tried.every(({ kind }) => kind === "rsa"))
    return new KeyError(
      "ERR_KEY_MISMATCH",
      messages.length === 0
        ? `${path} has no RSA recipient: it opens with a passphrase only`
        : `${path} was not encrypted for this key (${origins}); it has ${recipients}`,
      { path },
    )
  return new LuksError("ERR_LUKS_PASSPHRASE", `${path}: wrong passphrase (${origins})`, { path })
}

/**
 * Recovers the volume key of an encrypted partition. The header is checked against `policy` before any key derivation.
 *
 * @throws KeyError `ERR_KEY_MISSING`, `ERR_KEY_MISMATCH`, `ERR_KEY_FORMAT`, `ERR_KEY_MESSAGE`; LuksError
 * `ERR_LUKS_PASSPHRASE`, `ERR_LUKS_HEADER`, `ERR_LUKS_UNSUPPORTED`, `ERR_LUKS_COST`; EnvironmentError.
 */
export async function unlockPartition(
  image: SifImage,
  partition: SifPartition,
  credentials: CredentialOptions,
  policy: LuksPolicy,
  signal?: AbortSignal,
): Promise<Unlocked> {
  prepareLuks()
  const header = await parseLuksHeader(image.reader, partition, policy)
  const messages = findCryptoMessages(image, partition)
  if (messages.length > MAX_MESSAGES)
    throw new KeyError("ERR_KEY_MESSAGE", `${image.path}: ${messages.length} crypto messages are too many`, {
      path: image.path,
    })
  const attempt: Attempt = { image, partition, header, messages, signal }
  const candidates = await resolveOpeners(credentials)
  try {
    for (const candidate of candidates) {
      const unlocked = await tryCredential(attempt, candidate)
      if (unlocked !== undefined) return unlocked
    }
    throw attempt.damaged instanceof KeyError ? attempt.damaged : refusal(attempt, candidates)
  } finally {
    wipeCredentials(candidates)
  }
}
