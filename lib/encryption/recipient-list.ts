// Who may open an image, as anyone can see it. Nothing here is authenticated: who can write the file can write this.
import type { KeyObject } from "node:crypto"
import { UNLIMITED } from "../device/luks-header.ts"
import { KeyError } from "../errors.ts"
import { decodeRecipient, MAX_MESSAGE_SIZE } from "../key/crypto-message.ts"
import { parseFingerprint } from "../key/fingerprint.ts"
import { modulusBits } from "../key/rsa-oaep.ts"
import { messageMark, type SifObject } from "../sif/format.ts"
import { openSif, type SifImage } from "../sif/open.ts"
import type { Opening, Reader, SecretCost } from "./encryption-format.ts"
import { encryptionOf } from "./partition.ts"
import { findCryptoMessages } from "./unlock.ts"

/** One way to open an image, as anyone can see it. */
export interface Recipient extends SecretCost {
  readonly kind: "rsa" | "passphrase"
  /** Of an RSA recipient: its crypto message's object ID. */
  readonly id: number | undefined
  /** Of an RSA recipient's public key, `SHA256:…`; undefined where the image does not say. Not verified. */
  readonly fingerprint: string | undefined
  /** Of the public key, where the image has it. */
  readonly modulusBits: number | undefined
  /** Of a passphrase's keyslot, `SHA256:…`: any other keyslot in its place has another one. */
  readonly keyslotFingerprint: string | undefined
  /** Left by a change that was killed: opens nothing. The next change removes it. */
  readonly stale: boolean
  readonly readableBy: readonly Reader[]
}

/** The messages of an image, told apart by whether they are for a lock that exists. */
export interface Messages {
  readonly current: readonly SifObject[]
  readonly stale: readonly SifObject[]
}

/**
 * The peers' messages have no mark. Either all that count have one or none has: a change of a peer's image replaces its
 * messages.
 *
 * @param opener - The message that opened the image counts, whoever put marked ones beside it.
 */
export function sortMessages(
  all: readonly SifObject[],
  marks: ReadonlySet<string>,
  opener?: SifObject,
): Messages {
  const isMarked = ({ extra }: SifObject): boolean => marks.has(messageMark(extra) ?? "")
  const isUnmarked = ({ extra }: SifObject): boolean => messageMark(extra) === undefined
  const both = opener !== undefined && isUnmarked(opener)
  const marked = all.filter(isMarked)
  const current = both
    ? all.filter((one) => isMarked(one) || isUnmarked(one))
    : marked.length > 0
      ? marked
      : all.filter(isUnmarked)
  return { current, stale: all.filter((message) => !current.includes(message)) }
}

/** The public key behind a message; undefined: none, or one that cannot be read. */
export async function keyBehind(image: SifImage, message: SifObject): Promise<KeyObject | undefined> {
  try {
    return decodeRecipient(await image.data(message, MAX_MESSAGE_SIZE))
  } catch (error) {
    if (error instanceof KeyError) return undefined
    throw error
  }
}

/**
 * As {@link listRecipients}.
 *
 * @param opening - How it was opened: the lock as it was then, whatever the file holds by now.
 */
export async function recipientsIn(image: SifImage, opening?: Opening): Promise<Recipient[]> {
  const partition = image.primary()
  const format = encryptionOf(partition)
  if (format === undefined)
    throw KeyError.at(image.path, "ERR_KEY_RECIPIENT", "the root file system is not encrypted")
  const lock = opening?.unlocked.lock ?? (await format.readLock(image, partition, { limits: UNLIMITED }))
  const all = findCryptoMessages(image, partition)
  const { current, stale } = sortMessages(all, lock.marks, opening?.recipient?.message)
  const found: Recipient[] = []
  for (const message of all) {
    const key = await keyBehind(image, message)
    const isStale = stale.includes(message)
    found.push({
      kind: "rsa",
      id: message.id,
      fingerprint: parseFingerprint(message.name) === undefined ? undefined : message.name,
      modulusBits: key === undefined ? undefined : modulusBits(key),
      ...(isStale ? { keyslot: undefined, kdf: undefined, cost: undefined } : lock.messageCost(message)),
      keyslotFingerprint: undefined,
      stale: isStale,
      readableBy: isStale ? [] : ["sifcrypt", ...(message === all[0] ? lock.rsaReaders : [])],
    })
  }
  for (const cost of lock.passphraseCosts(current))
    found.push({
      kind: "passphrase",
      id: undefined,
      fingerprint: undefined,
      keyslotFingerprint:
        cost.keyslot === undefined ? undefined : await lock.keyslotFingerprint(cost.keyslot),
      modulusBits: undefined,
      ...cost,
      stale: false,
      readableBy: ["sifcrypt", ...lock.passphraseReaders],
    })
  return found
}

/**
 * Who may open an image: RSA recipients in the order in which they are looked at, then passphrases. Needs no key.
 *
 * @throws SifError; LuksError `ERR_LUKS_HEADER`, `ERR_LUKS_UNSUPPORTED`; GocryptfsError `ERR_GOCRYPTFS_CONFIG`,
 * `ERR_GOCRYPTFS_UNSUPPORTED`; KeyError `ERR_KEY_RECIPIENT` when the image is not encrypted.
 */
export async function listRecipients(path: string): Promise<Recipient[]> {
  await using image = await openSif(path)
  return await recipientsIn(image)
}
