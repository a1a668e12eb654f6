// Who stays when an image gets another secret or another key. Nothing in the image may decide that: whoever could open it
// once has its volume key for ever, so he can write whatever a recipient can write: messages, keyslots, a whole header that
// was in force when he was in. So those stay who are known from elsewhere:
//
//   opened      the credential that opens the image now
//   listed      named by the caller; then nobody else stays
//   signed      in an image that a signer vouches for whom the caller requires by name
//   confirmed   shown to somebody, who said yes
import * as is from "../arguments.ts"
import type { KeyObject } from "node:crypto"
import { KeyError } from "../errors.ts"
import { fingerprint, parseFingerprint } from "../key/fingerprint.ts"
import { checkRecipient } from "../key/key-file.ts"
import { verifyOptions, verifySif, type VerifyOptions } from "../signing/verify.ts"
import type { SifObject, SifPartition } from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import { Credentials, resolveRecipients, wipeCredentials, type CredentialSource } from "./credentials.ts"
import { keyBehind, recipientsIn, type Recipient } from "./recipient-list.ts"
import type { Opening } from "./encryption-format.ts"

/** How it is known who stays. */
export interface StayOptions {
  /**
   * Who stays besides whoever opens the image, and nobody else does: fingerprints (`SHA256:…`) of public keys or of passphrases'
   * keyslots as {@link listRecipients} has them, or files with public keys. Default: everybody, if all of them are known
   * otherwise.
   */
  readonly keep?: readonly string[] | undefined
  /** The image is verified first. If `require` names signers, whoever they signed for stays. */
  readonly verify?: VerifyOptions
  /** Shown who would stay of whom nothing is known; false: nothing is changed. */
  readonly onConfirm?: ((unknown: readonly Recipient[]) => Promise<boolean>) | undefined
  /** Things worth knowing that are no errors. */
  readonly onNotice?: ((text: string) => void) | undefined
}

export const stayRows: is.Rows<StayOptions> = {
  keep: is.list(is.text),
  verify: is.notUndefined(verifyOptions),
  onConfirm: is.callback,
  onNotice: is.callback,
}

/** An image that was opened. */
export interface OpenedImage {
  readonly image: SifImage
  readonly partition: SifPartition
  readonly opening: Opening
}

/** Of whom there is a choice. */
export interface Candidates {
  readonly messages: readonly SifObject[]
  /** Of passphrases, and the one that opened the image. */
  readonly keyslots: readonly number[]
  readonly openedBy: number | undefined
}

/** One who stays. */
export interface StayingKey {
  readonly key: KeyObject
  /** That was for this key. */
  readonly message: SifObject
}

/** Who stays. */
export interface Staying {
  readonly keys: readonly StayingKey[]
  readonly keyslots: readonly number[]
}

/** Public keys among credentials. */
export async function publicKeys(
  sources: readonly CredentialSource[],
  onNotice: (text: string) => void,
): Promise<readonly KeyObject[]> {
  using credentials = new Credentials(sources)
  const all = await resolveRecipients(credentials, onNotice)
  wipeCredentials(all)
  return all.flatMap((credential) => (credential.kind === "rsa" ? [credential.key] : []))
}

/** What the caller listed: public keys, and fingerprints in one form. */
interface List {
  readonly keys: ReadonlyMap<string, KeyObject>
  readonly fingerprints: ReadonlySet<string>
}

/** @param given - Public keys of those who stay. */
async function readList(
  { keep = [], onNotice = () => undefined }: StayOptions,
  given: readonly KeyObject[],
): Promise<List> {
  const fingerprints = new Set<string>()
  const files: CredentialSource[] = []
  for (const one of keep) {
    const query = parseFingerprint(one)
    if (query === undefined && !/^SHA(?:1|256):/.test(one)) files.push({ key: { file: one } })
    else if (query?.hash === "sha256")
      fingerprints.add(`SHA256:${query.digest.toString("base64").replaceAll("=", "")}`)
    else throw new KeyError("ERR_KEY_RECIPIENT", `${one} is no whole SHA-256 fingerprint`)
  }
  const keys = [...given, ...(files.length === 0 ? [] : await publicKeys(files, onNotice))]
  return { keys: new Map(keys.map((key) => [fingerprint(key), key])), fingerprints }
}

/** Does the message say whose it is? */
export function isNamed({ name }: SifObject): boolean {
  return parseFingerprint(name) !== undefined
}

/** A message and whose it is, as far as that is known. */
interface Addressed {
  readonly message: SifObject
  /** undefined: the image does not have it, or not the one that it names. */
  key: KeyObject | undefined
}

/** A passphrase's keyslot. */
interface Keyslot {
  readonly id: number
  readonly name: string
}

/** As an error or a notice names them. */
function namesOf(addressed: readonly Addressed[], keyslots: readonly Keyslot[] = []): string {
  return [
    ...addressed.map(({ message }) =>
      isNamed(message) ? `${message.name} (object ${message.id})` : `object ${message.id}`,
    ),
    ...keyslots.map(({ id, name }) => `passphrase ${name} (keyslot ${id})`),
  ].join(", ")
}

function requireKeys(path: string, addressed: readonly Addressed[]): void {
  const lacking = addressed.filter(({ key }) => key === undefined)
  if (lacking.length > 0)
    throw KeyError.at(
      path,
      "ERR_KEY_MISSING",
      `the public key of each recipient who stays is needed, and is not in the image: ${namesOf(lacking)}`,
    )
}

/** Each key once. */
function stayingKeys(path: string, addressed: readonly Addressed[]): StayingKey[] {
  const byName = new Map<string, StayingKey>()
  for (const { key, message } of addressed) {
    if (key === undefined || byName.has(fingerprint(key))) continue
    checkRecipient(key, `${path}: object ${message.id}`)
    byName.set(fingerprint(key), { key, message })
  }
  return [...byName.values()]
}

/** The key in a message that names it: what is shown, listed or signed is the name. */
async function keyNamed(image: SifImage, message: SifObject): Promise<KeyObject | undefined> {
  const key = await keyBehind(image, message)
  return key !== undefined && fingerprint(key) === message.name ? key : undefined
}

/** The messages, each with its key: that of the opener, one that is listed, or the one in it. */
async function addressedOf(
  { image, opening }: OpenedImage,
  messages: readonly SifObject[],
  list: List,
): Promise<{ readonly addressed: readonly Addressed[]; readonly spare: readonly KeyObject[] }> {
  const { recipient } = opening
  const addressed: Addressed[] = []
  const unused = new Map(list.keys)
  for (const message of messages) {
    const own = recipient?.message.id === message.id ? recipient.key : undefined
    const key = own ?? list.keys.get(message.name) ?? (await keyNamed(image, message))
    if (key !== undefined) unused.delete(fingerprint(key))
    addressed.push({ message, key })
  }
  // They all get the same secret: which of those without a name is whose does not matter.
  const spare = [...unused.values()]
  for (const one of addressed) if (one.key === undefined && !isNamed(one.message)) one.key = spare.shift()
  return { addressed, spare }
}

/**
 * IDs of those objects that are as a signer signed them whom the caller requires by name: anybody else's word is nobody's.
 * An older image has an older signature, so it is told who signed, and when.
 */
async function signedOf(
  image: SifImage,
  objects: readonly SifObject[],
  { verify, onNotice = () => undefined }: StayOptions,
): Promise<ReadonlySet<number>> {
  const { require } = verify ?? {}
  const ids = objects.flatMap(({ id, group }) => (group === 0 ? [] : [id]))
  if (require === undefined || typeof require === "string" || ids.length === 0) return new Set()
  const { signatures } = await verifySif(image, { ...verify, objects: ids })
  const good = signatures.filter(
    ({ kind, status, signer }) =>
      kind !== "legacy" && status === "valid" && signer !== undefined && require.includes(signer),
  )
  for (const { signer = "", time } of good)
    onNotice(`kept as they were signed by ${signer}${time === undefined ? "" : `, ${time.toISOString()}`}`)
  return new Set(good.flatMap((signature) => signature.objects))
}

/**
 * Finds out who stays.
 *
 * @param given - Public keys of those who stay: they are listed, as with `keep`.
 * @throws KeyError `ERR_KEY_UNCONFIRMED` names those of whom nothing is known, `ERR_KEY_MISSING` those whose public keys are
 * needed, `ERR_KEY_RECIPIENT` who is listed and not there.
 */
export async function whoStays(
  opened: OpenedImage,
  candidates: Candidates,
  options: StayOptions,
  given: readonly KeyObject[] = [],
): Promise<Staying> {
  const { image, partition, opening } = opened
  const { keep, onConfirm, onNotice = () => undefined } = options
  const { path } = image
  const shown = await recipientsIn(image, opening)
  const keyslots = candidates.keyslots.map((id): Keyslot => {
    const row = shown.find(({ kind, keyslot }) => kind === "passphrase" && keyslot === id)
    return { id, name: row?.keyslotFingerprint ?? "" }
  })
  const list = await readList(options, given)
  const { addressed, spare } = await addressedOf(opened, candidates.messages, list)

  const there = new Set([
    ...addressed.map(({ key, message }) => (key === undefined ? message.name : fingerprint(key))),
    ...keyslots.map(({ name }) => name),
  ])
  const absent = [...spare.map(fingerprint), ...[...list.fingerprints].filter((name) => !there.has(name))]
  if (absent.length > 0)
    throw KeyError.at(path, "ERR_KEY_RECIPIENT", `${absent.join(", ")} is no recipient who stays`)

  const opener = opening.recipient === undefined ? undefined : fingerprint(opening.recipient.key)
  const isKnown = (name: string): boolean =>
    name === opener || list.keys.has(name) || list.fingerprints.has(name)
  const unknown = addressed.filter(({ key }) => key === undefined || !isKnown(fingerprint(key)))
  const unknownKeyslots = keyslots.filter(({ id, name }) => id !== candidates.openedBy && !isKnown(name))
  if (keep !== undefined || given.length > 0) {
    requireKeys(
      path,
      unknown.filter(({ message }) => list.fingerprints.has(message.name)),
    )
    if (unknown.length + unknownKeyslots.length > 0)
      onNotice(`not listed, and not kept: ${namesOf(unknown, unknownKeyslots)}`)
    return {
      keys: stayingKeys(
        path,
        addressed.filter((one) => !unknown.includes(one)),
      ),
      keyslots: keyslots.filter((one) => !unknownKeyslots.includes(one)).map(({ id }) => id),
    }
  }

  requireKeys(path, unknown)
  const asked = unknown.map(({ message }) => message)
  const signed = await signedOf(image, unknownKeyslots.length === 0 ? asked : [...asked, partition], options)
  const left = unknown.filter(({ message }) => !signed.has(message.id))
  const leftKeyslots = signed.has(partition.id) ? [] : unknownKeyslots
  if (left.length + leftKeyslots.length > 0) {
    const rows = shown.filter(({ kind, id, keyslot }) =>
      kind === "rsa"
        ? left.some(({ message }) => message.id === id)
        : leftKeyslots.some((one) => one.id === keyslot),
    )
    if ((await onConfirm?.(rows)) !== true)
      throw KeyError.at(
        path,
        "ERR_KEY_UNCONFIRMED",
        `nothing but the image says that these are to stay: ${namesOf(left, leftKeyslots)}`,
      )
  }
  return { keys: stayingKeys(path, addressed), keyslots: candidates.keyslots }
}
