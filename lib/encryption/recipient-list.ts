// Who may open an image, as anyone can see it. Nothing here is authenticated: who can write the file can write this.
import { createHash, type KeyObject } from "node:crypto"
import { parseLuksHeader, UNLIMITED, type LuksHeader } from "../device/luks-header.ts"
import { describeScrypt, readGocryptfsLayer, type GocryptfsConfig } from "../device/gocryptfs.ts"
import { KeyError } from "../errors.ts"
import { decodeRecipient, MAX_MESSAGE_SIZE } from "../key/crypto-message.ts"
import { parseFingerprint } from "../key/fingerprint.ts"
import { modulusBits } from "../key/rsa-oaep.ts"
import { messageMark, type SifObject, type SifPartition } from "../sif/format.ts"
import { openSif, type SifImage } from "../sif/open.ts"
import { keyslotOf } from "./luks-lock-change.ts"
import { partitionKind } from "./partition.ts"
import { findCryptoMessages, plainRange, type Opening } from "./unlock.ts"

/** A program that can open an image with a recipient's credential. The peers need root for LUKS2. */
export type Reader = "sifcrypt" | "apptainer" | "singularity" | "cryptsetup"

/** One way to open an image, as anyone can see it. */
export interface Recipient {
  readonly kind: "rsa" | "passphrase"
  /** Of an RSA recipient: its crypto message's object ID. */
  readonly id: number | undefined
  /** Of an RSA recipient's public key, `SHA256:…`; undefined where the image does not say. Not verified. */
  readonly fingerprint: string | undefined
  /** Of the public key, where the image has it. */
  readonly modulusBits: number | undefined
  /** In LUKS2; undefined where it cannot be told without a key. */
  readonly keyslot: number | undefined
  /** Of a passphrase's keyslot, `SHA256:…`: any other keyslot in its place has another one. */
  readonly keyslotFingerprint: string | undefined
  readonly kdf: string | undefined
  readonly cost: string | undefined
  /** Left by a change that was killed: opens nothing. The next change removes it. */
  readonly stale: boolean
  readonly readableBy: readonly Reader[]
}

function refuse(image: SifImage, what: string): never {
  throw new KeyError("ERR_KEY_RECIPIENT", `${image.path}: ${what}`, { path: image.path })
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

/** What a reader has to do for a secret. */
interface SecretCost {
  readonly keyslot: number | undefined
  readonly kdf: string | undefined
  readonly cost: string | undefined
}

/** The lock of an image as anyone can see it. */
interface VisibleLock {
  readonly marks: ReadonlySet<string>
  /** Programs besides ours that open the first RSA recipient's message, and a passphrase. */
  readonly rsaReaders: readonly Reader[]
  readonly passphraseReaders: readonly Reader[]
  rsa(message: SifObject): SecretCost
  /** Of each passphrase, given the messages that count. */
  passphrases(current: readonly SifObject[]): readonly SecretCost[]
  /** Of a passphrase's keyslot, with all that it takes to open with it. */
  fingerprint(keyslot: number): Promise<string | undefined>
}

async function keyslotFingerprint(
  image: SifImage,
  partition: SifPartition,
  { stored }: LuksHeader,
  keyslot: number,
): Promise<string | undefined> {
  const area = stored.areas.get(keyslot)
  if (area === undefined) return undefined
  const hash = createHash("sha256").update("sifcrypt keyslot\0")
  hash.update(`${JSON.stringify(stored.document.keyslots[String(keyslot)])}\0`)
  hash.update(await image.reader.read(partition.offset + area.offset, area.size))
  return `SHA256:${hash.digest("base64").replaceAll("=", "")}`
}

function visibleLuks(image: SifImage, partition: SifPartition, header: LuksHeader): VisibleLock {
  const costOf = (id: number | undefined): SecretCost => {
    const keyslot = header.keyslots.find((one) => one.id === id)
    return { keyslot: keyslot?.id, kdf: keyslot?.kdf.type, cost: keyslot?.cost }
  }
  return {
    marks: new Set(header.keyslots.map(({ mark }) => mark)),
    rsaReaders: ["apptainer", "singularity"],
    passphraseReaders: ["apptainer", "singularity", "cryptsetup"],
    rsa: (message) => costOf(keyslotOf(message, header)),
    passphrases: (current) => {
      const taken = new Set(current.map((message) => keyslotOf(message, header)))
      return header.keyslots.filter(({ id }) => !taken.has(id)).map(({ id }) => costOf(id))
    },
    fingerprint: (keyslot) => keyslotFingerprint(image, partition, header, keyslot),
  }
}

function visibleGocryptfs(config: GocryptfsConfig): VisibleLock {
  const cost = { keyslot: undefined, kdf: "scrypt", cost: describeScrypt(config) }
  return {
    marks: new Set([config.mark]),
    rsaReaders: ["apptainer"],
    passphraseReaders: ["apptainer"],
    rsa: () => cost,
    // One password: a passphrase where it is not the RSA recipients'.
    passphrases: (current) => (current.length === 0 ? [cost] : []),
    fingerprint: () => Promise.resolve(undefined),
  }
}

async function visibleLock(image: SifImage, partition: SifPartition): Promise<VisibleLock> {
  const kind = partitionKind(partition)
  switch (kind) {
    case "luks":
      return visibleLuks(
        image,
        partition,
        await parseLuksHeader(image.reader, partition, { limits: UNLIMITED }),
      )
    case "gocryptfs": {
      const range = plainRange(image, partition, undefined)
      return visibleGocryptfs((await readGocryptfsLayer(range, image.path, UNLIMITED)).config)
    }
    default:
      return refuse(image, "the root file system is not encrypted")
  }
}

/**
 * As {@link listRecipients}.
 *
 * @param opening - How it was opened: the lock as it was then, whatever the file holds by now.
 */
export async function recipientsIn(image: SifImage, opening?: Opening): Promise<Recipient[]> {
  const partition = image.primary()
  const unlocked = opening?.unlocked
  const lock =
    unlocked === undefined
      ? await visibleLock(image, partition)
      : unlocked.kind === "luks"
        ? visibleLuks(image, partition, unlocked.header)
        : visibleGocryptfs(unlocked.config)
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
      ...(isStale ? { keyslot: undefined, kdf: undefined, cost: undefined } : lock.rsa(message)),
      keyslotFingerprint: undefined,
      stale: isStale,
      readableBy: isStale ? [] : ["sifcrypt", ...(message === all[0] ? lock.rsaReaders : [])],
    })
  }
  for (const cost of lock.passphrases(current))
    found.push({
      kind: "passphrase",
      id: undefined,
      fingerprint: undefined,
      keyslotFingerprint: cost.keyslot === undefined ? undefined : await lock.fingerprint(cost.keyslot),
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
