// Who stays when an image gets another secret or another key. Nothing in the image may decide that: whoever could open it
// once has its volume key for ever, so he can write whatever a recipient can write: messages, keyslots, a whole header that
// was in force when he was in. So those stay who are known from elsewhere:
//
//   opened      the credential that opens the image now
//   listed      named by the caller; then nobody else stays
//   signed      in an image that a signer vouches for whom the caller requires by name
//   confirmed   shown to somebody, who said yes
import type { KeyObject } from "node:crypto"
import { KeyError } from "../errors.ts"
import { fingerprint, parseFingerprint } from "../key/fingerprint.ts"
import { checkRecipient } from "../key/key-file.ts"
import { verifySif, type VerifyOptions } from "../signing/verify.ts"
import type { SifObject, SifPartition } from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import { resolveRecipients, wipeCredentials, type CredentialOptions } from "./credentials.ts"
import { keyBehind, recipientsIn, type Recipient } from "./recipient-list.ts"
import type { Opening } from "./unlock.ts"

/** How it is known who stays. */
export interface StayOptions {
  /**
   * Who stays besides whoever opens the image, and nobody else does: fingerprints (`SHA256:…`) of public keys or of passphrases'
   * keyslots as {@link listRecipients} has them, or files with public keys. Default: everybody, if all of them are known
   * otherwise.
   */
  readonly keep?: readonly string[]
  /** The image is verified first. If `require` names signers, whoever they signed for stays. */
  readonly verify?: VerifyOptions
  /** Shown who would stay of whom nothing is known; false: nothing is changed. */
  readonly onConfirm?: (unknown: readonly Recipient[]) => Promise<boolean>
  /** Things worth knowing that are no errors. */
  readonly onNotice?: (text: string) => void
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
  options: CredentialOptions,
  onNotice: (text: string) => void,
): Promise<readonly KeyObject[]> {
  const all = await resolveRecipients({ ...options, env: {} }, onNotice)
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
  const pemPaths: string[] = []
  for (const one of keep) {
    const query = parseFingerprint(one)
    if (query === undefined && !/^SHA(?:1|256):/.test(one)) pemPaths.push(one)
    else if (query?.hash === "sha256")
      fingerprints.add(`SHA256:${query.digest.toString("base64").replaceAll("=", "")}`)
    else throw new KeyError("ERR_KEY_RECIPIENT", `${one} is no whole SHA-256 fingerprint`)
  }
  const keys = [...given, ...(pemPaths.length === 0 ? [] : await publicKeys({ pemPaths }, onNotice))]
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

/** As an error or a notice names them. */
function names(messages: readonly SifObject[], keyslots: readonly (string | number)[] = []): string {
  return [
    ...messages.map((message) =>
      isNamed(message) ? `${message.name} (object ${message.id})` : `object ${message.id}`,
    ),
    ...keyslots.map((keyslot) => `passphrase ${keyslot}`),
  ].join(", ")
}

/** IDs of those objects that are as a signer signed them whom the caller requires by name: anybody else's word is nobody's. */
async function signedOf(
  image: SifImage,
  objects: readonly SifObject[],
  verify: VerifyOptions | undefined,
): Promise<ReadonlySet<number>> {
  const { require } = verify ?? {}
  const ids = objects.flatMap(({ id, group }) => (group === 0 ? [] : [id]))
  if (require === undefined || typeof require === "string" || ids.length === 0) return new Set()
  const { signatures } = await verifySif(image, { ...verify, objects: ids })
  const good = signatures.filter(
    ({ kind, status, signer }) =>
      kind !== "legacy" && status === "valid" && signer !== undefined && require.includes(signer),
  )
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
  const { onNotice = () => undefined } = options
  const { path } = image
  const list = await readList(options, given)
  const isList = options.keep !== undefined || given.length > 0
  const shown = await recipientsIn(image, opening.unlocked)
  const keyslotName = (keyslot: number): string =>
    shown.find((one) => one.kind === "passphrase" && one.keyslot === keyslot)?.keyslotFingerprint ?? ""
  const opener = opening.recipient
  const openerName = opener === undefined ? undefined : fingerprint(opener.key)

  const unused = new Map(list.keys)
  const addressed: Addressed[] = []
  for (const message of candidates.messages) {
    const own = opener?.message.id === message.id ? opener.key : undefined
    const key = own ?? list.keys.get(message.name) ?? (await keyNamed(image, message))
    if (key !== undefined) unused.delete(fingerprint(key))
    addressed.push({ message, key })
  }
  // They all get the same secret: which of them is whose does not matter.
  const spare = [...unused.values()]
  for (const one of addressed) if (one.key === undefined && !isNamed(one.message)) one.key = spare.shift()
  const there = new Set([
    ...addressed.map(({ key, message }) => (key === undefined ? message.name : fingerprint(key))),
    ...candidates.keyslots.map(keyslotName),
  ])
  const absent = [...spare.map(fingerprint), ...[...list.fingerprints].filter((one) => !there.has(one))]
  if (absent.length > 0)
    throw new KeyError("ERR_KEY_RECIPIENT", `${path}: ${absent.join(", ")} is no recipient who stays`, {
      path,
    })

  const isKnown = (name: string): boolean =>
    name === openerName || list.keys.has(name) || list.fingerprints.has(name)
  const unknown = addressed.filter(({ key }) => key === undefined || !isKnown(fingerprint(key)))
  const unknownKeyslots = candidates.keyslots.filter(
    (keyslot) => keyslot !== candidates.openedBy && !isKnown(keyslotName(keyslot)),
  )
  const distinct = (all: readonly Addressed[]): StayingKey[] => {
    const byName = new Map<string, StayingKey>()
    for (const { key, message } of all) {
      if (key === undefined || byName.has(fingerprint(key))) continue
      checkRecipient(key, `${path}: object ${message.id}`)
      byName.set(fingerprint(key), { key, message })
    }
    return [...byName.values()]
  }
  const requireKeys = (some: readonly Addressed[]): void => {
    const lacking = some.filter(({ key }) => key === undefined).map(({ message }) => message)
    if (lacking.length > 0)
      throw new KeyError(
        "ERR_KEY_MISSING",
        `${path}: the public key of each recipient who stays is needed, and is not in the image: ${names(lacking)}`,
        { path },
      )
  }
  if (isList) {
    requireKeys(unknown.filter(({ message }) => list.fingerprints.has(message.name)))
    if (unknown.length + unknownKeyslots.length > 0)
      onNotice(
        `not listed, and not kept: ${names(
          unknown.map(({ message }) => message),
          unknownKeyslots.map((keyslot) => `${keyslotName(keyslot)} (keyslot ${keyslot})`),
        )}`,
      )
    return {
      keys: distinct(addressed.filter((one) => !unknown.includes(one))),
      keyslots: candidates.keyslots.filter((keyslot) => !unknownKeyslots.includes(keyslot)),
    }
  }

  requireKeys(unknown)
  const asked = [
    ...unknown.map(({ message }) => message),
    ...(unknownKeyslots.length === 0 ? [] : [partition]),
  ]
  const signed = await signedOf(image, asked, options.verify)
  const left = unknown.map(({ message }) => message).filter(({ id }) => !signed.has(id))
  const leftKeyslots = signed.has(partition.id) ? [] : unknownKeyslots
  if (left.length + leftKeyslots.length > 0) {
    const rows = shown.filter(({ kind, id, keyslot }) =>
      kind === "rsa"
        ? left.some((message) => message.id === id)
        : keyslot !== undefined && leftKeyslots.includes(keyslot),
    )
    if ((await options.onConfirm?.(rows)) !== true)
      throw new KeyError(
        "ERR_KEY_UNCONFIRMED",
        `${path}: nothing but the image says that these are to stay: ${names(
          left,
          leftKeyslots.map((keyslot) => `${keyslotName(keyslot)} (keyslot ${keyslot})`),
        )}`,
        { path },
      )
  }
  return { keys: distinct(addressed), keyslots: candidates.keyslots }
}

/** The key in a message that names it: what is shown, listed or signed is the name. */
async function keyNamed(image: SifImage, message: SifObject): Promise<KeyObject | undefined> {
  const key = await keyBehind(image, message)
  return key !== undefined && fingerprint(key) === message.name ? key : undefined
}
