// Keys in DER, told apart by what their outermost sequence holds.
import type { KeyObject } from "node:crypto"
import { admitPrivateKey, admitPublicKey, readAlgorithm, unlockPrivateKey } from "./admission.ts"
import { derChildren, DerReader, DerTag, oidOf, readDer, type DerValue } from "./der.ts"
import { certificateKey, parseCertificate } from "./x509.ts"
import { KeyError } from "../errors.ts"
import { codeOf, unsupported, wrongPassword, wrongType, type FoundKey } from "./found-key.ts"
import { Stretch, type Stretching } from "./stretching.ts"

const PBKDF2 = "1.2.840.113549.1.5.12"
const SCRYPT = "1.3.6.1.4.1.11591.4.11"
const PBES2 = "1.2.840.113549.1.5.13"

/** The algorithm that an AlgorithmIdentifier names. */
function algorithmOf(identifier: DerValue | undefined): string | undefined {
  return identifier?.tag === DerTag.sequence ? oidOf(derChildren(identifier.content)?.[0]) : undefined
}

/** Pays for deriving the key from the password, which OpenSSL does next. It takes BER where DER is looked at: what is not DER is refused. */
function pay(identifier: DerValue, stretching: Stretching, what: string, origin: string): void {
  try {
    const reader = new DerReader(identifier.content)
    const scheme = reader.oid()
    const parameters = reader.sequence()
    reader.end()
    if (scheme !== PBES2) {
      parameters.any()
      stretching.spend(parameters.number(), Stretch.pbes1, what)
      return
    }
    const kdf = readAlgorithm(parameters)
    const costs = DerReader.sequence(kdf.parameters?.bytes ?? Buffer.alloc(0))
    costs.any()
    if (kdf.id === PBKDF2) stretching.spend(costs.number(), Stretch.pbkdf2, what)
    else if (kdf.id === SCRYPT)
      stretching.spend(costs.number() * costs.number() * costs.number(), Stretch.scrypt, what)
    else throw unsupported(origin, `${what} whose key is derived by ${kdf.id}`)
  } catch (cause) {
    if (cause instanceof KeyError) throw cause
    throw unsupported(
      origin,
      `${what} under ${algorithmOf(identifier) ?? "an unknown scheme"}, written in BER`,
      cause,
    )
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

function lockedKey(der: Buffer, identifier: DerValue, origin: string, stretching: Stretching): FoundKey {
  const what = "an encrypted PKCS#8 private key"
  return {
    what,
    half: "private",
    locked: true,
    read: (password = Buffer.alloc(0)) => {
      pay(identifier, stretching, what, origin)
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
export function derKey(bytes: Buffer, origin: string, stretching: Stretching): FoundKey | undefined {
  const outer = readDer(bytes)
  const inside = outer?.tag === DerTag.sequence ? derChildren(outer.content) : undefined
  if (outer === undefined || inside === undefined) return undefined
  const der = outer.bytes
  const [first] = inside
  const tags = inside.map(({ tag }) => tag.toString(16).padStart(2, "0")).join(" ")
  if (tags === "02 02") return publicKey("a PKCS#1 public key", der, "pkcs1", origin)
  if (tags === "30 03") return publicKey("an SPKI public key", der, "spki", origin)
  if (tags === "30 30 03") return certificate(der, origin)
  if (tags === "30 04" && first !== undefined) return lockedKey(der, first, origin, stretching)
  if (/^02 30 04( a0)?( 81)?$/.test(tags)) return privateKey("a PKCS#8 private key", der, "pkcs8", origin)
  if (/^02( 02){8}( 30)?$/.test(tags)) return privateKey("a PKCS#1 private key", der, "pkcs1", origin)
  if (/^02 04( a0)?( a1)?$/.test(tags)) return privateKey("an EC private key", der, "sec1", origin)
  if (tags === "02 02 02 02 02 02" && isVersion(first, 0)) return dsaKey(origin)
  return undefined
}
