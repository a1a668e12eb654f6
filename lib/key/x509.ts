// X.509 certificates (RFC 5280, 4.1), read strictly: what is not DER throughout, or not as the profile has it, is no certificate.
import { type KeyObject, createPublicKey } from "node:crypto"
import { KeyError } from "../errors.ts"
import type { Bytes } from "../units.ts"
import { admitPublicKey, checkSpki, readAlgorithm, type Algorithm, type KeyFacts } from "./admission.ts"
import { DerError, DerReader, DerTag, type DerValue } from "./der.ts"

/** A relative distinguished name, prepared for comparison: two are the same name if they are the same text. */
type RelativeName = string

/** A distinguished name. */
export interface Name {
  readonly relativeNames: readonly RelativeName[]
  /** Values of PKCS #9's emailAddress in it. */
  readonly emailAddresses: readonly string[]
}

export interface Extension {
  readonly critical: boolean
  readonly value: Buffer
}

export interface Certificate {
  readonly der: Buffer
  /** What is signed. */
  readonly tbs: Buffer
  readonly version: 1 | 2 | 3
  readonly issuer: Name
  readonly subject: Name
  readonly notBefore: Date
  readonly notAfter: Date
  readonly spki: Buffer
  /** By object identifier. */
  readonly extensions: ReadonlyMap<string, Extension>
  readonly signatureAlgorithm: Algorithm
  readonly signature: Buffer
}

/** More than any has; Go's and OpenSSL's tests of what is large stay below. */
export const MAX_CERTIFICATE_SIZE: Bytes = 256 * 1024

const EMAIL_ADDRESS = "1.2.840.113549.1.9.1"

const decoders: Readonly<Record<number, (bytes: Buffer) => string>> = {
  0x0c: (bytes) => new TextDecoder("utf-8", { fatal: true }).decode(bytes),
  0x13: ascii, // PrintableString
  0x16: ascii, // IA5String
  0x1e: (bytes) => new TextDecoder("utf-16be", { fatal: true }).decode(bytes), // BMPString
}

/** Texts that are compared byte by byte: NumericString, TeletexString; and BIT STRING, of a unique identifier. */
const opaqueTags: readonly number[] = [0x12, 0x14, DerTag.bitString]

/** Text of IA5String and its parts. */
export function ascii(bytes: Buffer): string {
  if (bytes.some((byte) => byte >= 0x80))
    throw new DerError("a text in it has characters that do not belong there")
  return bytes.toString("latin1")
}

/** RFC 5280, 7.1: as LDAP compares, of which RFC 4518 has the preparation. */
function prepared(text: string): string {
  return text
    .normalize("NFKC")
    .toLowerCase()
    .normalize("NFKC")
    .replace(/[\t-\r\u0085]/g, " ")
    .replace(/[\p{Cc}\p{Cf}]/gu, "")
    .replace(/\p{Z}+/gu, " ")
    .trim()
}

/** Reads a Name (RFC 5280, 4.1.2.4). */
export function readName(content: Buffer): Name {
  const emailAddresses: string[] = []
  const relativeNames: RelativeName[] = []
  for (const outer = new DerReader(content); !outer.isAtEnd;) {
    const attributes: string[] = []
    const set = new DerReader(outer.value(DerTag.set).content)
    do {
      const attribute = set.sequence()
      const type = attribute.oid()
      const value = attribute.any()
      const { tag, content: bytes } = value
      attribute.end()
      if (tag === DerTag.bitString) new DerReader(value.bytes).bits()
      else if (!(tag in decoders) && !opaqueTags.includes(tag)) throw new DerError("a text in it is none")
      const text = decoders[tag]?.(bytes)
      // One whose characters are not known is an address that is within no constraint.
      if (type === EMAIL_ADDRESS) emailAddresses.push(text ?? "")
      // What is no text is compared as it stands. No text has a line end any more.
      attributes.push(
        `${type}${text === undefined ? `#${tag.toString(16)}${bytes.toString("hex")}` : `=${prepared(text)}`}`,
      )
    } while (!set.isAtEnd)
    relativeNames.push(attributes.sort().join("\n"))
  }
  return { relativeNames, emailAddresses }
}

/** Does the one name begin with all of the other one? */
export function isWithin(name: Name, subtree: Name): boolean {
  return subtree.relativeNames.every((relative, index) => relative === name.relativeNames[index])
}

export function isSameName(one: Name, other: Name): boolean {
  return one.relativeNames.length === other.relativeNames.length && isWithin(one, other)
}

/** The same text for the same name, and for no other one. */
export function nameKey({ relativeNames }: Name): string {
  return relativeNames.join("\0") // which no text has any more
}

/**
 * A time (RFC 5280, 4.1.2.5): with seconds, in Greenwich. UTCTime has the years 1950 to 2049.
 *
 * @throws DerError for everything else, also for a day that does not exist.
 */
function readTime({ tag, content }: DerValue): Date {
  const text = content.toString("latin1")
  const generalized = tag === DerTag.generalizedTime
  if (!generalized && tag !== DerTag.utcTime) throw new DerError("a date in it is none")
  if (!(generalized ? /^\d{14}Z$/ : /^\d{12}Z$/).test(text))
    throw new DerError(`the date ${JSON.stringify(text)} is none`)
  const digits = generalized ? text : `${text < "5" ? "20" : "19"}${text}`
  const [, year = "", month = "", day = "", ...clock] =
    /^(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)/.exec(digits) ?? []
  const time = new Date(`${year}-${month}-${day}T${clock.join(":")}Z`)
  // Date takes the 31st of each month, and 24 o'clock; it is another day then.
  if (Number.isNaN(time.getTime()) || time.toISOString().slice(8, 13) !== `${day}T${clock[0] ?? ""}`)
    throw new DerError(`the date ${text} does not exist`)
  return time
}

const VERSION = 0
const ISSUER_UNIQUE_ID = 0x81
const SUBJECT_UNIQUE_ID = 0x82
const EXTENSIONS = 3

function readExtensions(reader: DerReader | undefined): ReadonlyMap<string, Extension> {
  const extensions = new Map<string, Extension>()
  if (reader === undefined) return extensions
  const list = reader.sequence()
  reader.end()
  do {
    const extension = list.sequence()
    const id = extension.oid()
    const critical = extension.flag()
    const value = extension.value(DerTag.octetString).content
    extension.end()
    // RFC 5280, 4.2
    if (extensions.has(id)) throw new DerError(`it has the extension ${id} twice`)
    extensions.set(id, { critical, value })
  } while (!list.isAtEnd)
  return extensions
}

function read(der: Buffer): Certificate {
  if (der.length > MAX_CERTIFICATE_SIZE) throw new DerError(`it has more than ${MAX_CERTIFICATE_SIZE} bytes`)
  const outer = DerReader.sequence(der)
  const tbs = outer.value(DerTag.sequence)
  const signatureAlgorithm = outer.value(DerTag.sequence)
  const signature = outer.octetsOfBits()
  outer.end()
  const reader = new DerReader(tbs.content)
  const explicitVersion = reader.explicit(VERSION)
  const number = explicitVersion?.number() ?? 0
  explicitVersion?.end()
  if (number > 2 || (explicitVersion !== undefined && number === 0)) throw new DerError("its version is none")
  reader.integer() // serial number
  // RFC 5280, 4.1.1.2: what is signed with is part of what is signed.
  if (!reader.value(DerTag.sequence).bytes.equals(signatureAlgorithm.bytes))
    throw new DerError("it names two signature algorithms")
  const issuer = readName(reader.value(DerTag.sequence).content)
  const validity = reader.sequence()
  const notBefore = readTime(validity.any())
  const notAfter = readTime(validity.any())
  validity.end()
  const subject = readName(reader.value(DerTag.sequence).content)
  const spki = reader.value(DerTag.sequence).bytes
  const uniqueIds = [reader.optional(ISSUER_UNIQUE_ID), reader.optional(SUBJECT_UNIQUE_ID)]
  if (number < 1 && uniqueIds.some((id) => id !== undefined))
    throw new DerError("it has unique identifiers, which its version does not have")
  const extensions = readExtensions(reader.explicit(EXTENSIONS))
  if (number < 2 && extensions.size > 0)
    throw new DerError("it has extensions, which its version does not have")
  reader.end()
  return {
    der,
    tbs: tbs.bytes,
    version: (number + 1) as 1 | 2 | 3,
    issuer,
    subject,
    notBefore,
    notAfter,
    spki,
    extensions,
    signatureAlgorithm: readAlgorithm(new DerReader(signatureAlgorithm.bytes)),
    signature,
  }
}

/**
 * Reads a certificate. Of its key nothing is asked yet.
 *
 * @throws KeyError `ERR_KEY_DAMAGED`.
 */
export function parseCertificate(der: Buffer, origin: string): Certificate {
  try {
    return read(der)
  } catch (cause) {
    const why = cause instanceof DerError ? cause.message : "a text in it is none"
    throw new KeyError("ERR_KEY_DAMAGED", `${origin}: the certificate is damaged or cut short: ${why}`, {
      cause,
    })
  }
}

/**
 * The key in a certificate.
 *
 * @throws KeyError as {@link checkSpki}.
 */
export function certificateKey({ spki }: Certificate, origin: string): KeyObject {
  return admitPublicKey(spki, "spki", origin, "the key of an X.509 certificate")
}

/** What the key in a certificate is. */
export function certificateKeyFacts({ spki }: Certificate, origin: string): KeyFacts {
  return checkSpki(spki, origin, "the key of an X.509 certificate")
}

/** Is it a certificate of this private key? One that cannot be read is none. */
export function isCertifiedBy(key: KeyObject, der: Buffer): boolean {
  try {
    return certificateKey(parseCertificate(der, "the certificate"), "the certificate").equals(
      createPublicKey(key),
    )
  } catch (error) {
    if (error instanceof KeyError) return false
    throw error
  }
}
