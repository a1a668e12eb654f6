// OpenPGP key rings: listed, added to, exported from, removed from. A ring is a public and a secret file of packets, in
// Apptainer's form. Writers wait for each other, and a file is replaced whole or not at all.
import * as is from "../arguments.ts"
import { randomBytes } from "node:crypto"
import { constants } from "node:fs"
import { mkdir, open, readdir, rename, rm, type FileHandle } from "node:fs/promises"
import path from "node:path"
import type { Key, PrivateKey, PublicKey } from "openpgp"
import { readBounded } from "../bounded-file.ts"
import { lockFolder, type HeldFolder } from "../native/lock.ts"
import { SignatureError } from "../errors.ts"
import { keysIn, splitKeys } from "./key-packets.ts"
import { weaknessOf } from "./key-policy.ts"
import { KeyStretching, MAX_KEYRING_SIZE } from "./openpgp.ts"
import {
  checkGlobalRing,
  checkOwnRing,
  globalRing,
  keysFolder,
  peerRings,
  ringIn,
  type RingEnvironment,
  type RingFiles,
} from "./rings.ts"

const OWN_FOLDER_MODE = 0o700
const OWN_FILE_MODE = 0o600
const GLOBAL_FOLDER_MODE = 0o755
const GLOBAL_FILE_MODE = 0o644

/**
 * What a key may be used for now: an expired or revoked one verifies and signs nothing; `unusable`: nothing binds it, or others
 * than its owner could sign with it.
 */
export type KeyStatus = "good" | "expired" | "revoked" | "unusable"

/** What a key ring has of one key. */
export interface KeyFacts {
  /** Of the primary key, whole: upper-case hexadecimal. */
  readonly fingerprint: string
  /** `Name (comment) <email>`, as their owner writes them: nobody else vouches for them. */
  readonly userIds: readonly string[]
  readonly created: Date
  /** undefined: never. */
  readonly expires: Date | undefined
  readonly status: KeyStatus
  /** `RSA`, `Ed25519`, … */
  readonly algorithm: string
  /** Of an RSA key's modulus; else undefined. */
  readonly bits: number | undefined
  /** Of a key in a secret file: is it under a password? Of a public key `none`. */
  readonly secret: "none" | "protected" | "plain"
}

/** One file of keys. */
export interface RingListing {
  readonly path: string
  /** `own` is written by the commands here; those of the peers are used in place. */
  readonly kind: "own" | "global" | "peer"
  readonly keys: readonly KeyFacts[]
  /** Keys of a version or algorithm that is not known here. They stay as they are. */
  readonly unreadable: number
}

/** Which ring is meant. */
export interface RingOptions {
  /** The system's, which root writes; default: the user's own. */
  readonly global?: boolean | undefined
  /** Folder of the user's own ring, instead of the one that `env` names. */
  readonly folder?: string | undefined
  /** For `SIFCRYPT_KEYSDIR` and `HOME`; default `process.env`. */
  readonly env?: RingEnvironment | undefined
}

export const ringRows: is.Rows<RingOptions> = { global: is.flag, folder: is.path, env: is.variables }
export const checkRing: is.Check<RingOptions> = is.shape(ringRows)

/** A key as it lies in a file. */
interface StoredKey {
  readonly bytes: Buffer
  /** undefined: it cannot be read. */
  readonly key: Key | undefined
}

const named: Readonly<Record<string, string>> = {
  rsaEncryptSign: "RSA",
  rsaSign: "RSA",
  dsa: "DSA",
  ed25519: "Ed25519",
  ed448: "Ed448",
  ed25519Legacy: "Ed25519",
  nistP256: "NIST P-256",
  nistP384: "NIST P-384",
  nistP521: "NIST P-521",
}

/** @internal A fingerprint as reports have it. */
export function fingerprintOf(key: Key): string {
  return key.getFingerprint().toUpperCase()
}

/**
 * A full fingerprint, in any spelling: 40 hexadecimal digits, or the 64 of a version 6 key.
 *
 * @throws SignatureError `ERR_KEYRING_NO_KEY` for anything shorter: key IDs can be forged.
 */
export function parseFingerprint(fingerprint: string): string {
  const digits = is
    .text(fingerprint, "fingerprint")
    .replaceAll(/[\s:]/g, "")
    .replace(/^0x/i, "")
    .toUpperCase()
  if (/^(?:[0-9A-F]{40}|[0-9A-F]{64})$/.test(digits)) return digits
  const short = /^(?:[0-9A-F]{8}|[0-9A-F]{16})$/.test(digits)
  throw new SignatureError(
    "ERR_KEYRING_NO_KEY",
    short
      ? `${fingerprint} is a short key ID, which can be forged: a full fingerprint of 40 digits is needed`
      : `${fingerprint} is no fingerprint: 40 hexadecimal digits are needed`,
  )
}

async function readKeyBytes(bytes: Buffer): Promise<Key | undefined> {
  const { readKey } = await import("openpgp")
  try {
    return await readKey({ binaryKey: bytes })
  } catch {
    return undefined // of a kind that this library does not know
  }
}

/** @internal Is it good now? What makes it so is signed by the key itself. */
export async function statusOf(key: Key): Promise<{ status: KeyStatus; expires: Date | undefined }> {
  let expires: Date | undefined
  try {
    const time = await key.getExpirationTime()
    if (time instanceof Date) expires = time
  } catch {
    // No valid user ID: said below.
  }
  try {
    if (await key.isRevoked()) return { status: "revoked", expires }
    if (expires !== undefined && expires.getTime() <= Date.now()) return { status: "expired", expires }
    await key.verifyPrimaryKey()
    return { status: weaknessOf(key) === undefined ? "good" : "unusable", expires }
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error)
    if (/revoked/i.test(text)) return { status: "revoked", expires }
    return { status: /expired/i.test(text) ? "expired" : "unusable", expires }
  }
}

/** Every secret part is under a password? GnuPG leaves the primary key's away where only a subkey is used. */
function secretOf(key: Key): KeyFacts["secret"] {
  if (!key.isPrivate()) return "none"
  const plain = key.getKeys().some(({ keyPacket }) => {
    const packet = keyPacket as Partial<{ isDummy(): boolean }> & { readonly privateParams?: object | null }
    return packet.isDummy?.() !== true && packet.privateParams !== null && packet.privateParams !== undefined
  })
  return plain ? "plain" : "protected"
}

/** @internal What is told of a key. */
export async function factsOf(key: Key): Promise<KeyFacts> {
  const { algorithm, bits, curve } = key.getAlgorithmInfo()
  const name = curve ?? algorithm
  return {
    fingerprint: fingerprintOf(key),
    userIds: key.getUserIDs(),
    created: key.getCreationTime(),
    ...(await statusOf(key)),
    algorithm: named[name] ?? name,
    bits,
    secret: secretOf(key),
  }
}

function ringOf(options: RingOptions): RingFiles {
  if (options.global === true) return globalRing()
  return ringIn(options.folder ?? keysFolder(options.env ?? process.env))
}

function check(files: RingFiles, options: RingOptions): void {
  if (options.global === true) checkGlobalRing(files)
  else checkOwnRing(files)
}

function failed(file: string, cause: unknown): SignatureError {
  const { code, message } = cause as NodeJS.ErrnoException
  const why: Readonly<Record<string, string>> = {
    EACCES: "permission denied",
    EROFS: "the file system is read-only",
    ENOSPC: "no space left on the device",
    EDQUOT: "the disk quota is used up",
  }
  return new SignatureError("ERR_KEYRING_WRITE", `cannot write ${file}: ${why[code ?? ""] ?? message}`, {
    path: file,
    cause,
  })
}

async function readRingFile(file: string): Promise<Buffer> {
  try {
    return await readBounded(file, MAX_KEYRING_SIZE, { flags: constants.O_NOFOLLOW })
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException
    if (code === "ENOENT") return Buffer.alloc(0)
    throw new SignatureError("ERR_SIGNATURE_KEYRING", `cannot read the key ring ${file}: ${message}`, {
      path: file,
      cause,
    })
  }
}

async function readStored(file: string): Promise<StoredKey[]> {
  const stored: StoredKey[] = []
  for (const bytes of splitKeys(await readRingFile(file), file))
    stored.push({ bytes, key: await readKeyBytes(bytes) })
  return stored
}

/** Replaces a file of the ring; what a killed writer left of its own is cleared up, since whoever writes holds the lock. */
async function replaceFile(folder: FileHandle, file: string, bytes: Buffer, mode: number): Promise<void> {
  const directory = path.dirname(file)
  const prefix = `.${path.basename(file)}.`
  for (const name of await readdir(directory))
    if (name.startsWith(prefix)) await rm(path.join(directory, name), { force: true })
  const temporary = path.join(directory, `${prefix}${randomBytes(12).toString("hex")}`)
  try {
    const flags = constants.O_CREAT | constants.O_EXCL | constants.O_WRONLY | constants.O_NOFOLLOW
    await using handle = await open(temporary, flags, OWN_FILE_MODE)
    await handle.chmod(mode)
    await handle.writeFile(bytes)
    await handle.sync()
    await rename(temporary, file)
    await folder.sync()
  } catch (cause) {
    await rm(temporary, { force: true })
    throw failed(file, cause)
  }
}

/** A ring while it is changed: keys by fingerprint, in the order of the file. */
class RingFile {
  readonly #keys: StoredKey[]
  changed = false

  constructor(keys: StoredKey[]) {
    this.#keys = keys
  }

  get keys(): readonly StoredKey[] {
    return this.#keys
  }

  #indexOf(fingerprint: string): number {
    return this.#keys.findIndex(({ key }) => key !== undefined && fingerprintOf(key) === fingerprint)
  }

  get(fingerprint: string): Key | undefined {
    return this.#keys[this.#indexOf(fingerprint)]?.key
  }

  /** Adds it, or what is new in it to the one that is there. */
  async put(key: PublicKey): Promise<"added" | "updated" | "unchanged"> {
    const index = this.#indexOf(fingerprintOf(key))
    const old = this.#keys[index]
    if (old?.key === undefined) {
      this.#keys.push({ bytes: Buffer.from(key.write()), key })
      this.changed = true
      return "added"
    }
    const merged: Key = await old.key.update(key)
    const bytes = Buffer.from(merged.write())
    if (bytes.equals(Buffer.from(old.key.write()))) return "unchanged"
    this.#keys[index] = { bytes, key: merged }
    this.changed = true
    return "updated"
  }

  remove(fingerprint: string): boolean {
    const index = this.#indexOf(fingerprint)
    if (index < 0) return false
    this.#keys.splice(index, 1)
    this.changed = true
    return true
  }

  get bytes(): Buffer {
    return Buffer.concat(this.#keys.map(({ bytes }) => bytes))
  }
}

/** Makes the folder of a ring, and those above it that are ours. */
async function makeFolder(folder: string, isGlobal: boolean): Promise<void> {
  try {
    await mkdir(folder, { recursive: true, mode: isGlobal ? GLOBAL_FOLDER_MODE : OWN_FOLDER_MODE })
  } catch (cause) {
    throw failed(folder, cause)
  }
}

/** Runs `change` on the ring, alone, and writes what it changed. */
async function changeRing<T>(
  options: RingOptions,
  change: (publicKeys: RingFile, secretKeys: RingFile) => Promise<T>,
): Promise<T> {
  const files = ringOf(options)
  const isGlobal = options.global === true
  const folder = path.dirname(files.publicFile)
  await makeFolder(folder, isGlobal)
  check(files, options)
  let lock: HeldFolder | undefined
  try {
    lock = await lockFolder(folder)
  } catch (cause) {
    throw (cause as NodeJS.ErrnoException).syscall === undefined ? cause : failed(folder, cause)
  }
  if (lock === undefined)
    throw SignatureError.at(folder, "ERR_KEYRING_BUSY", "somebody else is writing the key ring")
  try {
    const publicKeys = new RingFile(await readStored(files.publicFile))
    const secretKeys = new RingFile(files.secretFile === undefined ? [] : await readStored(files.secretFile))
    const result = await change(publicKeys, secretKeys)
    const mode = isGlobal ? GLOBAL_FILE_MODE : OWN_FILE_MODE
    // The private key first: a public one whose private half was lost on the way looks as if there had been none.
    if (secretKeys.changed && files.secretFile !== undefined) {
      const { bytes } = secretKeys
      await replaceFile(lock.handle, files.secretFile, bytes, OWN_FILE_MODE)
      bytes.fill(0)
    }
    if (publicKeys.changed) await replaceFile(lock.handle, files.publicFile, publicKeys.bytes, mode)
    return result
  } finally {
    await lock[Symbol.asyncDispose]()
  }
}

async function listFile(
  file: string,
  kind: RingListing["kind"],
  newer: readonly StoredKey[] = [],
): Promise<RingListing> {
  const stored = await readStored(file)
  const keys: KeyFacts[] = []
  for (const { key } of stored) {
    if (key === undefined) continue
    // A revocation is put into the public ring.
    const other = newer.find((one) => one.key !== undefined && fingerprintOf(one.key) === fingerprintOf(key))
    keys.push(await factsOf(other?.key === undefined ? key : await key.update(other.key.toPublic())))
  }
  return { path: file, kind, keys, unreadable: stored.length - keys.length }
}

/** How {@link list} lists. */
export interface ListOptions extends RingOptions {
  /** Private keys instead of public ones. */
  readonly secret?: boolean | undefined
}

const checkList = is.shape<ListOptions>({ ...ringRows, secret: is.flag })

/**
 * The user's own ring, then those of Apptainer and Singularity, which are used in place; or the system's alone. With `folder`
 * only the ring there.
 *
 * @throws SignatureError `ERR_KEYRING_INSECURE`, `ERR_SIGNATURE_KEYRING`.
 */
export async function list(given: ListOptions = {}): Promise<RingListing[]> {
  const options = checkList(given, "options")
  const own = ringOf(options)
  check(own, options)
  if (options.global === true) return [await listFile(own.publicFile, "global")]
  const peers = options.folder === undefined ? peerRings(options.env ?? process.env) : []
  const listings: RingListing[] = []
  for (const [files, kind] of [[own, "own"] as const, ...peers.map((peer) => [peer, "peer"] as const)]) {
    if (options.secret !== true) listings.push(await listFile(files.publicFile, kind))
    else if (files.secretFile !== undefined)
      listings.push(await listFile(files.secretFile, kind, await readStored(files.publicFile)))
  }
  return listings
}

/** What became of one imported key. */
export interface Imported {
  readonly fingerprint: string
  readonly userIds: readonly string[]
  /** A private key came with it. */
  readonly secret: boolean
  readonly outcome: "added" | "updated" | "unchanged"
}

function needsReadable(key: Key | undefined, origin: string): Key {
  if (key !== undefined) return key
  throw SignatureError.at(origin, "ERR_SIGNATURE_KEYRING", "a key of a kind that is not known here")
}

function needsStrong(key: Key, origin: string): Key {
  const weakness = weaknessOf(key)
  if (weakness === undefined) return key
  const text = `${origin}: the key ${fingerprintOf(key)}: ${weakness}`
  throw new SignatureError("ERR_SIGNATURE_KEYRING", text, { path: origin })
}

/**
 * Adds keys to a ring. What is new in a key that is there already (a revocation, a longer validity) is added to it. Private keys
 * go to the secret file as they are, and their public halves to the public one; the system's ring takes public ones only.
 *
 * @param file - OpenPGP keys, armored or as packets, as GnuPG and Apptainer export them.
 * @throws SignatureError `ERR_SIGNATURE_KEYRING` for a file that holds none, or one that others than its owner could sign with;
 * `ERR_KEYRING_INSECURE`, `ERR_KEYRING_BUSY`, `ERR_KEYRING_WRITE`.
 */
export async function importKeys(
  file: Uint8Array,
  origin: string,
  given: RingOptions = {},
): Promise<Imported[]> {
  is.bytes(file, "file")
  is.text(origin, "origin")
  const options = checkRing(given, "options")
  const keys: Key[] = []
  for (const bytes of keysIn(Buffer.from(file), origin))
    keys.push(needsStrong(needsReadable(await readKeyBytes(bytes), origin), origin))
  return await changeRing(options, async (publicKeys, secretKeys) => {
    const imported: Imported[] = []
    for (const key of keys) {
      const first = key.isPrivate() && options.global !== true ? await secretKeys.put(key) : ("none" as const)
      const second = await publicKeys.put(key.toPublic())
      imported.push({
        fingerprint: fingerprintOf(key),
        userIds: key.getUserIDs(),
        secret: first !== "none",
        outcome: first === "none" || first === "unchanged" ? second : first,
      })
    }
    return imported
  })
}

/** How {@link exportKeys} exports. */
export interface ExportOptions extends RingOptions {
  /** Private keys, protected as they are in the ring; default: public ones. */
  readonly secret?: boolean | undefined
  /** As text; default: packets, as rings are. */
  readonly armor?: boolean | undefined
}

export const exportRows: is.Rows<ExportOptions> = { ...ringRows, secret: is.flag, armor: is.flag }
const checkExport = is.shape(exportRows)
const someTexts = is.filled(is.list(is.text))

function missing(fingerprint: string, where: string): SignatureError {
  return new SignatureError("ERR_KEYRING_NO_KEY", `there is no key ${fingerprint} in ${where}`, {
    path: where,
  })
}

/** The key in the first of the rings that has it. */
async function find(fingerprint: string, secret: boolean, options: RingOptions): Promise<Key> {
  const own = ringOf(options)
  check(own, options)
  const peers =
    options.global === true || options.folder !== undefined ? [] : peerRings(options.env ?? process.env)
  for (const files of [own, ...peers]) {
    const file = secret ? files.secretFile : files.publicFile
    if (file === undefined) continue
    for (const { key } of await readStored(file))
      if (key !== undefined && fingerprintOf(key) === fingerprint) return key
  }
  throw missing(fingerprint, (secret ? own.secretFile : own.publicFile) ?? own.publicFile)
}

/**
 * Keys of the rings that {@link list} shows, to be given to others.
 *
 * @param fingerprints - Full ones.
 * @throws SignatureError `ERR_KEYRING_NO_KEY`, `ERR_KEYRING_INSECURE`, `ERR_SIGNATURE_KEYRING`.
 */
export async function exportKeys(
  fingerprints: readonly string[],
  given: ExportOptions = {},
): Promise<Buffer> {
  const options = checkExport(given, "options")
  const parts: Buffer[] = []
  for (const fingerprint of someTexts(fingerprints, "fingerprints").map(parseFingerprint)) {
    const key = await find(fingerprint, options.secret === true, options)
    parts.push(options.armor === true ? Buffer.from(key.armor()) : Buffer.from(key.write()))
  }
  return Buffer.concat(parts)
}

/** What {@link remove} removes. */
export interface RemoveOptions extends RingOptions {
  /** Default: the public key only. */
  readonly what?: "public" | "secret" | "both" | undefined
}

const checkRemove = is.shape<RemoveOptions>({ ...ringRows, what: is.oneOf("public", "secret", "both") })

/**
 * Removes a key from the user's own ring, or the system's.
 *
 * @param fingerprint - A full one.
 * @throws SignatureError `ERR_KEYRING_NO_KEY`, `ERR_KEYRING_INSECURE`, `ERR_KEYRING_BUSY`, `ERR_KEYRING_WRITE`.
 */
export async function remove(fingerprint: string, given: RemoveOptions = {}): Promise<void> {
  const options = checkRemove(given, "options")
  const { what = "public" } = options
  const wanted = parseFingerprint(fingerprint)
  const files = ringOf(options)
  await changeRing(options, async (publicKeys, secretKeys) => {
    const removed = [
      what !== "secret" && publicKeys.remove(wanted),
      what !== "public" && secretKeys.remove(wanted),
    ]
    if (!removed.includes(true)) throw missing(wanted, path.dirname(files.publicFile))
    return Promise.resolve()
  })
}

/** The kinds of key that {@link newPair} makes. */
export const keyTypes = ["rsa", "ed25519"] as const

/** Sizes of RSA keys. */
export const rsaBits = { least: 2048, most: 8192, default: 4096 } as const

/** A new key pair. */
export interface NewPairOptions extends RingOptions {
  readonly name: string
  readonly email: string
  readonly comment?: string | undefined
  /** Default `rsa`, which every reader of signatures knows. */
  readonly type?: (typeof keyTypes)[number] | undefined
  /** Of an RSA key: 2048 to 8192, default 4096. */
  readonly bits?: number | undefined
  /** Seconds until it expires; default: never. */
  readonly validFor?: number | undefined
  /**
   * UTF-8. undefined leaves the private key readable by whoever reads the file. The caller wipes it; the OpenPGP library takes
   * strings, so a copy stays in memory until it is collected.
   */
  readonly password?: Uint8Array | undefined
}

/** {@link newPair} says what a bad number of bits is. */
export const pairRows: is.Rows<Omit<NewPairOptions, "password">> = {
  ...ringRows,
  name: is.required(is.text),
  email: is.required(is.text),
  comment: is.text,
  type: is.oneOf(...keyTypes),
  bits: is.count,
  validFor: is.count,
}

/** Text in a user ID: nothing that is punctuation of it. */
function checkUserId(what: string, text: string, needed: boolean): void {
  if ((needed && text === "") || text.length > 200 || /[<>()\p{Cc}]/u.test(text))
    throw new RangeError(`${what} is 1 to 200 characters without <, >, ( and )`)
}

function asText(password: Uint8Array): string {
  const bytes = Buffer.from(password.buffer, password.byteOffset, password.byteLength)
  const text = bytes.toString("utf8")
  if (!Buffer.from(text).equals(bytes)) throw new RangeError("a key's password is text in UTF-8")
  return text
}

/**
 * Makes a key pair in the user's own ring.
 *
 * @throws RangeError for a name, an address or a size that no key may have; SignatureError `ERR_KEYRING_INSECURE`,
 * `ERR_KEYRING_BUSY`, `ERR_KEYRING_WRITE`.
 */
export async function newPair(options: NewPairOptions): Promise<KeyFacts> {
  const { name, email, comment = "", type = "rsa", bits = rsaBits.default, validFor = 0, password } = options
  checkUserId("the name", name, true)
  checkUserId("the comment", comment, false)
  if (!/^[^\s<>()@\p{Cc}]+@[^\s<>()@\p{Cc}]+$/u.test(email) || email.length > 200)
    throw new RangeError("the email address is like user@example.org")
  if (!Number.isInteger(bits) || bits < rsaBits.least || bits > rsaBits.most)
    throw new RangeError(`an RSA key has ${rsaBits.least} to ${rsaBits.most} bits`)
  if (password?.length === 0) throw new RangeError("the password is empty, and an empty one protects nothing")
  check(ringOf(options), options)
  const { generateKey } = await import("openpgp")
  const kind =
    type === "rsa"
      ? ({ type: "rsa", rsaBits: bits } as const)
      : ({ type: "ecc", curve: "ed25519Legacy" } as const) // what go-crypto of every peer reads
  const { privateKey } = await generateKey({
    ...kind,
    userIDs: [{ name, email, ...(comment === "" ? {} : { comment }) }],
    ...(password === undefined ? {} : { passphrase: asText(password) }),
    keyExpirationTime: validFor,
    format: "object",
  })
  await changeRing(options, async (publicKeys, secretKeys) => {
    await secretKeys.put(privateKey)
    await publicKeys.put(privateKey.toPublic())
  })
  return await factsOf(privateKey)
}

/** The same private keys under another password. */
async function withPassword(
  key: PrivateKey,
  old: Uint8Array | undefined,
  password: Uint8Array,
  stretching: KeyStretching,
): Promise<PrivateKey> {
  const { decryptKey, encryptKey } = await import("openpgp")
  let opened = key
  if (!key.isDecrypted() || secretOf(key) === "protected") {
    if (old === undefined)
      throw new SignatureError("ERR_SIGNATURE_KEYRING", `the key ${fingerprintOf(key)} is under a password`)
    for (const { keyPacket } of key.getKeys()) stretching.spend(keyPacket)
    try {
      opened = await decryptKey({ privateKey: key, passphrase: asText(old) })
    } catch (cause) {
      throw new SignatureError(
        "ERR_SIGNATURE_KEYRING",
        `this is not the password of the key ${fingerprintOf(key)}`,
        { cause },
      )
    }
  }
  return await encryptKey({ privateKey: opened, passphrase: asText(password) })
}

/**
 * Puts the private keys in a file under a new password, before they are imported.
 *
 * @returns A file with the same keys.
 * @throws SignatureError `ERR_SIGNATURE_KEYRING` for a wrong password, or a file that holds no keys; KeyError `ERR_KEY_UNSUPPORTED`.
 */
export async function changePassword(
  file: Uint8Array,
  origin: string,
  old: Uint8Array | undefined,
  password: Uint8Array,
): Promise<Buffer> {
  const parts: Uint8Array[] = []
  const stretching = new KeyStretching(origin)
  for (const bytes of keysIn(Buffer.from(file), origin)) {
    const key = needsReadable(await readKeyBytes(bytes), origin)
    parts.push(key.isPrivate() ? (await withPassword(key, old, password, stretching)).write() : bytes)
  }
  return Buffer.concat(parts)
}

/**
 * What is in a file of keys, before it is imported.
 *
 * @throws SignatureError `ERR_SIGNATURE_KEYRING`.
 */
export async function inspectKeys(file: Uint8Array, origin: string): Promise<KeyFacts[]> {
  is.bytes(file, "file")
  is.text(origin, "origin")
  const facts: KeyFacts[] = []
  for (const bytes of keysIn(Buffer.from(file), origin))
    facts.push(await factsOf(needsReadable(await readKeyBytes(bytes), origin)))
  return facts
}

/** Where the rings lie: for messages. */
export function ringPath(given: ListOptions = {}): string {
  const options = checkList(given, "options")
  const files = ringOf(options)
  return options.secret === true ? (files.secretFile ?? files.publicFile) : files.publicFile
}
