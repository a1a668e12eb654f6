// Who may open an image, and how that changes without touching what is encrypted. The volume key stays what it is; what changes is
// the secret that opens its lock (LUKS2: a keyslot; gocryptfs: the configuration), and the crypto messages that carry the
// secret to each RSA recipient:
//
//   1  messages of the new secret, then their descriptors on        opens with the old secret
//   2  the lock: new secret in, old ones out                        the commit: opens with the new secret only
//   3  the old messages off and wiped
//
// A message says which lock it is for (its mark), so that after a change that was killed anyone can tell those that count
// from those that do not, and the next change clears up.
import * as is from "../arguments.ts"
import type { KeyObject } from "node:crypto"
import { cryptoMessage, passphraseKdf, passphraseKdfFor, type PassphraseKdf } from "./encrypt.ts"
import type { CryptoMessage, LockChange, Opening } from "./encryption-format.ts"
import { kdfLimits, type LuksPolicy } from "../device/luks-header.ts"
import { KeyError } from "../errors.ts"
import { fingerprint, isNamedBy, parseFingerprint } from "../key/fingerprint.ts"
import { changeSif, type SifChange } from "../file/image-change.ts"
import { Vouched } from "../file/vouched.ts"
import { requireVerified, verifySif } from "../signing/verify.ts"
import { DataType, messageMark, type SifObject, type SifPartition } from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import {
  credentialList,
  Credentials,
  resolveRecipients,
  wipeCredentials,
  type CredentialSource,
} from "./credentials.ts"
import { encryptionOf } from "./partition.ts"
import { keyBehind, recipientsIn, sortMessages, type Messages, type Recipient } from "./recipient-list.ts"
import { isNamed, publicKeys, stayRows, whoStays, type Staying, type StayOptions } from "./staying.ts"
import { findCryptoMessages, openPartition } from "./unlock.ts"

/** What every change of recipients takes. */
export interface RecipientChangeOptions extends StayOptions {
  /** What opens the image now. */
  readonly unlock?: readonly CredentialSource[] | undefined
  /** How much the header may make a key derivation cost. */
  readonly kdfLimits?: NonNullable<LuksPolicy["limits"]> | undefined
  /** As of `open`. */
  readonly onDerivation?: LuksPolicy["onDerivation"]
  /** Remove the signatures that the change breaks; default: they stay, and are reported. */
  readonly removeSignatures?: boolean | undefined
  readonly signal?: AbortSignal | undefined
}

/** Whom {@link addRecipients} adds. */
export interface AddRecipientsOptions extends RecipientChangeOptions {
  /** Public keys and passphrases. */
  readonly recipients: readonly CredentialSource[]
  /** Leave out of the image whose the keys are. */
  readonly anonymous?: boolean | undefined
  /** Default Argon2id with fixed costs. */
  readonly passphraseKdf?: PassphraseKdf | undefined
}

/** What a rotation takes besides. */
export interface RotateRecipientsOptions extends RecipientChangeOptions {
  /** Public keys of those who stay: listed, as with `keep`. */
  readonly recipients?: readonly CredentialSource[] | undefined
}

/** Whom {@link removeRecipient} removes: one of these. */
export interface RemoveRecipientOptions extends RotateRecipientsOptions {
  /** A fingerprint (`SHA256:…`, `SHA1:…`, or hex) or the ID of a crypto message. */
  readonly recipient?: string | undefined
  /** A file with the recipient's key. */
  readonly recipientFile?: string | undefined
  /** A passphrase's keyslot. */
  readonly keyslot?: number | undefined
}

const changeRows: is.Rows<RecipientChangeOptions> = {
  unlock: credentialList,
  kdfLimits,
  onDerivation: is.callback,
  removeSignatures: is.flag,
  signal: is.abortSignal,
  ...stayRows,
}
const rotateRows: is.Rows<RotateRecipientsOptions> = { ...changeRows, recipients: credentialList }
const checkAdd = is.shape<AddRecipientsOptions>({
  ...changeRows,
  recipients: is.required(credentialList),
  anonymous: is.flag,
  passphraseKdf,
})
const checkRotate = is.shape(rotateRows)
const checkRemove = is.shape<RemoveRecipientOptions>({
  ...rotateRows,
  recipient: is.text,
  recipientFile: is.path,
  keyslot: is.count,
})

/** What a change did. */
export interface RecipientChange {
  /** As they are now. */
  readonly recipients: readonly Recipient[]
  /** IDs of signature objects that do not fit the image any more. */
  readonly brokenSignatures: readonly number[]
  readonly signaturesRemoved: boolean
}

function refuse(image: SifImage, what: string): never {
  throw KeyError.at(image.path, "ERR_KEY_RECIPIENT", what)
}

/** An image that is being changed, opened with a credential. */
interface Changing {
  readonly change: SifChange
  readonly partition: SifPartition
  readonly opening: Opening
  readonly messages: Messages
  readonly lock: LockChange
  /** Is the image still the one that was verified? */
  readonly check: () => void
}

async function withOpened(
  path: string,
  options: RecipientChangeOptions,
  use: (changing: Changing) => Promise<void>,
): Promise<RecipientChange> {
  const { unlock, kdfLimits, onDerivation, signal, verify, removeSignatures = false } = options
  signal?.throwIfAborted()
  using credentials = new Credentials(unlock)
  return await changeSif(path, async (change, file) => {
    const { image } = change
    const partition = image.primary()
    if (encryptionOf(partition) === undefined) refuse(image, "the root file system is not encrypted")
    const vouched =
      verify === undefined
        ? undefined
        : await Vouched.for(image, async () => {
            requireVerified(await verifySif(image, signal === undefined ? verify : { signal, ...verify }))
          })
    const policy: LuksPolicy = { limits: kdfLimits, onDerivation }
    const opening = await openPartition(image, partition, credentials, policy, signal)
    try {
      const messages = sortMessages(
        findCryptoMessages(image, partition),
        opening.unlocked.lock.marks,
        opening.recipient?.message,
      )
      const lock = opening.unlocked.change({ ...opening, file, messages: messages.current })
      const before = image.objects
      const check = (): void => {
        vouched?.checkRead()
      }
      await use({ change, partition, opening, messages, lock, check })
      const broken = brokenSignatures(before, change.image.objects, partition)
      if (removeSignatures) await change.remove(broken)
      return {
        recipients: await recipientsIn(change.image),
        brokenSignatures: broken.map(({ id }) => id),
        signaturesRemoved: removeSignatures,
      }
    } finally {
      opening.secret.wipe()
      opening.unlocked.dataKey.wipe()
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

/** Of ours, without a name. What a peer wrote gets one. */
function isAnonymous(message: SifObject): boolean {
  return !isNamed(message) && messageMark(message.extra) !== undefined
}

/** Who opens the image after a change. */
interface Step {
  readonly staying: Staying
  readonly added?: readonly KeyObject[]
  /** Of those who are added. */
  readonly anonymous?: boolean
  readonly passphrases?: readonly Uint8Array[]
  readonly passphraseKdf?: PassphraseKdf | undefined
}

/** Every change is this one: a new secret for those who stay and those who come, and for nobody else. */
async function carryOut(changing: Changing, step: Step): Promise<void> {
  const { change, partition, messages, lock } = changing
  const { staying, added = [], anonymous = false, passphrases = [] } = step
  const keys = [
    ...staying.keys.map(({ key, message }) => ({
      key,
      anonymous: isAnonymous(message),
    })),
    ...added.map((key) => ({ key, anonymous })),
  ]
  using prepared = await lock.replace({
    rsa: keys.length > 0,
    passphrases,
    kdf: passphraseKdfFor(step.passphraseKdf),
    remove: lock.passphrases.filter((keyslot) => !staying.keyslots.includes(keyslot)),
  })
  const wrapped: CryptoMessage[] = keys.map((one) => cryptoMessage(one.key, prepared, one.anonymous))
  changing.check()
  const slots = await change.append(
    wrapped.map((message) => ({
      type: DataType.cryptoMessage,
      group: partition.group,
      link: { to: "object", id: partition.id },
      ...message,
    })),
  )
  await change.switchOn(slots)
  change.commit()
  await prepared.write?.()
  await change.remove([...messages.current, ...messages.stale])
}

/** Who stays of these messages and of the passphrases' keyslots. */
async function stayingOf(
  { change, partition, opening, lock }: Changing,
  options: StayOptions,
  messages: readonly SifObject[],
  given: readonly KeyObject[] = [],
  keyslots: readonly number[] = lock.passphrases,
): Promise<Staying> {
  const { openedBy } = lock
  const opened = { image: change.image, partition, opening }
  const staying = await whoStays(opened, { messages, keyslots, openedBy }, options, given)
  for (const { key, message } of staying.keys)
    if (!isNamed(message) && !isAnonymous(message))
      options.onNotice?.(`object ${message.id} is now named: ${fingerprint(key)}`)
  return staying
}

const VOLUME_KEY_NOTICE =
  "whoever kept the volume key of this image can still read what is in it: `sifcrypt reencrypt IMAGE OUTPUT` makes a new one"

/**
 * Adds recipients. The RSA recipients' secret is replaced, for those who stay and those who come. What is encrypted is not touched.
 *
 * @throws KeyError `ERR_KEY_UNCONFIRMED` names who would stay of whom nothing but the image says so, `ERR_KEY_MISSING` whose
 * public key is needed, `ERR_KEY_RECIPIENT` and others; SignatureError with `verify`; SifError `ERR_SIF_FULL`, `ERR_SIF_BUSY`;
 * LuksError; GocryptfsError; EnvironmentError; RangeError for costs that cannot be had.
 */
export async function addRecipients(path: string, given: AddRecipientsOptions): Promise<RecipientChange> {
  is.path(path, "path")
  const options = checkAdd(given, "options")
  const { onNotice = () => undefined, anonymous = false } = options
  passphraseKdfFor(options.passphraseKdf)
  using credentials = new Credentials(options.recipients)
  const all = await resolveRecipients(credentials, onNotice)
  const added = all.flatMap((one) => (one.kind === "rsa" ? [one.key] : []))
  try {
    if (all.length === 0) throw KeyError.at(path, "ERR_KEY_MISSING", "no recipient to add was given")
    const passphrases = all.flatMap((one) => (one.kind === "passphrase" ? [one.passphrase.bytes] : []))
    return await withOpened(path, options, async (changing) => {
      const { change, messages } = changing
      const staying = await stayingOf(changing, options, messages.current)
      const there = new Set(staying.keys.map(({ key }) => fingerprint(key)))
      for (const name of added.map(fingerprint))
        if (there.has(name)) refuse(change.image, `${name} is a recipient already`)
      await carryOut(changing, {
        staying,
        added,
        anonymous,
        passphrases,
        passphraseKdf: options.passphraseKdf,
      })
    })
  } finally {
    wipeCredentials(all)
  }
}

/**
 * Replaces the secret of all RSA recipients: what somebody kept of the old one opens nothing. Passphrases stay as they are,
 * and so does the volume key: what is encrypted is not touched.
 *
 * @throws As {@link addRecipients}.
 */
export async function rotateRecipients(
  path: string,
  given: RotateRecipientsOptions = {},
): Promise<RecipientChange> {
  is.path(path, "path")
  const options = checkRotate(given, "options")
  const { onNotice = () => undefined, recipients = [] } = options
  const listed = await publicKeys(recipients, onNotice)
  return await withOpened(path, options, async (changing) => {
    const { change, messages } = changing
    if (messages.current.length === 0) refuse(change.image, "it has no RSA recipient")
    await carryOut(changing, { staying: await stayingOf(changing, options, messages.current, listed) })
    onNotice(VOLUME_KEY_NOTICE)
  })
}

/** All messages of the one that somebody means: there may be more than he wrote. */
async function findRecipient(
  { change: { image }, messages, opening }: Changing,
  { recipient = "", recipientFile, onNotice = () => undefined }: RemoveRecipientOptions,
): Promise<readonly SifObject[]> {
  const isOpener = (message: SifObject): boolean => opening.recipient?.message === message
  const nameOf = (key: KeyObject | undefined): string => (key === undefined ? "" : fingerprint(key))
  const byId = messages.current.find(({ id }) => String(id) === recipient)
  let shown = recipient
  if (recipientFile !== undefined)
    shown = nameOf((await publicKeys([{ key: { file: recipientFile } }], onNotice))[0])
  else if (byId !== undefined) shown = isOpener(byId) ? nameOf(opening.recipient?.key) : byId.name
  const query = parseFingerprint(shown)
  const found: SifObject[] = []
  for (const message of messages.current) {
    const name = parseFingerprint(message.name)
    const key = isOpener(message) ? opening.recipient?.key : await keyBehind(image, message)
    const isMeant =
      query !== undefined &&
      ((key !== undefined && isNamedBy(key, query)) ||
        (name?.hash === query.hash && name.digest.equals(query.digest)))
    if (isMeant || message === byId) found.push(message)
  }
  if (found.length === 0) refuse(image, `${recipientFile ?? recipient} is none of its RSA recipients`)
  return found
}

/**
 * Removes a recipient, and replaces the secret of those who stay, so that what the removed one kept of it opens nothing. A
 * passphrase goes with its keyslot. The volume key stays what it is: what is encrypted is not touched.
 *
 * @throws As {@link addRecipients}; KeyError `ERR_KEY_RECIPIENT` for nobody, or for the last one.
 */
export async function removeRecipient(path: string, given: RemoveRecipientOptions): Promise<RecipientChange> {
  is.path(path, "path")
  const options = checkRemove(given, "options")
  const { onNotice = () => undefined, keyslot, recipients = [] } = options
  const listed = await publicKeys(recipients, onNotice)
  return await withOpened(path, options, async (changing) => {
    const { change, lock, messages } = changing
    if (keyslot !== undefined) lock.requirePassphrase(keyslot)
    const gone = keyslot === undefined ? await findRecipient(changing, options) : []
    const staying = await stayingOf(
      changing,
      options,
      messages.current.filter((message) => !gone.includes(message)),
      listed,
      lock.passphrases.filter((one) => one !== keyslot),
    )
    if (staying.keys.length + staying.keyslots.length === 0)
      refuse(
        change.image,
        keyslot === undefined
          ? `object ${gone.map(({ id }) => id).join(", ")} is the last recipient`
          : `keyslot ${keyslot} is all that opens it`,
      )
    await carryOut(changing, { staying })
    onNotice(VOLUME_KEY_NOTICE)
  })
}
