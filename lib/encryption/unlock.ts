// From an image and credentials to the volume key: policy first, then crypto messages and keyslots.
import { createPublicKey, type KeyObject } from "node:crypto"
import { readGocryptfsLayer, unlockGocryptfs, type GocryptfsConfig } from "../device/gocryptfs.ts"
import { GocryptfsError, KeyError, LuksError, type ContainerError } from "../errors.ts"
import { parseLuksHeader, type LuksHeader, type LuksPolicy } from "../device/luks-header.ts"
import { prepareLuks, unlockLuks } from "../device/luks.ts"
import { readStored } from "../device/verity.ts"
import { decodeCryptoMessage, MAX_MESSAGE_SIZE } from "../key/crypto-message.ts"
import { fingerprint } from "../key/fingerprint.ts"
import { overwritingFreed } from "../device/process.ts"
import { unwrapSecret } from "../key/rsa-oaep.ts"
import { Secret } from "../key/secret.ts"
import type { NativeRange, NativeVerity } from "../native/binding.ts"
import {
  DataType,
  MessageFormat,
  messageMark,
  MessageType,
  type SifObject,
  type SifPartition,
} from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import type { ByteReader } from "../sif/source.ts"
import { nativeVerity } from "../signing/verity.ts"
import { partitionKind } from "./partition.ts"
import { resolveOpeners, wipeCredentials, type Credential, type Credentials } from "./credentials.ts"

/** A LUKS2 partition that was opened. */
export interface UnlockedLuks {
  readonly kind: "luks"
  readonly header: LuksHeader
  readonly volumeKey: Secret
  /** The one that the secret opened. */
  readonly keyslot: number
}

/** A gocryptfs image that was opened. */
export interface UnlockedGocryptfs {
  readonly kind: "gocryptfs"
  readonly config: GocryptfsConfig
  readonly contentKey: Secret
  /** The encrypted file in the root of the outer squashfs. */
  readonly file: string
}

/** An encrypted partition that was opened: what both engines need to read it. Owned by who asked for it. */
export type Unlocked = UnlockedLuks | UnlockedGocryptfs

/** An opened partition, and how it came to that. */
export interface Opening {
  readonly unlocked: Unlocked
  /** The passphrase, or what the crypto message held. Owned by who asked for it. */
  readonly secret: Secret
  /** The crypto message that held the secret, and whose it is; undefined when a passphrase opened. */
  readonly recipient: { readonly message: SifObject; readonly key: KeyObject } | undefined
}

/** What a partition's encryption makes of secrets. */
interface Lock {
  /**
   * undefined: it does not open with this one.
   *
   * @param mark - Names what the secret is for, where its message says so; nothing else is tried then.
   */
  readonly open: (secret: Uint8Array, mark?: string) => Promise<Unlocked | undefined>
  /** No passphrase opened. */
  readonly wrongPassphrase: (path: string, origins: string) => ContainerError
  /** A crypto message was for the key that was given, but what it holds does not open. */
  readonly staleMessage: (path: string, message: number) => ContainerError
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

/** LUKS2: the header is checked against `policy` before any key derivation. */
async function luksLock(image: SifImage, partition: SifPartition, policy: LuksPolicy): Promise<Lock> {
  prepareLuks()
  const header = await parseLuksHeader(readerOf(image, partition), partition, policy)
  const verity = verityOf(partition)
  const open: Lock["open"] = async (secret, mark) => {
    const { fd, path } = image
    const named = mark === undefined ? undefined : header.keyslots.find((keyslot) => keyslot.mark === mark)
    if (mark !== undefined && named === undefined) return undefined
    try {
      const { volumeKey, keyslot } = await unlockLuks({
        fd,
        offset: partition.offset,
        header,
        verity,
        secret,
        path,
        keyslot: named?.id,
      })
      try {
        return { kind: "luks", header, volumeKey: new Secret(volumeKey), keyslot }
      } finally {
        volumeKey.fill(0)
      }
    } catch (error) {
      if (error instanceof LuksError && error.code === "ERR_LUKS_PASSPHRASE") return undefined
      throw error
    }
  }
  return {
    open,
    wrongPassphrase: (path, origins) =>
      new LuksError("ERR_LUKS_PASSPHRASE", `${path}: wrong passphrase (${origins})`, { path }),
    staleMessage: (path, message) =>
      new LuksError(
        "ERR_LUKS_HEADER",
        `${path}: the secret in crypto message ${message} opens no keyslot: one of the two was replaced`,
        { path },
      ),
  }
}

/** gocryptfs: its configuration is checked before any key derivation. */
async function gocryptfsLock(
  image: SifImage,
  partition: SifPartition,
  limits: LuksPolicy["limits"],
): Promise<Lock> {
  const { config, file } = await readGocryptfsLayer(
    plainRange(image, partition, undefined),
    image.path,
    limits,
  )
  return {
    open: async (secret, mark) => {
      if (mark !== undefined && mark !== config.mark) return undefined
      const contentKey = await unlockGocryptfs(config, secret)
      if (contentKey === undefined) return undefined
      try {
        return { kind: "gocryptfs", config, contentKey: new Secret(contentKey), file }
      } finally {
        contentKey.fill(0)
      }
    },
    wrongPassphrase: (path, origins) =>
      new GocryptfsError("ERR_GOCRYPTFS_PASSPHRASE", `${path}: wrong passphrase (${origins})`, { path }),
    staleMessage: (path, message) =>
      new GocryptfsError(
        "ERR_GOCRYPTFS_CONFIG",
        `${path}: the secret in crypto message ${message} does not open the configuration: one of the two was replaced`,
        { path },
      ),
  }
}

async function lockOf(image: SifImage, partition: SifPartition, policy: LuksPolicy): Promise<Lock> {
  const kind = partitionKind(partition)
  switch (kind) {
    case "luks":
      return await luksLock(image, partition, policy)
    case "gocryptfs":
      return await gocryptfsLock(image, partition, policy.limits)
    default:
      throw new TypeError(`a partition of kind ${kind} has no lock`)
  }
}

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

async function tryKey(attempt: Attempt, key: KeyObject): Promise<Opening | undefined> {
  const { image, lock, messages, signal } = attempt
  let stale = 0
  for (const message of inOrder(messages, key)) {
    signal?.throwIfAborted()
    const secret = await unwrapMessage(attempt, message, key)
    if (secret === undefined) continue
    try {
      const unlocked = await lock.open(secret.bytes, messageMark(message.extra))
      if (unlocked !== undefined)
        return { unlocked, secret, recipient: { message, key: createPublicKey(key) } }
    } catch (error) {
      secret.wipe()
      throw error
    }
    secret.wipe()
    // A change of recipients that was killed leaves the message of the secret before; the one that counts follows.
    attempt.failure = lock.staleMessage(image.path, message.id)
    if (++stale === MAX_STALE) return undefined
  }
  return undefined
}

/** undefined: not for this credential. */
async function tryCredential(attempt: Attempt, credential: Credential): Promise<Opening | undefined> {
  if (credential.kind === "rsa") return await tryKey(attempt, credential.key)
  const unlocked = await attempt.lock.open(credential.passphrase.bytes)
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
  return lock.wrongPassphrase(path, origins)
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
  const lock = await lockOf(image, partition, policy)
  const messages = findCryptoMessages(image, partition)
  if (messages.length > MAX_MESSAGES)
    throw new KeyError("ERR_KEY_MESSAGE", `${image.path}: ${messages.length} crypto messages are too many`, {
      path: image.path,
    })
  const attempt: Attempt = { image, lock, messages, signal }
  const candidates = await resolveOpeners(credentials, signal)
  try {
    for (const candidate of candidates) {
      const opening = await tryCredential(attempt, candidate)
      if (opening !== undefined) return opening
    }
    throw attempt.failure ?? refusal(attempt, candidates)
  } finally {
    wipeCredentials(candidates)
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

/** What the crypto messages that count are marked with: a message with another mark opens nothing. */
export function marksOf(unlocked: Unlocked): ReadonlySet<string> {
  return new Set(
    unlocked.kind === "luks" ? unlocked.header.keyslots.map(({ mark }) => mark) : [unlocked.config.mark],
  )
}

/** What encrypts the data of an opened partition. */
export function dataKey(unlocked: Unlocked): Secret {
  return unlocked.kind === "luks" ? unlocked.volumeKey : unlocked.contentKey
}

/** Forgets the key of an opened partition. */
export function wipeUnlocked(unlocked: Unlocked | undefined): void {
  if (unlocked !== undefined) dataKey(unlocked).wipe()
}

/** The cipher of a LUKS2 partition, in dm-crypt's notation. */
export function cipherOf(unlocked: Unlocked | undefined): string | undefined {
  return unlocked?.kind === "luks" ? unlocked.header.segment.cipher : undefined
}

/** How every block of a partition is verified that is read; undefined: not at all. */
function verityOf(partition: SifPartition): NativeVerity | undefined {
  return partition.tree === undefined ? undefined : nativeVerity(partition, partition.tree)
}

/** Reads of a partition what has no cipher. */
function readerOf(image: SifImage, partition: SifPartition): Pick<ByteReader, "read"> {
  const verity = verityOf(partition)
  if (verity === undefined) return image.reader
  const { fd, path } = image
  return {
    read: (offset, size) => readStored({ fd, offset, size, cipher: undefined, verity }, path),
  }
}

/** The squashfs in a partition as the native side reads it. It borrows the key. */
export function plainRange(
  image: SifImage,
  partition: SifPartition,
  unlocked: Unlocked | undefined,
): NativeRange {
  const { fd } = image
  const { offset, size } = partition
  const verity = verityOf(partition)
  if (unlocked === undefined) return { fd, offset, size, cipher: undefined, verity }
  if (unlocked.kind === "gocryptfs") {
    const { contentKey, file } = unlocked
    return { fd, offset, size, cipher: { type: "gocryptfs", contentKey: contentKey.bytes, file }, verity }
  }
  const { segment } = unlocked.header
  const { sectorSize, ivTweak } = segment
  return {
    fd,
    offset: offset + segment.offset,
    size: segment.size,
    cipher: { type: "xts", volumeKey: unlocked.volumeKey.bytes, sectorSize, ivTweak },
    verity,
  }
}
