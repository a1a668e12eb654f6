// X.509 certificates: one that a key signs for itself, and what is to be known of any. Signatures are made and keys compared
// by node:crypto; node-forge encodes.
import * as is from "../arguments.ts"
import { createHash, createPublicKey, randomBytes, sign, X509Certificate, type KeyObject } from "node:crypto"
import { KeyError } from "../errors.ts"
import { certificateKeyFacts, parseCertificate } from "./x509.ts"
import { elements, encodeAsn1, make, octetsOfBits, parseAsn1, type Asn1Node } from "./asn1.ts"

/** RFC 5280's upper bound of a common name, characters. */
export const MAX_COMMON_NAME = 64

const DAY_MS = 86_400_000

const oid = {
  commonName: "2.5.4.3",
  sha256WithRsa: "1.2.840.113549.1.1.11",
  subjectKeyIdentifier: "2.5.29.14",
  keyUsage: "2.5.29.15",
  basicConstraints: "2.5.29.19",
  extendedKeyUsage: "2.5.29.37",
  documentEncryption: "1.3.6.1.4.1.311.80.1",
} as const

/** What {@link selfSigned} certifies. */
export interface CertificateRequest {
  /** An RSA private key; the certificate is for its public half. */
  readonly key: KeyObject
  readonly commonName: string
  readonly notBefore: Date
  readonly days: number
}

/**
 * Is it fit for a common name?
 *
 * @throws RangeError when it is empty, has more than 64 characters, or control characters.
 */
export function checkCommonName(name: string): void {
  const length = Array.from(is.text(name, "name")).length // characters, not UTF-16's units
  if (length === 0 || length > MAX_COMMON_NAME)
    throw new RangeError(`a common name has 1 to ${MAX_COMMON_NAME} characters, this one ${length}`)
  if (/[\p{Cc}\p{Cs}]/u.test(name)) throw new RangeError("a common name has no control characters")
}

function extension(name: string, content: Asn1Node, critical: boolean): Asn1Node {
  return make.sequence(
    make.objectId(name),
    critical ? make.boolean(true) : undefined,
    make.octets(encodeAsn1(content)),
  )
}

/** A certificate, DER, that says: whoever encrypts to this key encrypts to that name. */
export function selfSigned(request: CertificateRequest): Buffer {
  const { key, commonName, notBefore, days } = request
  checkCommonName(commonName)
  const spki = parseAsn1(createPublicKey(key).export({ type: "spki", format: "der" }))
  const keyBits = octetsOfBits(elements(spki)[1])
  // Positive and of 16 bytes: the first bit is clear, the second set.
  const serial = randomBytes(16)
  serial[0] = ((serial[0] ?? 0) & 0x3f) | 0x40
  const name = make.sequence(make.set(make.sequence(make.objectId(oid.commonName), make.utf8(commonName))))
  const algorithm = make.sequence(make.objectId(oid.sha256WithRsa), make.null())
  const toBeSigned = make.sequence(
    make.explicit(0, make.integer(2)), // version 3
    make.bigInteger(serial),
    algorithm,
    name,
    make.sequence(make.time(notBefore), make.time(new Date(notBefore.getTime() + days * DAY_MS))),
    name,
    spki,
    make.explicit(
      3,
      make.sequence(
        extension(oid.basicConstraints, make.sequence(), true), // no CA
        extension(oid.keyUsage, make.rawBits(Buffer.of(5, 0x20)), true), // keyEncipherment
        extension(oid.extendedKeyUsage, make.sequence(make.objectId(oid.documentEncryption)), false),
        // RFC 7093, method 1
        extension(
          oid.subjectKeyIdentifier,
          make.octets(createHash("sha256").update(keyBits).digest().subarray(0, 20)),
          false,
        ),
      ),
    ),
  )
  const signature = sign("sha256", encodeAsn1(toBeSigned), key)
  return encodeAsn1(make.sequence(toBeSigned, algorithm, make.bits(signature)))
}

/** What is to be known of a certificate. */
export interface CertificateFacts {
  /** One `TYPE=value` a line, as OpenSSL writes them. */
  readonly subject: string
  readonly issuer: string
  /** Hexadecimal. */
  readonly serial: string
  readonly notBefore: Date
  readonly notAfter: Date
  /** `rsa`, or what node:crypto calls it otherwise. */
  readonly keyType: string
  /** Of an RSA key; 0 for another. */
  readonly modulusBits: number
  /** SHA-1 over the DER, as `openssl x509 -fingerprint -sha1` prints it. A name to find it by, no proof. */
  readonly sha1: string
  /** SHA-256 over the DER, as `openssl x509 -fingerprint -sha256` prints it. */
  readonly sha256: string
}

/** node:crypto has undefined for a name without parts, whatever its declarations say. */
const nameText = (name: string | undefined): string => name ?? ""

/**
 * Reads one.
 *
 * @param bytes - DER.
 * @throws KeyError `ERR_KEY_DAMAGED`; for a key that is not accepted, as reading a key.
 */
export function certificateFacts(bytes: Buffer, origin: string): CertificateFacts {
  try {
    const certificate = parseCertificate(bytes, origin)
    const { type, modulusBits } = certificateKeyFacts(certificate, origin)
    const found = new X509Certificate(bytes)
    return {
      subject: nameText(found.subject),
      issuer: nameText(found.issuer),
      serial: found.serialNumber,
      notBefore: certificate.notBefore,
      notAfter: certificate.notAfter,
      keyType: type,
      modulusBits,
      sha1: found.fingerprint,
      sha256: found.fingerprint256,
    }
  } catch (cause) {
    if (cause instanceof KeyError) throw cause
    throw new KeyError("ERR_KEY_DAMAGED", `${origin}: the certificate is damaged or cut short`, { cause })
  }
}

/** Whose certificate it is, for people: the subject or else the alternative names. */
export function subjectText(der: Buffer): string {
  try {
    const { subject, subjectAltName } = new X509Certificate(der)
    return nameText(subject).split("\n").join(", ") || (subjectAltName ?? "nobody")
  } catch {
    return "somebody" // one that only node:crypto cannot read
  }
}

/**
 * A thumbprint as hexadecimal digits alone, in capitals.
 *
 * @throws RangeError when it is none.
 */
export function parseThumbprint(thumbprint: string): string {
  const digits = is.text(thumbprint, "thumbprint").replaceAll(/[: ]/g, "").toUpperCase()
  if (!/^([0-9A-F]{40}|[0-9A-F]{64})$/.test(digits))
    throw new RangeError("a thumbprint has 64 hexadecimal digits (SHA-256) or 40 (SHA-1)")
  return digits
}

/**
 * The certificate of a thumbprint. SHA-256 tells which one; SHA-1 is a name, and may be the name of several.
 *
 * @param thumbprint - Hexadecimal, with colons or without.
 * @throws KeyError `ERR_KEY_MISMATCH` when none or several have it; RangeError when it is no thumbprint.
 */
export function byThumbprint<T extends Pick<CertificateFacts, "sha1" | "sha256">>(
  certificates: readonly T[],
  thumbprint: string,
): T {
  const wanted = parseThumbprint(thumbprint)
  const kind = wanted.length === 64 ? "sha256" : "sha1"
  const found = certificates.filter((one) => one[kind].replaceAll(":", "") === wanted)
  const different = new Set(found.map(({ sha256 }) => sha256))
  const [first] = found
  if (first === undefined)
    throw new KeyError("ERR_KEY_MISMATCH", `no certificate has the thumbprint ${thumbprint}`)
  if (different.size > 1)
    throw new KeyError(
      "ERR_KEY_MISMATCH",
      `${different.size} different certificates have the SHA-1 thumbprint ${thumbprint}`,
    )
  return first
}
