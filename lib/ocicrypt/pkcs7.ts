// Layer keys in PKCS#7 enveloped data, for the holders of certificates. ocicrypt's is no valid CMS: AES-GCM, whose parameters have
// tags that they should not have. CMS proper is read as well (RFC 5652, 5083).
import {
  constants,
  createCipheriv,
  createDecipheriv,
  privateDecrypt,
  publicEncrypt,
  randomBytes,
  randomFillSync,
  type KeyObject,
} from "node:crypto"
import { OciError } from "../errors.ts"
import { DerError, DerReader, DerTag, encodeDer, type DerValue } from "../key/der.ts"
import { allocateSecret, decipherSecret } from "../key/secret.ts"
import { readAlgorithm } from "../key/admission.ts"
import type { Attempts } from "./attempts.ts"

const MAX_RECIPIENTS = 256

const ENVELOPED = "1.2.840.113549.1.7.3"
const AUTHENTICATED = "1.2.840.113549.1.9.16.1.23"
const RSA = "1.2.840.113549.1.1.1"
const RSA_OAEP = "1.2.840.113549.1.1.7"

const oaepHashes: Readonly<Record<string, string>> = {
  "1.3.14.3.2.26": "sha1",
  "2.16.840.1.101.3.4.2.1": "sha256",
  "2.16.840.1.101.3.4.2.2": "sha384",
  "2.16.840.1.101.3.4.2.3": "sha512",
}

interface ContentCipher {
  readonly name: "aes-128-cbc" | "aes-192-cbc" | "aes-256-cbc" | "aes-128-gcm" | "aes-192-gcm" | "aes-256-gcm"
  readonly keySize: number
}
const contentCiphers: Readonly<Record<string, ContentCipher>> = {
  "2.16.840.1.101.3.4.1.2": { name: "aes-128-cbc", keySize: 16 },
  "2.16.840.1.101.3.4.1.22": { name: "aes-192-cbc", keySize: 24 },
  "2.16.840.1.101.3.4.1.42": { name: "aes-256-cbc", keySize: 32 },
  "2.16.840.1.101.3.4.1.6": { name: "aes-128-gcm", keySize: 16 },
  "2.16.840.1.101.3.4.1.26": { name: "aes-192-gcm", keySize: 24 },
  "2.16.840.1.101.3.4.1.46": { name: "aes-256-gcm", keySize: 32 },
}
const GCM_TAG_SIZE = 16

/** For whom, and his copy of the key. */
interface Recipient {
  /** DER: who issued the certificate, and its number. */
  readonly issuerAndSerial: Buffer
  /** undefined: RSA as PKCS#1 v1.5 pads. */
  readonly oaepHash: string | undefined
  readonly encryptedKey: Buffer
}

interface Envelope {
  readonly recipients: readonly Recipient[]
  readonly cipher: ContentCipher
  readonly iv: Buffer
  /** The tag of GCM is its end. */
  readonly ciphertext: Buffer
}

/** undefined: of a kind that is not read here, as of whoever agrees on a key. */
function readRecipient(value: DerValue): Recipient | undefined {
  if (value.tag !== DerTag.sequence) return undefined
  const reader = new DerReader(value.content)
  reader.number()
  const identifier = reader.any()
  const algorithm = readAlgorithm(reader)
  const encryptedKey = reader.value(DerTag.octetString).content
  reader.end()
  const recipient = { issuerAndSerial: identifier.bytes, encryptedKey }
  if (algorithm.id === RSA) return { ...recipient, oaepHash: undefined }
  if (algorithm.id !== RSA_OAEP) return undefined
  const parameters = algorithm.parameters
  const hash = parameters === undefined ? undefined : new DerReader(parameters.content).explicit(0)
  const oaepHash = hash === undefined ? "sha1" : oaepHashes[readAlgorithm(hash).id]
  return oaepHash === undefined ? undefined : { ...recipient, oaepHash }
}

/** Where ocicrypt has SEQUENCE's number without what says that it is constructed, around the real one. */
const BARE_SEQUENCE = 0x10
/** And `[4]` for an octet string. */
const BARE_NONCE = 0x84

function readIv(cipher: ContentCipher, parameters: DerValue | undefined): Buffer {
  if (parameters === undefined) throw new DerError("its cipher has no parameters")
  if (cipher.name.endsWith("cbc")) {
    if (parameters.tag !== DerTag.octetString || parameters.content.length !== 16)
      throw new DerError("the parameters of its cipher are others")
    return parameters.content
  }
  const outer = parameters.tag === BARE_SEQUENCE ? new DerReader(parameters.content).sequence() : undefined
  const reader = outer ?? DerReader.sequence(parameters.bytes)
  const nonce = reader.optional(BARE_NONCE) ?? reader.value(DerTag.octetString)
  const tagSize = reader.isAtEnd ? 12 : reader.number()
  reader.end()
  if (nonce.content.length !== 12 || tagSize !== GCM_TAG_SIZE)
    throw new DerError("the parameters of its cipher are others")
  return nonce.content
}

/** `[0]`, of one piece or of several. */
function readContent(value: DerValue): Buffer {
  if (value.tag === 0x80) return value.content
  if (value.tag !== 0xa0) throw new DerError("nothing is encrypted in it")
  const pieces: Buffer[] = []
  for (const reader = new DerReader(value.content); !reader.isAtEnd;)
    pieces.push(reader.value(DerTag.octetString).content)
  return Buffer.concat(pieces)
}

function readEnvelope(message: Buffer): Envelope {
  const outer = DerReader.sequence(message)
  const type = outer.oid()
  if (type !== ENVELOPED && type !== AUTHENTICATED) throw new DerError("it is no enveloped data")
  const inside = outer.explicit(0)
  outer.end()
  if (inside === undefined) throw new DerError("nothing is in it")
  const data = inside.sequence()
  inside.end()
  data.number()
  data.optional(0xa0) // certificates of whoever wrote it
  const infos = new DerReader(data.value(DerTag.set).content)
  const recipients: Recipient[] = []
  for (let count = 0; !infos.isAtEnd; count++) {
    if (count === MAX_RECIPIENTS) throw new DerError(`it has more than ${MAX_RECIPIENTS} recipients`)
    const recipient = readRecipient(infos.any())
    if (recipient !== undefined) recipients.push(recipient)
  }
  const content = data.sequence()
  content.oid()
  const algorithm = readAlgorithm(content)
  const cipher = contentCiphers[algorithm.id]
  if (cipher === undefined) throw new DerError(`it is encrypted by ${algorithm.id}`)
  const iv = readIv(cipher, algorithm.parameters)
  const ciphertext = readContent(content.any())
  content.end()
  const tag = type === AUTHENTICATED ? data.value(DerTag.octetString).content : Buffer.alloc(0)
  return { recipients, cipher, iv, ciphertext: Buffer.concat([ciphertext, tag]) }
}

function parse(message: Buffer, what: string): Envelope {
  try {
    return readEnvelope(message)
  } catch (cause) {
    if (!(cause instanceof DerError)) throw cause
    throw new OciError("ERR_OCI_FORMAT", `${what}: its key wrapped by PKCS#7 is broken: ${cause.message}`, {
      cause,
    })
  }
}

/**
 * The key in a block that PKCS#1 v1.5 has padded, or random bytes where there is none: then the content does not open, as with any
 * other wrong key, and nobody learns which of the two it was (RFC 3218, 2.3.2). All bytes are looked at in either case.
 */
function unpad(block: Buffer, size: number): Buffer {
  const key = allocateSecret(size)
  randomFillSync(key)
  const start = block.length - size
  let bad = block.length < size + 11 ? 1 : (block[0] ?? 1) | ((block[1] ?? 0) ^ 2) | (block[start - 1] ?? 1)
  for (let at = 2; at < start - 1; at++) bad |= Number(block[at] === 0)
  const mask = bad === 0 ? 0xff : 0
  for (let i = 0; i < size; i++) key[i] = ((key[i] ?? 0) & ~mask) | ((block[start + i] ?? 0) & mask)
  return key
}

/** undefined: it is not for this key. */
function unwrapKey(key: KeyObject, { oaepHash, encryptedKey }: Recipient, size: number): Buffer | undefined {
  let block: Buffer | undefined
  try {
    if (oaepHash !== undefined) {
      const padding = constants.RSA_PKCS1_OAEP_PADDING
      block = privateDecrypt({ key, padding, oaepHash }, encryptedKey)
      if (block.length !== size) return undefined
      const copy = allocateSecret(size)
      block.copy(copy)
      return copy
    }
    // Node does not unpad by itself any more where its OpenSSL cannot hide what it found (CVE-2023-46809).
    block = privateDecrypt({ key, padding: constants.RSA_NO_PADDING }, encryptedKey)
    return unpad(block, size)
  } catch {
    return undefined
  } finally {
    block?.fill(0)
  }
}

function open({ cipher, iv, ciphertext }: Envelope, key: Buffer): Buffer | undefined {
  try {
    if (cipher.name === "aes-128-gcm" || cipher.name === "aes-192-gcm" || cipher.name === "aes-256-gcm") {
      const end = ciphertext.length - GCM_TAG_SIZE
      const decipher = createDecipheriv(cipher.name, key, iv, { authTagLength: GCM_TAG_SIZE })
      decipher.setAuthTag(ciphertext.subarray(end))
      return decipherSecret(decipher, ciphertext.subarray(0, end))
    }
    return decipherSecret(createDecipheriv(cipher.name, key, iv), ciphertext)
  } catch {
    return undefined
  }
}

/** Does it begin as what is wrapped does? Without a MAC, a wrong key gives something, too. */
const isObject = (bytes: Buffer): boolean => bytes[0] === 0x7b

/**
 * Unwraps a layer's key. No certificate is needed: each key is tried on each recipient's copy.
 *
 * @returns What was wrapped, which the caller wipes; undefined: for none of these keys.
 * @throws OciError `ERR_OCI_FORMAT`, `ERR_OCI_WORK`.
 */
export function unwrapPkcs7(
  message: Buffer,
  keys: readonly KeyObject[],
  attempts: Attempts,
  what: string,
): Buffer | undefined {
  const envelope = parse(message, what)
  for (const key of keys) {
    if (key.asymmetricKeyType !== "rsa") continue
    const size = Math.ceil((key.asymmetricKeyDetails?.modulusLength ?? 0) / 8)
    for (const recipient of envelope.recipients) {
      if (recipient.encryptedKey.length !== size) continue
      attempts.take(1, what)
      const unwrapped = unwrapKey(key, recipient, envelope.cipher.keySize)
      if (unwrapped === undefined) continue
      const secret = open(envelope, unwrapped)
      unwrapped.fill(0)
      if (secret !== undefined && isObject(secret)) return secret
      secret?.fill(0)
    }
  }
  return undefined
}

/** DER of the issuer's name and of the number, as in a certificate: what names whoever holds its key. */
function issuerAndSerial(certificate: Buffer): Buffer {
  const reader = DerReader.sequence(certificate).sequence()
  reader.explicit(0)
  const serial = reader.value(DerTag.integer).bytes
  reader.value(DerTag.sequence)
  return encodeDer(DerTag.sequence, [reader.value(DerTag.sequence).bytes, serial])
}

const oidBytes = {
  enveloped: Buffer.from("06092a864886f70d010703", "hex"),
  data: Buffer.from("06092a864886f70d010701", "hex"),
  rsa: Buffer.from("06092a864886f70d010101", "hex"),
  aes128Gcm: Buffer.from("0609608648016503040106", "hex"),
} as const

/** A certificate that something is wrapped for, which was looked at before. */
export interface CertifiedKey {
  readonly certificate: Buffer
  readonly key: KeyObject
}

/** Wraps a layer's key for the holders of certificates, in the form that all versions of ocicrypt read. */
export function wrapPkcs7(secret: Buffer, certificates: readonly CertifiedKey[]): Buffer {
  const { sequence, set, octetString, integer } = DerTag
  const version = encodeDer(integer, [Buffer.of(0)])
  const key = allocateSecret(16)
  randomFillSync(key)
  try {
    const recipients = certificates.map((one) => {
      const encrypted = publicEncrypt({ key: one.key, padding: constants.RSA_PKCS1_PADDING }, key)
      const algorithm = encodeDer(sequence, [oidBytes.rsa])
      const parts = [
        version,
        issuerAndSerial(one.certificate),
        algorithm,
        encodeDer(octetString, [encrypted]),
      ]
      return encodeDer(sequence, parts)
    })
    const nonce = randomBytes(12)
    const cipher = createCipheriv("aes-128-gcm", key, nonce)
    const ciphertext = [cipher.update(secret), cipher.final(), cipher.getAuthTag()]
    const tagSize = encodeDer(integer, [Buffer.of(GCM_TAG_SIZE)])
    const real = encodeDer(sequence, [encodeDer(BARE_NONCE, [nonce]), tagSize])
    const algorithm = encodeDer(sequence, [oidBytes.aes128Gcm, encodeDer(BARE_SEQUENCE, [real])])
    const content = encodeDer(0xa0, [encodeDer(octetString, ciphertext)])
    const data = encodeDer(sequence, [
      version,
      encodeDer(
        set,
        recipients.sort((one, other) => Buffer.compare(one, other)),
      ),
      encodeDer(sequence, [oidBytes.data, algorithm, content]),
    ])
    return encodeDer(sequence, [oidBytes.enveloped, encodeDer(0xa0, [data])])
  } finally {
    key.fill(0)
  }
}

/** Whom a message is for: the numbers of certificates. */
export function pkcs7Recipients(message: Buffer, what: string): string[] {
  return parse(message, what).recipients.map((one) => {
    const identifier = new DerReader(one.issuerAndSerial).any()
    try {
      const reader = new DerReader(identifier.content)
      reader.value(DerTag.sequence)
      return `serial ${reader.integer().toString("hex")}`
    } catch {
      return `key id ${identifier.content.toString("hex")}`
    }
  })
}
