// PKCS#12 (RFC 7292): a private key and its certificates behind a password. node-forge cuts the ASN.1; MAC, PBKDF2 and ciphers
// are node:crypto's, on bytes, save RC2, which OpenSSL 3 has given up; the container's own derivation, which node:crypto does not
// offer, is OpenSSL's through the addon.
import { createDecipheriv, createHmac, hash, pbkdf2, timingSafeEqual, type KeyObject } from "node:crypto"
import { promisify } from "node:util"
import { isUtf8, transcode } from "node:buffer"
import rc2 from "node-forge/lib/rc2.js"
import util from "node-forge/lib/util.js"
import { EnvironmentError, KeyError } from "../errors.ts"
import type { Bytes } from "../units.ts"
import { loadAddon } from "../native/load.ts"
import { admitPrivateKey } from "./admission.ts"
import {
  elements,
  explicit,
  integer,
  isUniversal,
  MAX_CONTAINER_SIZE,
  objectId,
  octets,
  parseAsn1,
  encodeAsn1,
  type Asn1Node,
} from "./asn1.ts"
import { isCertifiedBy } from "./x509.ts"
import { allocateSecret, decipherSecret } from "./secret.ts"
import { Stretch, Stretching } from "./stretching.ts"

/** A private key and what certifies it. */
export interface Pkcs12 {
  readonly key: KeyObject
  /** DER. The key's own is the first one; none at all where the key stands alone. */
  readonly certificates: readonly Buffer[]
}

/** What the names in a PKCS#12 file mean. */
export const oid = {
  data: "1.2.840.113549.1.7.1",
  signedData: "1.2.840.113549.1.7.2",
  encryptedData: "1.2.840.113549.1.7.6",
  keyBag: "1.2.840.113549.1.12.10.1.1",
  shroudedKeyBag: "1.2.840.113549.1.12.10.1.2",
  certBag: "1.2.840.113549.1.12.10.1.3",
  friendlyName: "1.2.840.113549.1.9.20",
  localKeyId: "1.2.840.113549.1.9.21",
  x509Certificate: "1.2.840.113549.1.9.22.1",
  pbes2: "1.2.840.113549.1.5.13",
  pbkdf2: "1.2.840.113549.1.5.12",
  pbmac1: "1.2.840.113549.1.5.14",
} as const

const macHashes: Readonly<Record<string, string>> = {
  "1.3.14.3.2.26": "sha1",
  "2.16.840.1.101.3.4.2.4": "sha224",
  "2.16.840.1.101.3.4.2.1": "sha256",
  "2.16.840.1.101.3.4.2.2": "sha384",
  "2.16.840.1.101.3.4.2.3": "sha512",
}

const prfHashes: Readonly<Record<string, string>> = {
  "1.2.840.113549.2.7": "sha1",
  "1.2.840.113549.2.8": "sha224",
  "1.2.840.113549.2.9": "sha256",
  "1.2.840.113549.2.10": "sha384",
  "1.2.840.113549.2.11": "sha512",
}

interface Cipher {
  readonly name: string
  readonly keySize: Bytes
  readonly ivSize: Bytes
}

/** PBES2's, with the IV as their parameter. */
const ciphers: Readonly<Record<string, Cipher>> = {
  "2.16.840.1.101.3.4.1.2": { name: "aes-128-cbc", keySize: 16, ivSize: 16 },
  "2.16.840.1.101.3.4.1.22": { name: "aes-192-cbc", keySize: 24, ivSize: 16 },
  "2.16.840.1.101.3.4.1.42": { name: "aes-256-cbc", keySize: 32, ivSize: 16 },
  "1.2.840.113549.3.7": { name: "des-ede3-cbc", keySize: 24, ivSize: 8 },
}

/** PKCS#12's own, all with SHA-1. */
const ownCiphers: Readonly<Record<string, Cipher>> = {
  "1.2.840.113549.1.12.1.3": { name: "des-ede3-cbc", keySize: 24, ivSize: 8 },
  "1.2.840.113549.1.12.1.4": { name: "des-ede-cbc", keySize: 16, ivSize: 8 },
  "1.2.840.113549.1.12.1.5": { name: "rc2", keySize: 16, ivSize: 8 },
  "1.2.840.113549.1.12.1.6": { name: "rc2", keySize: 5, ivSize: 8 },
}

/** Says what an identifier means where we know it, for refusals. */
const names: Readonly<Record<string, string>> = {
  [oid.signedData]: "a signature in place of a MAC",
  [oid.pbmac1]: "PBMAC1",
  "1.2.840.113549.1.12.1.1": "RC4",
  "1.2.840.113549.1.12.1.2": "RC4",
  "1.2.840.113549.1.5.3": "DES with MD5",
  "1.2.840.113549.1.5.10": "DES with SHA-1",
  "1.2.840.113549.2.5": "MD5",
  "1.3.6.1.4.1.11591.4.11": "scrypt",
}

class Unsupported extends Error {
  constructor(what: string) {
    super(names[what] ?? what)
  }
}

const CONTAINER = "the PKCS#12 container"

/** A count of iterations. */
function iterationsIn(node: Asn1Node | undefined): number {
  const count = integer(node)
  if (count < 1) throw new Error("an iteration count of zero")
  return count
}

/** A password in the two shapes that are derived from. */
export class Password implements Disposable {
  /** For PBKDF2, as it is. */
  readonly bytes: Buffer
  /** For PKCS#12's own derivation: UTF-16BE with a zero behind it; nothing at all where there is no password. */
  readonly wide: Buffer

  constructor(password: Buffer | undefined) {
    this.bytes = allocateSecret(password?.length ?? 0)
    password?.copy(this.bytes)
    if (password === undefined) {
      this.wide = Buffer.alloc(0)
      return
    }
    // What is no UTF-8 is taken byte for byte, as OpenSSL does.
    const utf16 = transcode(password, isUtf8(password) ? "utf8" : "latin1", "utf16le")
    this.wide = allocateSecret(utf16.length + 2)
    utf16.swap16().copy(this.wide)
    utf16.fill(0)
  }

  [Symbol.dispose](): void {
    this.bytes.fill(0)
    this.wide.fill(0)
  }
}

/** What a derived key is for, RFC 7292 B.3. */
export const Purpose = { key: 1, iv: 2, mac: 3 } as const

/** The key derivation of RFC 7292 B.2. The caller wipes what it returns. */
export function derive(
  hash: string,
  wide: Buffer,
  salt: Buffer,
  purpose: (typeof Purpose)[keyof typeof Purpose],
  iterations: number,
  size: Bytes,
): Promise<Buffer> {
  return loadAddon().derivePkcs12({ hash, password: wide, salt, purpose, iterations, size })
}

function decryptRc2(key: Buffer, iv: Buffer, sealed: Buffer): Buffer {
  const cipher = rc2.createDecryptionCipher(key.toString("latin1"), key.length * 8)
  cipher.start(iv.toString("latin1"))
  cipher.update(util.createBuffer(sealed.toString("latin1")))
  if (!cipher.finish()) throw new Error("bad padding")
  return Buffer.from(cipher.output.getBytes(), "latin1")
}

function decryptWith(cipher: Cipher, key: Buffer, iv: Buffer, sealed: Buffer): Buffer {
  if (iv.length !== cipher.ivSize) throw new Error("an IV of the wrong size")
  if (cipher.name === "rc2") return decryptRc2(key, iv, sealed)
  return decipherSecret(createDecipheriv(cipher.name, key, iv), sealed)
}

/** PBES2 with PBKDF2, RFC 8018 A.4. */
async function decryptPbes2(
  parameters: Asn1Node | undefined,
  sealed: Buffer,
  password: Password,
  stretching: Stretching,
): Promise<Buffer> {
  const [derivation, scheme] = elements(parameters)
  const [derivationId, derivationParameters] = elements(derivation)
  if (objectId(derivationId) !== oid.pbkdf2) throw new Unsupported(objectId(derivationId))
  const [salt, iterations, ...optional] = elements(derivationParameters)
  const prf = optional.find((node) => isUniversal(node, "SEQUENCE"))
  const prfId = prf === undefined ? undefined : objectId(elements(prf)[0])
  const digest = prfId === undefined ? "sha1" : prfHashes[prfId]
  if (digest === undefined) throw new Unsupported(prfId ?? "")
  const [schemeId, iv] = elements(scheme)
  const cipher = ciphers[objectId(schemeId)]
  if (cipher === undefined) throw new Unsupported(objectId(schemeId))
  const rounds = stretching.spend(iterationsIn(iterations), Stretch.pbkdf2, CONTAINER)
  const key = await promisify(pbkdf2)(password.bytes, octets(salt), rounds, cipher.keySize, digest)
  try {
    return decryptWith(cipher, key, octets(iv), sealed)
  } finally {
    key.fill(0)
  }
}

/** Decrypts as an AlgorithmIdentifier says. The caller wipes what it returns. */
async function decrypt(
  algorithm: Asn1Node | undefined,
  sealed: Buffer,
  password: Password,
  stretching: Stretching,
): Promise<Buffer> {
  const [id, parameters] = elements(algorithm)
  const name = objectId(id)
  if (name === oid.pbes2) return await decryptPbes2(parameters, sealed, password, stretching)
  const cipher = ownCiphers[name]
  if (cipher === undefined) throw new Unsupported(name)
  const [salt, iterations] = elements(parameters)
  const rounds = stretching.spend(iterationsIn(iterations), Stretch.pbes1, CONTAINER)
  const key = await derive("sha1", password.wide, octets(salt), Purpose.key, rounds, cipher.keySize)
  const iv = await derive("sha1", password.wide, octets(salt), Purpose.iv, rounds, cipher.ivSize)
  try {
    return decryptWith(cipher, key, iv, sealed)
  } finally {
    key.fill(0)
  }
}

/** Does the MAC over `content` hold with this password? */
async function macHolds(
  mac: Asn1Node,
  content: Buffer,
  password: Password,
  stretching: Stretching,
): Promise<boolean> {
  const [digestInfo, salt, iterations] = elements(mac)
  const [algorithm, expected] = elements(digestInfo)
  const name = objectId(elements(algorithm)[0])
  const digest = macHashes[name]
  if (digest === undefined) throw new Unsupported(name)
  const rounds = stretching.spend(
    iterations === undefined ? 1 : iterationsIn(iterations),
    Stretch.pkcs12Mac,
    CONTAINER,
  )
  const size = hash(digest, "", "buffer").length
  const key = await derive(digest, password.wide, octets(salt), Purpose.mac, rounds, size)
  try {
    const found = createHmac(digest, key).update(content).digest()
    const wanted = octets(expected)
    return wanted.length === size && timingSafeEqual(found, wanted)
  } finally {
    key.fill(0)
  }
}

/** The private key of one bag. */
async function keyOf(
  bag: string,
  value: Asn1Node,
  password: Password,
  stretching: Stretching,
  origin: string,
): Promise<KeyObject> {
  // Only a key that stands in the file unencrypted becomes one of node-forge's strings.
  let pkcs8: Buffer
  if (bag === oid.keyBag) pkcs8 = encodeAsn1(value)
  else {
    const [algorithm, sealed] = elements(value)
    pkcs8 = await decrypt(algorithm, octets(sealed), password, stretching)
  }
  try {
    return admitPrivateKey(pkcs8, "pkcs8", origin, "the private key")
  } finally {
    pkcs8.fill(0)
  }
}

/** The keys and certificates in an AuthenticatedSafe. */
async function readSafe(
  content: Buffer,
  password: Password,
  stretching: Stretching,
  origin: string,
): Promise<{ keys: KeyObject[]; certificates: Buffer[] }> {
  const keys: KeyObject[] = []
  const certificates: Buffer[] = []
  for (const info of elements(parseAsn1(content))) {
    const [type, wrapped] = elements(info)
    const kind = objectId(type)
    let bags: Buffer
    if (kind === oid.data) bags = octets(explicit(wrapped, 0))
    else if (kind === oid.encryptedData) {
      const [, sealed] = elements(explicit(wrapped, 0))
      const [, algorithm, bytes] = elements(sealed)
      bags = await decrypt(algorithm, octets(bytes), password, stretching)
    } else throw new Unsupported(kind)
    try {
      for (const safeBag of elements(parseAsn1(bags))) {
        const [id, tagged] = elements(safeBag)
        const bag = objectId(id)
        if (bag === oid.keyBag || bag === oid.shroudedKeyBag)
          keys.push(await keyOf(bag, explicit(tagged, 0), password, stretching, origin))
        else if (bag === oid.certBag) {
          const [format, certificate] = elements(explicit(tagged, 0))
          if (objectId(format) === oid.x509Certificate) certificates.push(octets(explicit(certificate, 0)))
        }
        // Revocation lists and whatever else a bag may be are nothing to us.
      }
    } finally {
      bags.fill(0)
    }
  }
  return { keys, certificates }
}

/** Is it PKCS#12? Says so by the first bytes: a SEQUENCE that begins with version 3. */
export function isPkcs12(file: Buffer): boolean {
  if (file[0] !== 0x30 || file[1] === undefined) return false
  const at = file[1] > 0x80 ? 2 + (file[1] & 0x7f) : 2
  return file.subarray(at, at + 3).equals(Buffer.of(0x02, 0x01, 0x03))
}

/**
 * Reads a PKCS#12 file. The MAC vouches for all of it, and the first certificate for the key.
 *
 * @param file - Its bytes, DER or BER.
 * @param password - Undefined: none is known yet. Copied and wiped.
 * @param origin - What to call the file in messages.
 * @throws KeyError `ERR_KEY_LOCKED` when it takes a password and none was given, `ERR_KEY_PASSPHRASE` when it is another
 * one, `ERR_KEY_UNSUPPORTED` when it asks for what is not done here, `ERR_KEY_DAMAGED`, `ERR_KEY_FORMAT` when it holds no key.
 */
export async function parsePkcs12(
  file: Buffer,
  password: Buffer | undefined,
  origin = "the PKCS#12 file",
): Promise<Pkcs12> {
  try {
    return await parse(file, password, origin)
  } catch (cause) {
    if (cause instanceof KeyError || cause instanceof EnvironmentError) throw cause
    if (cause instanceof Unsupported)
      throw new KeyError("ERR_KEY_UNSUPPORTED", `${origin}: ${cause.message} in PKCS#12 is not supported`)
    // node-forge's words for it, or OpenSSL's, or ours.
    throw new KeyError("ERR_KEY_DAMAGED", `${origin}: the PKCS#12 container is damaged`, { cause })
  }
}

async function parse(file: Buffer, password: Buffer | undefined, origin: string): Promise<Pkcs12> {
  if (file.length > MAX_CONTAINER_SIZE)
    throw new KeyError("ERR_KEY_FORMAT", `${origin}: more than ${MAX_CONTAINER_SIZE} bytes`)
  const [version, info, mac] = elements(parseAsn1(file))
  if (integer(version) !== 3) throw new Unsupported(`version ${integer(version)}`)
  const [type, wrapped] = elements(info)
  if (objectId(type) !== oid.data) throw new Unsupported(objectId(type))
  if (mac === undefined)
    throw new KeyError(
      "ERR_KEY_UNSUPPORTED",
      `${origin}: the PKCS#12 container has no MAC that vouches for it`,
    )
  const content = octets(explicit(wrapped, 0))
  // No password and an empty one are two things to PKCS#12 and one to people.
  const stretching = new Stretching(origin)
  const candidates =
    password === undefined || password.length === 0 ? [Buffer.alloc(0), undefined] : [password]
  for (const candidate of candidates) {
    using attempt = new Password(candidate)
    if (!(await macHolds(mac, content, attempt, stretching))) continue
    return check(await readSafe(content, attempt, stretching, origin), origin)
  }
  if (password === undefined)
    throw new KeyError("ERR_KEY_LOCKED", `${origin}: the PKCS#12 container takes a password`)
  throw new KeyError("ERR_KEY_PASSPHRASE", `${origin}: the password does not open the PKCS#12 container`)
}

function check(found: { keys: KeyObject[]; certificates: Buffer[] }, origin: string): Pkcs12 {
  const [key, another] = found.keys
  if (key === undefined)
    throw new KeyError("ERR_KEY_FORMAT", `${origin}: the PKCS#12 container holds no private key`)
  if (another !== undefined)
    throw new KeyError(
      "ERR_KEY_UNSUPPORTED",
      `${origin}: the PKCS#12 container holds ${found.keys.length} private keys, one is needed`,
    )
  // Some programs keep keys alone; what is to be opened with needs no more.
  if (found.certificates.length === 0) return { key, certificates: [] }
  const own = found.certificates.find((der) => isCertifiedBy(key, der))
  if (own === undefined)
    throw new KeyError(
      "ERR_KEY_DAMAGED",
      `${origin}: the PKCS#12 container holds certificates, and none of them is of its private key`,
    )
  return { key, certificates: [own, ...found.certificates.filter((der) => der !== own)] }
}
