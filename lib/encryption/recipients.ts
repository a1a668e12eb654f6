// Who may open an image, and how that changes without touching the payload. The volume key stays what it is; what changes is
// the secret that opens its lock (LUKS2: a keyslot; gocryptfs: the configuration), and the crypto messages that carry the
// secret to each RSA recipient:
//
//   1  messages of the new secret, then their descriptors on        opens with the old secret
//   2  the lock: new secret in, old ones out                        the commit: opens with the new secret only
//   3  the old messages off and wiped
//
// A message says which lock it is for (its mark), so that after a change that was killed anyone can tell those that count
// from those that do not, and the next change clears up.
import { timingSafeEqual, type KeyObject } from "node:crypto"
import {
  cryptoMessage,
  passphraseKdfFor,
  type CryptoMessage,
  type MessageSecret,
  type PassphraseKdf,
} from "./encrypt.ts"
import { parseLuksHeader, UNLIMITED, type LuksHeader, type LuksPolicy } from "../device/luks-header.ts"
import { describeScrypt, readGocryptfsLayer, type GocryptfsConfig } from "../device/gocryptfs.ts"
import { KeyError } from "../errors.ts"
import { decodeRecipient, MAX_MESSAGE_SIZE, recipientProof } from "../key/crypto-message.ts"
import { fingerprint, isNamedBy, parseFingerprint } from "../key/fingerprint.ts"
import { checkRecipient } from "../key/key-file.ts"
import { modulusBits } from "../key/rsa-oaep.ts"
import { changeSif, type SifChange } from "../file/image-change.ts"
import {
  cryptoMessageExtra,
  DataType,
  messageMark,
  messageProof,
  type SifObject,
  type SifPartition,
} from "../sif/format.ts"
import { openSif, type SifImage } from "../sif/open.ts"
import { resolveRecipients, wipeCredentials, type Credential, type CredentialOptions } from "./credentials.ts"
import { gocryptfsLockChange } from "./gocryptfs-lock-change.ts"
import type { LockChange, OpenedForChange, PreparedChange } from "./lock-change.ts"
import { keyslotOf, luksLockChange } from "./luks-lock-change.ts"
import { isEncrypted, partitionKind } from "./partition.ts"
import {
  dataKey,
  findCryptoMessages,
  marksOf,
  openPartition,
  plainRange,
  wipeUnlocked,
  type Opening,
} from "./unlock.ts"

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
  readonly kdf: string | undefined
  readonly cost: string | undefined
  /** Left by a change that was killed: opens nothing. The next change removes it. */
  readonly stale: boolean
  readonly readableBy: readonly Reader[]
}

/** What every change of recipients takes. */
export interface RecipientChangeOptions {
  /** What opens the image now. */
  readonly credentials?: CredentialOptions
  /** How much the header may make a key derivation cost. */
  readonly kdfLimits?: NonNullable<LuksPolicy["limits"]>
  /** Remove the signatures that the change breaks; default: they stay, and are reported. */
  readonly removeSignatures?: boolean
  readonly signal?: AbortSignal
  /** Things worth knowing that are no errors. */
  readonly onNotice?: (text: string) => void
}

/** Whom {@link addRecipients} adds. */
export interface AddRecipientsOptions extends RecipientChangeOptions {
  /** Public keys and passphrases; the environment is not looked at. */
  readonly recipients: CredentialOptions
  /** Leave out of the image whose the keys are. */
  readonly anonymous?: boolean
  /** Default Argon2id with fixed costs. */
  readonly passphraseKdf?: PassphraseKdf
}

/** What a rotation takes besides. */
export interface RotateRecipientsOptions extends RecipientChangeOptions {
  /** Public keys of those who stay, where the image does not have them. */
  readonly recipients?: CredentialOptions
}

/** Whom {@link removeRecipient} removes: one of these. */
export interface RemoveRecipientOptions extends RotateRecipientsOptions {
  /** A fingerprint (`SHA256:…`, `SHA1:…`, or hex) or the ID of a crypto message. */
  readonly recipient?: string
  /** A file with the recipient's key. */
  readonly recipientFile?: string
  /** A passphrase's keyslot. */
  readonly keyslot?: number
}

/** What a change did. */
export interface RecipientChange {
  /** As they are now. */
  readonly recipients: readonly Recipient[]
  /** IDs of signature objects that do not fit the image any more. */
  readonly brokenSignatures: readonly number[]
  readonly signaturesRemoved: boolean
}

function refuse(image: SifImage, what: string): never {
  throw new KeyError("ERR_KEY_RECIPIENT", `${image.path}: ${what}`, { path: image.path })
}

// ---- What is there ------------------------------------------------------------------------------------------------------

/** The messages of an image, told apart by whether they are for a lock that exists. */
interface Messages {
  readonly current: readonly SifObject[]
  readonly stale: readonly SifObject[]
}

/**
 * The peers' messages have no mark. Either all that count have one or none has: a change of a peer's image replaces its
 * messages, unless it adds one for which it cannot.
 */
function sortMessages(all: readonly SifObject[], marks: ReadonlySet<string>): Messages {
  const marked = all.filter(({ extra }) => marks.has(messageMark(extra) ?? ""))
  const current = marked.length > 0 ? marked : all.filter(({ extra }) => messageMark(extra) === undefined)
  return { current, stale: all.filter((message) => !current.includes(message)) }
}

/** The public key behind a message; undefined: none, or one that cannot be read. */
async function keyBehind(image: SifImage, message: SifObject): Promise<KeyObject | undefined> {
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
}

function visibleLuks(header: LuksHeader): VisibleLock {
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
  }
}

async function visibleLock(image: SifImage, partition: SifPartition): Promise<VisibleLock> {
  const kind = partitionKind(partition)
  switch (kind) {
    case "luks":
      return visibleLuks(await parseLuksHeader(image.reader, partition, { limits: UNLIMITED }))
    case "gocryptfs": {
      const range = plainRange(image, partition, undefined)
      return visibleGocryptfs((await readGocryptfsLayer(range, image.path, UNLIMITED)).config)
    }
    default:
      return refuse(image, "the root file system is not encrypted")
  }
}

async function recipientsIn(image: SifImage): Promise<Recipient[]> {
  const partition = image.primary()
  const lock = await visibleLock(image, partition)
  const all = findCryptoMessages(image, partition)
  const { current, stale } = sortMessages(all, lock.marks)
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
      stale: isStale,
      readableBy: isStale ? [] : ["sifcrypt", ...(message === all[0] ? lock.rsaReaders : [])],
    })
  }
  for (const cost of lock.passphrases(current))
    found.push({
      kind: "passphrase",
      id: undefined,
      fingerprint: undefined,
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

// ---- Changes ------------------------------------------------------------------------------------------------------------

/** An image that is being changed, opened with a credential. */
interface Changing {
  readonly change: SifChange
  readonly partition: SifPartition
  readonly opening: Opening
  readonly messages: Messages
  readonly lock: LockChange
  readonly onNotice: (text: string) => void
}

function lockChange({ opening, ...opened }: OpenedForChange): LockChange {
  const { unlocked } = opening
  return unlocked.kind === "luks"
    ? luksLockChange({ ...opened, opening: { ...opening, unlocked } })
    : gocryptfsLockChange({ ...opened, opening: { ...opening, unlocked } })
}

async function withOpened(
  path: string,
  options: RecipientChangeOptions,
  use: (changing: Changing) => Promise<void>,
): Promise<RecipientChange> {
  const {
    credentials = {},
    kdfLimits,
    signal,
    onNotice = () => undefined,
    removeSignatures = false,
  } = options
  signal?.throwIfAborted()
  return await changeSif(path, async (change, file) => {
    const { image } = change
    const partition = image.primary()
    if (!isEncrypted(partitionKind(partition))) refuse(image, "the root file system is not encrypted")
    const opening = await openPartition(image, partition, credentials, { limits: kdfLimits }, signal)
    try {
      const messages = sortMessages(findCryptoMessages(image, partition), marksOf(opening.unlocked))
      const lock = lockChange({ image, file, partition, opening, messages: messages.current })
      const before = image.objects
      await use({ change, partition, opening, messages, lock, onNotice })
      const broken = brokenSignatures(before, change.image.objects, partition)
      if (removeSignatures) await change.remove(broken)
      return {
        recipients: await recipientsIn(change.image),
        brokenSignatures: broken.map(({ id }) => id),
        signaturesRemoved: removeSignatures,
      }
    } finally {
      opening.secret.wipe()
      wipeUnlocked(opening.unlocked)
    }
  })
}

/** The signatures over what a change of recipients touches: the partition, its group, and messages that are gone. */
function brokenSignatures(
  before: readonly SifObject[],
  after: readonly SifObject[],
  partition: SifPartition,
): SifObject[] {
  const left = new Set(after.map(({ id }) => id))
  const gone = before.filter(({ id }) => !left.has(id))
  const ids = new Set([partition, ...gone].map(({ id }) => id))
  const groups = new Set([partition, ...gone].map(({ group }) => group))
  return after.filter(
    ({ type, link }) =>
      type === DataType.signature &&
      (link.to === "object" ? ids.has(link.id) : link.to === "group" && groups.has(link.group)),
  )
}

/** What a change puts in and takes away. */
interface Step {
  readonly messages: readonly CryptoMessage[]
  /** The new messages' descriptors come after this slot: peers look at the first one. */
  readonly after?: number
  readonly lock: PreparedChange
  readonly remove: readonly SifObject[]
}

async function carryOut(changing: Changing, step: Step): Promise<void> {
  const { change, partition, messages } = changing
  const slots = await change.append(
    step.messages.map((message) => ({
      type: DataType.cryptoMessage,
      group: partition.group,
      link: { to: "object", id: partition.id },
      ...message,
    })),
    step.after,
  )
  await change.switchOn(slots)
  change.commit()
  await step.lock.write?.()
  await change.remove([...step.remove, ...messages.stale])
}

/** Public keys among credentials, and nothing else. */
async function publicKeys(
  options: CredentialOptions,
  onNotice: (text: string) => void,
): Promise<{ readonly keys: readonly KeyObject[]; readonly all: readonly Credential[] }> {
  const all = await resolveRecipients({ ...options, env: {} }, onNotice)
  return { keys: all.flatMap((credential) => (credential.kind === "rsa" ? [credential.key] : [])), all }
}

/**
 * Adds recipients. RSA keys get the secret that opened the image; if a passphrase did, a secret and keyslot of their own.
 * The payload is not touched.
 *
 * @throws KeyError `ERR_KEY_RECIPIENT`, `ERR_KEY_MISSING` and others; SifError `ERR_SIF_FULL`, `ERR_SIF_BUSY`; LuksError;
 * EnvironmentError; RangeError for costs that cannot be had.
 */
export async function addRecipients(path: string, options: AddRecipientsOptions): Promise<RecipientChange> {
  const { onNotice = () => undefined, anonymous = false } = options
  const kdf = passphraseKdfFor(options.passphraseKdf)
  const { keys, all } = await publicKeys(options.recipients, onNotice)
  try {
    if (all.length === 0)
      throw new KeyError("ERR_KEY_MISSING", `${path}: no recipient to add was given`, { path })
    const passphrases = all.flatMap((one) => (one.kind === "passphrase" ? [one.passphrase.bytes] : []))
    return await withOpened(path, options, async (changing) => {
      const { change, lock, opening, messages } = changing
      for (const key of keys)
        if (messages.current.some(({ name }) => name === fingerprint(key)))
          refuse(change.image, `${fingerprint(key)} is a recipient already`)
      using prepared = await lock.add(keys.length, passphrases, kdf)
      const { secret, mark } = prepared
      const from: MessageSecret = { secret, mark: mark ?? "", volumeKey: dataKey(opening.unlocked).bytes }
      const added = keys.map((key) => cryptoMessage(key, from, anonymous))
      const unmarked = messages.current.filter(({ extra }) => messageMark(extra) === undefined)
      // A peer's messages for the same secret get its mark.
      const adopt = mark === undefined ? [] : unmarked
      const adopted: CryptoMessage[] = []
      for (const { name, extra, ...message } of adopt)
        adopted.push({
          name,
          data: await change.image.data({ name, extra, ...message }, MAX_MESSAGE_SIZE),
          extra: cryptoMessageExtra({ mark: from.mark }),
        })
      await carryOut(changing, {
        messages: [
          ...adopted,
          ...(mark === undefined ? added.map((one) => ({ ...one, extra: cryptoMessageExtra() })) : added),
        ],
        ...(adopt.length > 0 || messages.current[0] === undefined ? {} : { after: messages.current[0].slot }),
        lock: prepared,
        remove: adopt,
      })
    })
  } finally {
    wipeCredentials(all)
  }
}

/** Whose message it is, and whether the new one says so. */
interface Staying {
  readonly key: KeyObject
  readonly anonymous: boolean
}

/**
 * The public keys behind messages, in their order. A key in the image counts if it has the name of its message, and if
 * whoever wrote it could open the image; all others have to be given.
 */
async function keysOf(
  changing: Changing,
  staying: readonly SifObject[],
  given: readonly KeyObject[],
): Promise<Staying[]> {
  const { change, opening, onNotice } = changing
  const { image } = change
  const unused = new Map(given.map((key) => [fingerprint(key), key]))
  const found: (KeyObject | undefined)[] = []
  for (const message of staying) {
    const named = unused.get(message.name)
    if (named !== undefined) unused.delete(message.name)
    const own = opening.recipient?.message === message ? opening.recipient.key : undefined
    if (own !== undefined) unused.delete(fingerprint(own))
    found.push(named ?? own ?? (await trustedKey(changing, message)))
  }
  const nameless = staying.filter((message, index) => found[index] === undefined && !isNamed(message))
  const rest = [...unused.values()]
  if (rest.length > nameless.length)
    refuse(image, `${rest.map(fingerprint).join(", ")} is no recipient who stays`)
  const lacking = staying.filter((message, index) => found[index] === undefined && isNamed(message))
  if (lacking.length > 0 || rest.length < nameless.length) {
    const names = [...lacking.map(({ name }) => name), ...nameless.map(({ id }) => `object ${id}`)]
    throw new KeyError(
      "ERR_KEY_MISSING",
      `${image.path}: the public key of each recipient who stays is needed, and is not in the image: ${names.join(", ")}`,
      { path: image.path },
    )
  }
  return staying.map((message, index) => {
    const key = found[index] ?? rest.shift()
    if (key === undefined) throw new TypeError("no key")
    checkRecipient(key, `${image.path}: object ${message.id}`)
    const anonymous = !isNamed(message) && messageMark(message.extra) !== undefined
    if (!anonymous && !isNamed(message)) onNotice(`object ${message.id} is now named: ${fingerprint(key)}`)
    return { key, anonymous }
  })
}

function isNamed({ name }: SifObject): boolean {
  return parseFingerprint(name) !== undefined
}

async function trustedKey(changing: Changing, message: SifObject): Promise<KeyObject | undefined> {
  const { change, opening, onNotice } = changing
  const key = await keyBehind(change.image, message)
  if (key === undefined) return undefined
  const proof = recipientProof(key, dataKey(opening.unlocked).bytes)
  if (message.name === fingerprint(key) && timingSafeEqual(proof, messageProof(message.extra))) return key
  onNotice(
    `object ${message.id}: the public key in it (${fingerprint(key)}) was not put there by a recipient, and is not used`,
  )
  return undefined
}

/** A new secret for those who stay, and for nobody else. */
async function rotate(
  changing: Changing,
  staying: readonly SifObject[],
  given: readonly KeyObject[],
): Promise<void> {
  const { lock, messages, opening } = changing
  const keys = await keysOf(changing, staying, given)
  using prepared = await lock.replace(keys.length > 0)
  const { secret, mark = "" } = prepared
  const from: MessageSecret = { secret, mark, volumeKey: dataKey(opening.unlocked).bytes }
  await carryOut(changing, {
    messages: keys.map(({ key, anonymous }) => cryptoMessage(key, from, anonymous)),
    lock: prepared,
    remove: messages.current,
  })
  changing.onNotice(
    "whoever kept the volume key of this image can still read its payload: `sifcrypt reencrypt IMAGE OUTPUT` makes a new one",
  )
}

/**
 * Replaces the secret of all RSA recipients: what somebody kept of the old one opens nothing. Passphrases stay as they are,
 * and so does the volume key: the payload is not touched.
 *
 * @throws As {@link addRecipients}; KeyError `ERR_KEY_MISSING` lists whose public key is needed.
 */
export async function rotateRecipients(
  path: string,
  options: RotateRecipientsOptions = {},
): Promise<RecipientChange> {
  const { onNotice = () => undefined } = options
  const { keys, all } = await publicKeys(options.recipients ?? {}, onNotice)
  wipeCredentials(all)
  return await withOpened(path, options, async (changing) => {
    const { change, messages } = changing
    if (messages.current.length === 0) refuse(change.image, "it has no RSA recipient")
    await rotate(changing, messages.current, keys)
  })
}

/** The message that somebody means. */
async function findRecipient(changing: Changing, options: RemoveRecipientOptions): Promise<SifObject> {
  const { change, messages, opening, onNotice } = changing
  const { image } = change
  const { recipient = "", recipientFile } = options
  const shown = recipientFile ?? recipient
  let query = parseFingerprint(recipient)
  if (recipientFile !== undefined) {
    const { keys } = await publicKeys({ pemPaths: [recipientFile] }, onNotice)
    query = keys[0] === undefined ? undefined : parseFingerprint(fingerprint(keys[0]))
  }
  const found: SifObject[] = []
  for (const message of messages.current) {
    const name = parseFingerprint(message.name)
    const own = opening.recipient?.message === message ? opening.recipient.key : undefined
    const key = own ?? (await keyBehind(image, message))
    const meant =
      query === undefined
        ? String(message.id) === recipient
        : (key !== undefined && isNamedBy(key, query)) ||
          (name?.hash === query.hash && name.digest.equals(query.digest))
    if (meant) found.push(message)
  }
  const [first, second] = found
  if (second !== undefined)
    refuse(
      image,
      `${shown} names ${found.length} recipients: objects ${found.map(({ id }) => id).join(", ")}`,
    )
  return first ?? refuse(image, `${shown} is none of its RSA recipients`)
}

/**
 * Removes a recipient, and replaces the secret of those who stay, so that what the removed one kept of it opens nothing. A
 * passphrase goes with its keyslot. The volume key stays what it is: the payload is not touched.
 *
 * @throws As {@link rotateRecipients}; KeyError `ERR_KEY_RECIPIENT` for nobody, for several, or for the last one.
 */
export async function removeRecipient(
  path: string,
  options: RemoveRecipientOptions,
): Promise<RecipientChange> {
  const { onNotice = () => undefined, keyslot } = options
  const { keys, all } = await publicKeys(options.recipients ?? {}, onNotice)
  wipeCredentials(all)
  return await withOpened(path, options, async (changing) => {
    const { change, lock, messages } = changing
    const { image } = change
    if (keyslot !== undefined) {
      using prepared = await lock.removeKeyslot(keyslot)
      await carryOut(changing, { messages: [], lock: prepared, remove: [] })
      return
    }
    const gone = await findRecipient(changing, options)
    const staying = messages.current.filter((message) => message !== gone)
    if (staying.length === 0 && !lock.hasPassphrase) refuse(image, `object ${gone.id} is the last recipient`)
    await rotate(changing, staying, keys)
  })
}
