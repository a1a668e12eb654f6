// Keys in DER, told apart by what their outermost sequence holds.
import type { KeyObject } from "node:crypto"
import { admitPrivateKey, admitPublicKey, unlockPrivateKey } from "./admission.ts"
import { derChildren, DerTag, oidOf, readDer, type DerValue } from "./der.ts"
import { certificateKey, parseCertificate } from "./x509.ts"
import { KeyError } from "../errors.ts"
import { codeOf, unsupported, wrongPassword, wrongType, type FoundKey } from "./found-key.ts"

const PBKDF2 = "1.2.840.113549.1.5.12"
const SCRYPT = "1.3.6.1.4.1.11591.4.11"
const PBES2 = "1.2.840.113549.1.5.13"
/** Some ten seconds. */
const MAX_PBKDF2_ITERATIONS = 20_000_000
const MAX_SCRYPT_WORK = 1 << 24

/** The algorithm that an AlgorithmIdentifier names. */
function algorithmOf(identifier: DerValue | undefined): string | undefined {
  return identifier?.tag === DerTag.sequence ? oidOf(derChildren(identifier.content)?.[0]) : undefined
}

/** A number of at most 48 bits. */
function smallInteger(value: DerValue | undefined): number | undefined {
  if (value?.tag !== DerTag.integer || value.content.length === 0 || value.content.length > 6)
    return undefined
  return value.content.readUIntBE(0, value.content.length)
}

/** Is the derivation of the key from the password something to wait for? What is not known here, OpenSSL refuses. */
function isAffordable(identifier: DerValue | undefined): boolean {
  const [scheme, parameters] = derChildren(identifier?.content ?? Buffer.alloc(0)) ?? []
  const inner = derChildren(parameters?.content ?? Buffer.alloc(0)) ?? []
  if (oidOf(scheme) !== PBES2) return (smallInteger(inner[1]) ?? 0) <= MAX_PBKDF2_ITERATIONS
  const [kdf, kdfParameters] = derChildren(inner[0]?.content ?? Buffer.alloc(0)) ?? []
  const [, ...costs] = (derChildren(kdfParameters?.content ?? Buffer.alloc(0)) ?? []).map(smallInteger)
  const [first = Infinity, second = 1, third = 1] = costs
  switch (oidOf(kdf)) {
    case PBKDF2:
      return first <= MAX_PBKDF2_ITERATIONS
    case SCRYPT:
      return first * second * third <= MAX_SCRYPT_WORK
    default:
      return true
  }
}

function publicKey(what: string, der: Buffer, type: "pkcs1" | "spki", origin: string): FoundKey {
  return {
    what,
    half: "public",
    locked: false,
    read: () => admitPublicKey(der, type, origin, what),
  }
}

function certificate(der: Buffer, origin: string): FoundKey {
  return {
    what: "an X.509 certificate",
    half: "public",
    locked: false,
    certificate: () => parseCertificate(der, origin),
    read: () => certificateKey(parseCertificate(der, origin), origin),
  }
}

function privateKey(what: string, der: Buffer, type: "pkcs1" | "pkcs8" | "sec1", origin: string): FoundKey {
  return {
    what,
    half: "private",
    locked: false,
    read: () => admitPrivateKey(der, type, origin, what),
  }
}

/** node:crypto's limit. */
export const MAX_PASSWORD_SIZE = 1024

function lockedKey(der: Buffer, identifier: DerValue, origin: string): FoundKey {
  const what = "an encrypted PKCS#8 private key"
  return {
    what,
    half: "private",
    locked: true,
    read: (password = Buffer.alloc(0)) => {
      if (!isAffordable(identifier))
        throw unsupported(origin, `${what} whose password takes too long to check`)
      try {
        return unlockPrivateKey(der, { format: "der", type: "pkcs8" }, password, origin)
      } catch (cause) {
        if (cause instanceof KeyError) throw cause
        const code = codeOf(cause)
        if (code.includes("UNSUPPORTED") || code.includes("UNKNOWN"))
          throw unsupported(origin, `${what} under ${algorithmOf(identifier) ?? "an unknown scheme"}`, cause)
        throw wrongPassword(origin, what, cause)
      }
    },
  }
}

/** DSA keys of OpenSSL's own form. */
function dsaKey(origin: string): FoundKey {
  return {
    what: "a DSA private key",
    half: "private",
    locked: false,
    read: (): KeyObject => {
      throw wrongType(origin, "a DSA private key")
    },
  }
}

const isVersion = (value: DerValue | undefined, version: number): boolean =>
  value?.tag === DerTag.integer && value.content.length === 1 && value.content[0] === version

/** The key that this DER is; undefined: none that is known. */
export function derKey(bytes: Buffer, origin: string): FoundKey | undefined {
  const outer = readDer(bytes)
  const inside = outer?.tag === DerTag.sequence ? derChildren(outer.content) : undefined
  if (outer === undefined || inside === undefined) return undefined
  const der = outer.bytes
  const [first] = inside
  const tags = inside.map(({ tag }) => tag.toString(16).padStart(2, "0")).join(" ")
  if (tags === "02 02") return publicKey("a PKCS#1 public key", der, "pkcs1", origin)
  if (tags === "30 03") return publicKey("an SPKI public key", der, "spki", origin)
  if (tags === "30 30 03") return certificate(der, origin)
  if (tags === "30 04" && first !== undefined) return lockedKey(der, first, origin)
  if (/^02 30 04( a0)?( 81)?$/.test(tags)) return privateKey("a PKCS#8 private key", der, "pkcs8", origin)
  if (/^02( 02){8}( 30)?$/.test(tags)) return privateKey("a PKCS#1 private key", der, "pkcs1", origin)
  if (/^02 04( a0)?( a1)?$/.test(tags)) return privateKey("an EC private key", der, "sec1", origin)
  if (tags === "02 02 02 02 02 02" && isVersion(first, 0)) return dsaKey(origin)
  return undefined
}
