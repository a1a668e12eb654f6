// From the bytes of any key file to a node:crypto key: finds out what the file is, then which of its keys is meant.
import { createPublicKey, type KeyObject } from "node:crypto"
import { KeyError } from "../errors.ts"
import type { Bytes } from "../units.ts"
import { DerTag, isCutShort } from "./der.ts"
import { derKey } from "./der-key.ts"
import { damaged, wrongType, type FoundKey, type FoundKeys } from "./found-key.ts"
import { jwkKeys } from "./jwk.ts"
import { opensshLines } from "./openssh.ts"
import { pemKeys } from "./pem.ts"
import { isPkcs12, parsePkcs12 } from "./pkcs12.ts"
import { modulusBits } from "./rsa-oaep.ts"
import { Stretching } from "./stretching.ts"
import { certificateKey, isSameName, type Certificate } from "./x509.ts"

/** Modulus bits below which nothing new is encrypted; what exists still opens. */
export const MIN_MODULUS_BITS: number = 2048
/** Larger files hold no key. */
export const MAX_KEY_FILE_SIZE: Bytes = 1 << 20

const typeNames: Readonly<Record<string, string>> = {
  ec: "an EC key",
  dsa: "a DSA key",
  dh: "a DH key",
  ed25519: "an Ed25519 key",
  ed448: "an Ed448 key",
  x25519: "an X25519 key",
  x448: "an X448 key",
  "rsa-pss": "an RSA-PSS key, which can only sign",
}

/**
 * Is it an RSA key?
 *
 * @throws KeyError `ERR_KEY_TYPE`.
 */
export function checkRsa(key: KeyObject, origin: string): KeyObject {
  if (key.asymmetricKeyType !== "rsa") {
    const type = key.asymmetricKeyType ?? "unknown"
    throw wrongType(origin, typeNames[type] ?? `a key of type ${type}`)
  }
  return key
}

/**
 * May something new be encrypted for it?
 *
 * @throws KeyError `ERR_KEY_WEAK`.
 */
export function checkRecipient(key: KeyObject, origin: string): KeyObject {
  if (modulusBits(key) < MIN_MODULUS_BITS)
    throw new KeyError(
      "ERR_KEY_WEAK",
      `${origin}: an RSA key of ${modulusBits(key)} bits is too weak, at least ${MIN_MODULUS_BITS} are needed`,
    )
  return key
}

const SPACES: readonly (number | undefined)[] = [0x09, 0x0a, 0x0d, 0x20]
const BRACE = 0x7b
/** PuTTY's and the old SSH's files, to name them. */
const foreign = [
  ["PuTTY-User-Key-File", "a PuTTY key"],
  ["---- BEGIN SSH2 PUBLIC KEY", "an SSH2 public key"],
] as const

/** Whether it takes a password is known when it was read without one. */
function pkcs12Key(file: Buffer, origin: string): FoundKey {
  return {
    what: "a PKCS#12 container",
    half: "private",
    locked: false,
    read: async (password) => (await parsePkcs12(file, password, origin)).key,
  }
}

/** What the file is: the keys found, and names for what is none. */
function findKeys(file: Buffer, origin: string, wipe: (bytes: Buffer) => void): FoundKeys {
  if (file.length > MAX_KEY_FILE_SIZE)
    throw new KeyError("ERR_KEY_FORMAT", `${origin}: more than ${MAX_KEY_FILE_SIZE} bytes`)
  const stretching = new Stretching(origin)
  const nothing = (what: string): FoundKeys => ({ keys: [], others: [what] })
  if (file.length === 0) return nothing("nothing")
  if (file[0] === DerTag.sequence) {
    const key = derKey(file, origin, stretching)
    if (key !== undefined) return { keys: [key], others: [] }
    if (isPkcs12(file)) return { keys: [pkcs12Key(file, origin)], others: [] }
    if (isCutShort(file)) throw damaged(origin, "the DER")
  }
  const pem = pemKeys(file, origin, wipe, stretching)
  if (pem.keys.length + pem.others.length > 0) return pem
  const start = file.subarray(file[0] === 0xef ? 3 : 0).find((byte) => !SPACES.includes(byte))
  if (start === BRACE) return jwkKeys(file, origin) ?? nothing("JSON without a key")
  for (const [text, what] of foreign) if (file.includes(text)) return nothing(what)
  const lines = opensshLines(file, origin)
  return lines.keys.length > 0 ? lines : nothing("no key of a known form")
}

/** More than a file of keys has; a public key has to be looked for among them. */
const MAX_KEYS = 64

/**
 * The first key among `candidates` that `check` lets pass: the first RSA key.
 *
 * @throws KeyError of the first that is none; `ERR_KEY_LOCKED` before any other.
 */
async function firstKey(
  candidates: readonly FoundKey[],
  read: (candidate: FoundKey) => KeyObject | Promise<KeyObject>,
  origin: string,
  check: (key: KeyObject, origin: string) => KeyObject = checkRsa,
): Promise<KeyObject | undefined> {
  let failure: unknown
  for (const candidate of candidates)
    try {
      return check(await read(candidate), origin)
    } catch (error) {
      const locked = error instanceof KeyError && error.code === "ERR_KEY_LOCKED"
      if (failure === undefined || locked) failure = error
    }
  if (failure !== undefined) throw failure as Error
  return undefined
}

/** Guards against whatever a parser may throw. */
async function guarded<T>(
  origin: string,
  file: Buffer,
  parse: (found: FoundKeys) => T | Promise<T>,
): Promise<T> {
  const secrets: Buffer[] = []
  try {
    const found = findKeys(file, origin, (bytes) => secrets.push(bytes))
    if (found.keys.length > MAX_KEYS)
      throw new KeyError(
        "ERR_KEY_FORMAT",
        `${origin}: ${found.keys.length} keys, of which ${MAX_KEYS} are looked at`,
      )
    return await parse(found)
  } catch (cause) {
    throw cause instanceof KeyError ? cause : damaged(origin, "the key", cause)
  } finally {
    for (const bytes of secrets) bytes.fill(0)
  }
}

function unlocked(
  key: FoundKey,
  password: Buffer | undefined,
  origin: string,
): KeyObject | Promise<KeyObject> {
  if (key.locked && password === undefined)
    throw new KeyError(
      "ERR_KEY_LOCKED",
      `${origin}: found ${key.what}; its password is needed and none was given`,
    )
  return key.read(password)
}

function names({ keys, others }: FoundKeys): string {
  return [...new Set([...keys.map(({ what }) => what), ...others])].slice(0, 5).join(", ")
}

/**
 * The private key to open with: PKCS#1, PKCS#8 (also encrypted), OpenSSH (also protected), PKCS#12, JWK; as PEM, DER or
 * what the form prescribes. Of several keys, the first RSA key, and one without a password before one with.
 *
 * @param file - Its bytes; the caller wipes them.
 * @param origin - What to call the file in messages.
 * @param password - Of the key file. Without one a protected key is `ERR_KEY_LOCKED`.
 * @throws KeyError `ERR_KEY_PUBLIC`, `ERR_KEY_TYPE`, `ERR_KEY_DAMAGED`, `ERR_KEY_FORMAT`, `ERR_KEY_LOCKED`,
 * `ERR_KEY_PASSPHRASE`, `ERR_KEY_UNSUPPORTED`.
 */
export async function parsePrivateKey(file: Buffer, origin: string, password?: Buffer): Promise<KeyObject> {
  return await guarded(origin, file, async (found) => {
    const own = found.keys.filter(({ half }) => half === "private")
    const candidates = [...own.filter(({ locked }) => !locked), ...own.filter(({ locked }) => locked)]
    const key = await firstKey(candidates, (candidate) => unlocked(candidate, password, origin), origin)
    if (key !== undefined) return key
    if (found.keys.length === 0)
      throw new KeyError("ERR_KEY_FORMAT", `${origin}: an RSA private key is needed, found ${names(found)}`)
    // A public key of another kind is of the wrong kind first.
    await firstKey(found.keys, (candidate) => candidate.read(undefined), origin)
    throw new KeyError("ERR_KEY_PUBLIC", `${origin}: a private key is needed, found ${names(found)}`)
  })
}

/**
 * The private key to sign with, of whatever kind: as {@link parsePrivateKey}, except that what is not RSA must be in PKCS#8 or
 * SEC 1. Whether it is of a kind that signs is for the caller to say.
 *
 * @throws KeyError as there.
 */
export async function parseSigningKey(file: Buffer, origin: string, password?: Buffer): Promise<KeyObject> {
  return await guarded(origin, file, async (found) => {
    const own = found.keys.filter(({ half }) => half === "private")
    const candidates = [...own.filter(({ locked }) => !locked), ...own.filter(({ locked }) => locked)]
    try {
      const read = (candidate: FoundKey): KeyObject | Promise<KeyObject> =>
        unlocked(candidate, password, origin)
      const key = await firstKey(candidates, read, origin, (any) => any)
      if (key !== undefined) return key
    } catch (cause) {
      if (!(cause instanceof KeyError) || cause.code !== "ERR_KEY_TYPE") throw cause
      throw new KeyError(
        "ERR_KEY_TYPE",
        `${origin}: found ${names(found)}, which is read for RSA keys only`,
        {
          cause,
        },
      )
    }
    const code = found.keys.length === 0 ? "ERR_KEY_FORMAT" : "ERR_KEY_PUBLIC"
    throw new KeyError(code, `${origin}: a private key is needed, found ${names(found)}`)
  })
}

/** Of a chain, the certificate that issued none of the others comes first. */
function leafFirst(keys: readonly FoundKey[]): readonly FoundKey[] {
  const certificates: { readonly key: FoundKey; readonly own: Certificate }[] = []
  for (const key of keys)
    try {
      if (key.certificate !== undefined) certificates.push({ key, own: key.certificate() })
    } catch {
      // Damaged: told when it is read, if no other key is good.
    }
  const leaf = certificates.find(({ own }) =>
    certificates.every((other) => other.own === own || !isSameName(other.own.issuer, own.subject)),
  )
  return leaf === undefined ? keys : [leaf.key, ...keys.filter((key) => key !== leaf.key)]
}

/**
 * The public key to encrypt to: PKCS#1, SPKI, a certificate (neither its dates nor who signed it matter), OpenSSH's
 * line, JWK, or the public half of a private key. Of several, an open private key tells which is meant; then public
 * keys, then the certificate at the end of a chain, then a protected private key.
 *
 * @param file - Its bytes; the caller wipes them.
 * @param origin - What to call the file in messages.
 * @param password - Of the key file, where its public half cannot be read without.
 * @throws KeyError as {@link parsePrivateKey}; `ERR_KEY_WEAK` below {@link MIN_MODULUS_BITS}.
 */
export async function parsePublicKey(file: Buffer, origin: string, password?: Buffer): Promise<KeyObject> {
  return checkRecipient(await parsePublic(file, origin, password, checkRsa), origin)
}

function checkWrapping(key: KeyObject, origin: string): KeyObject {
  return key.asymmetricKeyType === "ec" ? key : checkRecipient(checkRsa(key, origin), origin)
}

/**
 * The public key that an image's layers are encrypted for: as {@link parsePublicKey}, or an EC key.
 *
 * @throws KeyError as there.
 */
export async function parseLayerRecipient(file: Buffer, origin: string): Promise<KeyObject> {
  return await parsePublic(file, origin, undefined, checkWrapping)
}

/**
 * A certificate that something is encrypted for: the one at the end of a chain, with an RSA key.
 *
 * @throws KeyError as {@link parsePublicKey}.
 */
export async function parseRecipientCertificate(
  file: Buffer,
  origin: string,
): Promise<{ readonly certificate: Buffer; readonly key: KeyObject }> {
  return await guarded(origin, file, (found) => {
    const certificate = leafFirst(
      found.keys.filter((key) => key.certificate !== undefined),
    )[0]?.certificate?.()
    if (certificate === undefined)
      throw new KeyError("ERR_KEY_FORMAT", `${origin}: an X.509 certificate is needed, found ${names(found)}`)
    const key = checkRecipient(checkRsa(certificateKey(certificate, origin), origin), origin)
    // The caller wipes the file.
    return { certificate: Buffer.from(certificate.der), key }
  })
}

async function parsePublic(
  file: Buffer,
  origin: string,
  password: Buffer | undefined,
  check: (key: KeyObject, origin: string) => KeyObject,
): Promise<KeyObject> {
  return await guarded(origin, file, async (found) => {
    const rank = ({ half, locked, readPublic }: FoundKey): number =>
      half === "private" && locked && readPublic === undefined ? 2 : half === "private" ? 0 : 1
    const ranks = [0, 1, 2].flatMap((wanted) => leafFirst(found.keys.filter((key) => rank(key) === wanted)))
    const key = await firstKey(
      ranks,
      (candidate) => candidate.readPublic?.() ?? unlocked(candidate, password, origin),
      origin,
      check,
    )
    if (key === undefined)
      throw new KeyError("ERR_KEY_FORMAT", `${origin}: an RSA key is needed, found ${names(found)}`)
    return key.type === "private" ? createPublicKey(key) : key
  })
}
