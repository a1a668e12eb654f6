// Clear-signed OpenPGP messages around metadata, and the keys that verify them.
//
// A cleartext message has many ways of showing a reader other text than was signed (CVE-2023-41037, CVE-2025-68972). So only
// one shape is taken, the one that signers write, and what is verified is the very text that is used.
import type {
  Key,
  PrivateKey,
  PublicKey,
  SecretKeyPacket,
  SecretSubkeyPacket,
  SignaturePacket,
} from "openpgp"
import { KeyError, SignatureError } from "../errors.ts"
import type { Bytes } from "../units.ts"
import { weaknessOf } from "./key-policy.ts"

/** What is read of a key ring at most. */
export const MAX_KEYRING_SIZE: Bytes = 64 << 20

const begin = "-----BEGIN PGP SIGNED MESSAGE-----"
const beginSignature = "-----BEGIN PGP SIGNATURE-----"
const endSignature = "-----END PGP SIGNATURE-----"

/** SHA-224, -256, -384, -512 (RFC 9580, 9.5). */
const acceptedHashes: readonly number[] = [8, 9, 10, 11]
const TEXT_SIGNATURE = 1

/** A message, taken apart. */
export interface ClearSigned {
  /** As it was signed: no blanks at the ends of lines, LF between them and none at the end. */
  readonly text: string
  readonly armoredSignature: string
}

/** Who signed, when a key is there for it. */
export type ClearSignature =
  | {
      readonly status: "valid"
      readonly fingerprint: Buffer
      /** The key's user ID. */
      readonly name: string | undefined
      readonly time: Date | undefined
    }
  | { readonly status: "unknown-signer"; readonly keyId: string }
  | { readonly status: "invalid"; readonly fingerprint: Buffer; readonly reason: string }

function malformed(what: string, cause?: unknown): SignatureError {
  return new SignatureError("ERR_SIGNATURE_FORMAT", `the clear-signed message ${what}`, { cause })
}

/** A pattern that is anchored at the end alone takes quadratic time, and the line is whoever wrote the image's. */
function withoutTrailingBlanks(line: string): string {
  let end = line.length
  while (end > 0 && (line[end - 1] === " " || line[end - 1] === "\t")) end--
  return line.slice(0, end)
}

/**
 * Reads a message.
 *
 * @returns undefined when the data does not start like one.
 * @throws SignatureError `ERR_SIGNATURE_FORMAT` for anything but one message with `Hash` headers only.
 */
export function parseClearSigned(data: Buffer): ClearSigned | undefined {
  if (!data.subarray(0, begin.length).equals(Buffer.from(begin, "latin1"))) return undefined
  if (data.some((byte) => byte > 0x7e || (byte < 0x20 && byte !== 0x0a && byte !== 0x0d && byte !== 0x09)))
    throw malformed("holds bytes that are no text")
  const lines = data.toString("latin1").replaceAll("\r\n", "\n").split("\n")
  if (lines.at(-1) === "") lines.pop()
  const blank = lines.indexOf("")
  if (lines[0] !== begin || blank < 1) throw malformed("has no end of its headers")
  if (!lines.slice(1, blank).every((line) => /^Hash: [A-Za-z0-9, -]{1,80}$/.test(line)))
    throw malformed("has other headers than Hash")
  const signature = lines.indexOf(beginSignature)
  if (signature < 0 || lines.indexOf(endSignature) !== lines.length - 1 || signature < blank)
    throw malformed("does not end with its signature")
  const text = lines.slice(blank + 1, signature)
  if (text.length === 0 || text.some((line) => line.startsWith("-")))
    throw malformed("has no text, or lines that are escaped")
  const armor = lines.slice(signature)
  if (armor.slice(1, -1).some((line) => line.startsWith("-")))
    throw malformed("has more than one signature block")
  return {
    text: text.map(withoutTrailingBlanks).join("\n"),
    armoredSignature: `${armor.join("\n")}\n`,
  }
}

function isArmored(file: Buffer): boolean {
  return file.subarray(0, 4096).includes("-----BEGIN PGP ")
}

/** OpenPGP public keys, to verify with. Loads the OpenPGP library, which takes a while, when there is something to do. */
export class Keyring {
  readonly #keys: PublicKey[] = []
  /** Where each is, by fingerprint. */
  readonly #places = new Map<string, number>()

  /**
   * Adds the keys in a file: a packet stream, as key rings are, or armored. Of private keys only the public half is kept.
   *
   * @throws SignatureError `ERR_SIGNATURE_KEYRING`.
   */
  async add(file: Buffer, origin: string): Promise<void> {
    if (file.length === 0) return
    const { readKeys } = await import("openpgp")
    try {
      const keys: Key[] = isArmored(file)
        ? await readKeys({ armoredKeys: file.toString("latin1") })
        : await readKeys({ binaryKeys: file })
      for (const key of keys) await this.#put(key.toPublic())
    } catch (cause) {
      throw new SignatureError("ERR_SIGNATURE_KEYRING", `${origin} holds no OpenPGP keys that can be read`, {
        cause,
        path: origin,
      })
    }
  }

  /** A key that several rings have is what they know of it together: one of them may know of its revocation. */
  async #put(key: PublicKey): Promise<void> {
    const fingerprint = key.getFingerprint()
    const place = this.#places.get(fingerprint) ?? this.#keys.length
    const other = this.#keys[place]
    this.#places.set(fingerprint, place)
    this.#keys[place] = other === undefined ? key : await other.update(key)
  }

  get isEmpty(): boolean {
    return this.#keys.length === 0
  }

  /** Verifies a message. Whether a key is good is judged now: an expired or revoked one verifies nothing. */
  async verify({ text, armoredSignature }: ClearSigned): Promise<ClearSignature> {
    const { createMessage, readSignature, verify } = await import("openpgp")
    let packet: SignaturePacket | undefined
    let signature
    try {
      signature = await readSignature({ armoredSignature })
      packet = signature.packets.length === 1 ? signature.packets[0] : undefined
    } catch (cause) {
      throw malformed("has a signature that cannot be read", cause)
    }
    if (packet === undefined) throw malformed("has not exactly one signature")
    if (Number(packet.signatureType) !== TEXT_SIGNATURE) throw malformed("has a signature of another kind")
    const keyId = packet.issuerKeyID.toHex()
    // All that could have made it: key IDs of 64 bits can be forged, so more than one key may have this one.
    const candidates = this.#keys.filter((key) => key.getKeys(packet.issuerKeyID).length > 0)
    let refused: ClearSignature | undefined
    for (const key of candidates) {
      const fingerprint = Buffer.from(key.getFingerprint(), "hex")
      if (!acceptedHashes.includes(packet.hashAlgorithm ?? 0))
        return { status: "invalid", fingerprint, reason: "its hash algorithm is not accepted" }
      const weakness = weaknessOf(key, packet.issuerKeyID)
      if (weakness !== undefined) {
        refused ??= { status: "invalid", fingerprint, reason: weakness }
        continue
      }
      try {
        const { signatures } = await verify({
          message: await createMessage({ text }),
          signature,
          verificationKeys: key,
          // A key whose self-signature was renewed since (a longer validity, say) still verifies what it signed before.
          config: { allowInsecureVerificationWithReformattedKeys: true },
        })
        await Promise.all(signatures.map(({ verified }) => verified))
        if (signatures.length !== 1) throw new Error("no signature was verified")
        const trouble = await troubleOf(key, packet)
        if (trouble === undefined)
          return {
            status: "valid",
            fingerprint,
            name: await userIdOf(key),
            time: packet.created ?? undefined,
          }
        refused = { status: "invalid", fingerprint, reason: trouble }
      } catch (error) {
        refused ??= { status: "invalid", fingerprint, reason: reasonOf(error) }
      }
    }
    return refused ?? { status: "unknown-signer", keyId }
  }
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

/** Why a key that made a good signature is not good now. Its signing subkey must be bound to it in both directions (S39). */
async function troubleOf(key: PublicKey, packet: SignaturePacket): Promise<string | undefined> {
  if (await key.isRevoked()) return "the key was revoked"
  const expires = await key.getExpirationTime()
  if (expires instanceof Date && expires.getTime() <= Date.now()) return "the key has expired"
  try {
    await key.getSigningKey(packet.issuerKeyID)
    return undefined
  } catch (error) {
    return `the key does not sign any more: ${reasonOf(error)}`
  }
}

/** The user ID that a key shows first; of a key that is not good any more, the first that it has. */
async function userIdOf(key: Key): Promise<string | undefined> {
  try {
    return (await key.getPrimaryUser()).user.userID?.userID
  } catch {
    return key.users.find(({ userID }) => userID !== null)?.userID?.userID
  }
}

/** A secret key in a ring. */
export interface SecretKeyFacts {
  /** Counted through all rings, from 0, as `apptainer key list --secret` does for its own. */
  readonly index: number
  /** Of the primary key, upper-case hexadecimal. */
  readonly fingerprint: string
  readonly name: string | undefined
}

/** OpenPGP secret keys, to sign with. */
export class SecretKeyring {
  readonly #keys: PrivateKey[] = []

  /**
   * Adds the keys in a file, a packet stream or armored.
   *
   * @throws SignatureError `ERR_SIGNATURE_KEYRING`.
   */
  async add(file: Buffer, origin: string): Promise<void> {
    if (file.length === 0) return
    const { readPrivateKeys } = await import("openpgp")
    try {
      this.#keys.push(
        ...(isArmored(file)
          ? await readPrivateKeys({ armoredKeys: file.toString("latin1") })
          : await readPrivateKeys({ binaryKeys: file })),
      )
    } catch (cause) {
      throw new SignatureError(
        "ERR_SIGNATURE_KEYRING",
        `${origin} holds no OpenPGP secret keys that can be read`,
        { cause, path: origin },
      )
    }
  }

  async list(): Promise<SecretKeyFacts[]> {
    return await Promise.all(
      this.#keys.map(async (key, index) => ({
        index,
        fingerprint: key.getFingerprint().toUpperCase(),
        name: await userIdOf(key),
      })),
    )
  }

  /**
   * The key to sign with.
   *
   * @param which - Its index, or its whole fingerprint; undefined: the only one.
   * @throws SignatureError `ERR_SIGNATURE_KEYRING`.
   */
  async select(which: number | string | undefined): Promise<PrivateKey> {
    const refuse = (what: string): SignatureError => new SignatureError("ERR_SIGNATURE_KEYRING", what)
    if (this.#keys.length === 0) throw refuse("there is no OpenPGP secret key to sign with")
    if (typeof which === "string") {
      const wanted = which.replaceAll(/[\s:]/g, "").toLowerCase()
      // Names of keys that are shorter can be forged.
      if (!/^(?:[0-9a-f]{40}|[0-9a-f]{64})$/.test(wanted))
        throw refuse(`${which} is no whole fingerprint: 40 or 64 hexadecimal digits`)
      const found = this.#keys.find((key) => key.getFingerprint() === wanted)
      if (found === undefined) throw refuse(`there is no secret key with the fingerprint ${which}`)
      return found
    }
    if (which !== undefined) {
      const found = this.#keys[which]
      if (found === undefined)
        throw refuse(`there is no secret key ${which}: there are ${this.#keys.length}, counted from 0`)
      return found
    }
    const different = new Set(this.#keys.map((key) => key.getFingerprint()))
    const [only] = this.#keys
    if (only !== undefined && different.size === 1) return only
    const list = (await this.list()).map(
      ({ index, fingerprint, name }) => `${index}: ${fingerprint} ${name ?? ""}`,
    )
    throw refuse(`there are ${this.#keys.length} secret keys, and one has to be chosen: ${list.join("; ")}`)
  }
}

/** The part of a key that signs. Others may be missing, or under a password where this one is not, and the other way round. */
async function signingPacket(key: PrivateKey): Promise<SecretKeyPacket | SecretSubkeyPacket> {
  try {
    return (await key.getSigningKey()).keyPacket as SecretKeyPacket | SecretSubkeyPacket
  } catch (cause) {
    throw doesNotSign(key, cause)
  }
}

function doesNotSign(key: PrivateKey, cause: unknown): SignatureError {
  const name = key.getFingerprint().toUpperCase()
  const text = `the key ${name} does not sign: ${reasonOf(cause)}`
  return new SignatureError("ERR_SIGNATURE_KEYRING", text, { cause })
}

/** Must a password be given before the key signs? */
export async function isLocked(key: PrivateKey): Promise<boolean> {
  return !(await signingPacket(key)).isDecrypted()
}

/** A string-to-key specifier (RFC 9580, 3.7) as the OpenPGP library keeps it, and does not declare it. */
type StringToKey =
  | { readonly type: "argon2"; readonly t: number; readonly encodedM: number }
  | { readonly type: "iterated"; getCount(): Bytes }
  | { readonly type: "simple" | "salted" | "gnu" }

/** As for LUKS2: memory, and memory times passes; of the iterated one, what is hashed. */
const MAX_STRETCH_MEMORY: Bytes = 2 ** 30
const MAX_STRETCH_WORK: Bytes = 2 ** 33

/** What the keys in a file may still ask for before a password opens them. The numbers are the file's, and nothing stops the work. */
export class KeyStretching {
  readonly #origin: string
  #left = MAX_STRETCH_WORK

  constructor(origin: string) {
    this.#origin = origin
  }

  /**
   * Before a password is tried on it.
   *
   * @param packet - Of a secret key or subkey.
   * @throws KeyError `ERR_KEY_UNSUPPORTED`.
   */
  spend(packet: object): void {
    const { s2k } = packet as { readonly s2k?: StringToKey | null }
    const refuse = (what: string, most: number): KeyError =>
      new KeyError(
        "ERR_KEY_UNSUPPORTED",
        `${this.#origin}: an OpenPGP key asks for ${what} (at most ${most} in a file)`,
      )
    if (s2k?.type === "argon2") {
      const memory = 2 ** (10 + s2k.encodedM)
      if (memory > MAX_STRETCH_MEMORY)
        throw refuse(`Argon2 with ${memory} bytes of memory`, MAX_STRETCH_MEMORY)
      this.#left -= memory * s2k.t
      if (this.#left < 0) throw refuse(`${s2k.t} passes of Argon2 over ${memory} bytes`, MAX_STRETCH_WORK)
    } else if (s2k?.type === "iterated") {
      this.#left -= s2k.getCount()
      if (this.#left < 0) throw refuse(`${s2k.getCount()} bytes to be hashed`, MAX_STRETCH_WORK)
    }
  }
}

/**
 * Makes the key ready to sign.
 *
 * @param password - Becomes a string within the OpenPGP library, which nobody can wipe.
 * @throws KeyError `ERR_KEY_PASSPHRASE`, `ERR_KEY_UNSUPPORTED`; SignatureError `ERR_SIGNATURE_KEYRING` for a key that cannot be used.
 */
export async function unlockSecretKey(key: PrivateKey, password: Uint8Array, origin: string): Promise<void> {
  const packet = await signingPacket(key)
  new KeyStretching(origin).spend(packet)
  try {
    await packet.decrypt(new TextDecoder().decode(password))
    await packet.validate()
  } catch (cause) {
    if (/incorrect key passphrase/i.test(reasonOf(cause)))
      throw new KeyError("ERR_KEY_PASSPHRASE", `${origin}: this is not the password of the key`, { cause })
    throw doesNotSign(key, cause)
  }
}

/** Overwrites a key's secret parts, as far as they are bytes; what the library made of them while it signed stays. */
export function wipeSecretKey(key: PrivateKey): void {
  // The declarations lack it.
  ;(key as PrivateKey & { clearPrivateParams(): void }).clearPrivateParams()
}

/**
 * A clear-signed message around a text, as {@link parseClearSigned} reads it. Hashed with SHA-256 or better.
 *
 * @throws SignatureError `ERR_SIGNATURE_KEYRING` when the key signs nothing (any more).
 */
export async function clearSign(text: string, key: PrivateKey, time: Date): Promise<Buffer> {
  const { createCleartextMessage, enums, sign } = await import("openpgp")
  try {
    const message = await createCleartextMessage({ text })
    const signed = await sign({
      message,
      signingKeys: key,
      date: time,
      config: { preferredHashAlgorithm: enums.hash.sha256, showComment: false, showVersion: false },
    })
    return Buffer.from(signed.replaceAll("\r\n", "\n").replace(/\n+$/, ""), "latin1")
  } catch (cause) {
    throw doesNotSign(key, cause)
  }
}

/** The number that SIF has for the hash of a message's signature (SIF specification, signature hash); 0 for none of them. */
export async function hashNumber({ armoredSignature }: ClearSigned): Promise<number> {
  const { readSignature } = await import("openpgp")
  const [packet] = (await readSignature({ armoredSignature })).packets
  return Math.max(0, [8, 9, 10].indexOf(packet?.hashAlgorithm ?? 0) + 1)
}
