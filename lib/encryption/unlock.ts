// From an image and credentials to the data key: policy first, then crypto messages and what a passphrase opens.
import { createPublicKey, type KeyObject } from "node:crypto"
import { KeyError, type ContainerError } from "../errors.ts"
import type { LuksPolicy } from "../device/luks-header.ts"
import { decodeCryptoMessage, MAX_MESSAGE_SIZE } from "../key/crypto-message.ts"
import { fingerprint } from "../key/fingerprint.ts"
import { overwritingFreed } from "../device/process.ts"
import { unwrapSecret } from "../key/rsa-oaep.ts"
import { Secret } from "../key/secret.ts"
import {
  DataType,
  MessageFormat,
  messageMark,
  MessageType,
  type SifObject,
  type SifPartition,
} from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import { resolveOpeners, wipeCredentials, type Credential, type Credentials } from "./credentials.ts"
import type { Lock, Opening, Unlocked } from "./encryption-format.ts"
import { encryptionOf } from "./partition.ts"

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

/**
 * Messages for one key that open nothing: a change that was killed leaves one. Whoever has the public key can write more,
 * and each costs a key derivation.
 */
const MAX_STALE = 4

interface Attempt {
  readonly image: SifImage
  readonly lock: Lock
  readonly messages: readonly SifObject[]
  readonly signal: AbortSignal | undefined
  /** Called once at most. */
  onDerivation: LuksPolicy["onDerivation"]
  readonly findHeldKey: LuksPolicy["findHeldKey"]
  /** Why nothing opened although a message was meant for a key; told when nothing else opens either. */
  failure?: ContainerError
}

/** The secret in one crypto message; undefined: not for this key. */
async function unwrapMessage(
  attempt: Attempt,
  message: SifObject,
  key: KeyObject,
): Promise<Secret | undefined> {
  const data = await attempt.image.data(message, MAX_MESSAGE_SIZE)
  let wrapped: Buffer
  try {
    wrapped = decodeCryptoMessage(data)
  } catch (error) {
    // Perhaps it is somebody else's.
    if (error instanceof KeyError) attempt.failure ??= error
    return undefined
  }
  const secret = await overwritingFreed(() => unwrapSecret(key, wrapped))
  if (secret === undefined) return undefined
  try {
    return new Secret(secret)
  } finally {
    secret.fill(0)
  }
}

/** Those that name this key first, then those that name none. */
function inOrder(messages: readonly SifObject[], key: KeyObject): readonly SifObject[] {
  if (messages.length < 2) return messages
  const own = fingerprint(key)
  const rank = ({ name }: SifObject): number => (name === own ? 0 : name === "" ? 1 : 2)
  return [...messages].sort((a, b) => rank(a) - rank(b))
}

/** Opens, and says before how long that may take. */
async function openWith(attempt: Attempt, secret: Uint8Array, mark?: string): Promise<Unlocked | undefined> {
  const { lock, onDerivation, signal } = attempt
  if (onDerivation !== undefined) {
    // What keeps it from being measured is told by the derivation itself.
    const estimate = await lock.derivationTime(mark).catch(() => undefined)
    if (estimate !== undefined) {
      attempt.onDerivation = undefined
      onDerivation(estimate)
      signal?.throwIfAborted()
    }
  }
  return await lock.open(secret, mark)
}

async function tryKey(attempt: Attempt, key: KeyObject): Promise<Opening | undefined> {
  const { lock, messages, signal } = attempt
  let stale = 0
  for (const message of inOrder(messages, key)) {
    signal?.throwIfAborted()
    const secret = await unwrapMessage(attempt, message, key)
    if (secret === undefined) continue
    try {
      const mark = messageMark(message.extra)
      const { findHeldKey } = attempt
      const unlocked =
        (findHeldKey && lock.openHeld?.(secret.bytes, mark, findHeldKey)) ??
        (await openWith(attempt, secret.bytes, mark))
      if (unlocked !== undefined)
        return { unlocked, secret, recipient: { message, key: createPublicKey(key) } }
    } catch (error) {
      secret.wipe()
      throw error
    }
    secret.wipe()
    // A change of recipients that was killed leaves the message of the secret before; the one that counts follows.
    attempt.failure = lock.staleMessage(message.id)
    if (++stale === MAX_STALE) return undefined
  }
  return undefined
}

/** undefined: not for this credential. */
async function tryCredential(attempt: Attempt, credential: Credential): Promise<Opening | undefined> {
  if (credential.kind === "rsa") return await tryKey(attempt, credential.key)
  const unlocked = await openWith(attempt, credential.passphrase.bytes)
  if (unlocked === undefined) return undefined
  return { unlocked, secret: new Secret(credential.passphrase.bytes), recipient: undefined }
}

function refusal(attempt: Attempt, tried: readonly Credential[]): ContainerError {
  const { image, lock, messages } = attempt
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
  return lock.wrongPassphrase(origins)
}

/**
 * Opens an encrypted partition and tells how: for what needs the secret itself, as changing recipients does.
 *
 * @throws As {@link unlockPartition}.
 */
export async function openPartition(
  image: SifImage,
  partition: SifPartition,
  credentials: Credentials,
  policy: LuksPolicy,
  signal?: AbortSignal,
): Promise<Opening> {
  const format = encryptionOf(partition)
  if (format === undefined) throw new TypeError("the partition is not encrypted")
  // What is held is opened without what opens keyslots.
  if (policy.findHeldKey === undefined) format.prepare?.()
  const lock = await format.readLock(image, partition, policy)
  const messages = findCryptoMessages(image, partition)
  if (messages.length > MAX_MESSAGES)
    throw KeyError.at(image.path, "ERR_KEY_MESSAGE", `${messages.length} crypto messages are too many`)
  const { onDerivation, findHeldKey } = policy
  const attempt: Attempt = { image, lock, messages, signal, onDerivation, findHeldKey }
  const tried: Credential[] = []
  const tryAll = async (given: Credentials): Promise<Opening | undefined> => {
    const candidates = await resolveOpeners(given, signal)
    tried.push(...candidates)
    for (const candidate of candidates) {
      const opening = await tryCredential(attempt, candidate)
      if (opening !== undefined) return opening
    }
    return undefined
  }
  try {
    const opening = await tryAll(credentials)
    if (opening !== undefined) return opening
    if (tried.length === 0)
      // One after the other: a command may ask somebody, and the key of another line may not be here.
      for (const configured of await credentials.configuredFor(image, messages, signal)) {
        const opening = await tryAll(configured).catch((error: unknown) => {
          if (!(error instanceof KeyError)) throw error
          attempt.failure ??= error
        })
        if (opening !== undefined) return opening
      }
    throw attempt.failure ?? refusal(attempt, tried)
  } finally {
    wipeCredentials(tried)
  }
}

/**
 * Recovers the key of an encrypted partition. Its header is checked against `policy` before any key derivation.
 *
 * @throws KeyError `ERR_KEY_MISSING`, `ERR_KEY_MISMATCH`, `ERR_KEY_FORMAT`, `ERR_KEY_MESSAGE`; LuksError
 * `ERR_LUKS_PASSPHRASE`, `ERR_LUKS_HEADER`, `ERR_LUKS_UNSUPPORTED`, `ERR_LUKS_COST`; GocryptfsError
 * `ERR_GOCRYPTFS_PASSPHRASE`, `ERR_GOCRYPTFS_CONFIG`, `ERR_GOCRYPTFS_UNSUPPORTED`, `ERR_GOCRYPTFS_COST`; EnvironmentError.
 */
export async function unlockPartition(
  image: SifImage,
  partition: SifPartition,
  credentials: Credentials,
  policy: LuksPolicy,
  signal?: AbortSignal,
): Promise<Unlocked> {
  const { unlocked, secret } = await openPartition(image, partition, credentials, policy, signal)
  secret.wipe()
  return unlocked
}
