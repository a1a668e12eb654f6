// The one gate to node:crypto. Whatever comes from an image, a file, a registry, a key server or a caller is looked at as DER
// first: which kind of key it is, on which curve, and whether its numbers can be those of a key. OpenSSL takes in more than Node
// can bear: asking for the details of an EC key at the point at infinity ends the process (assertion in GetEcKeyDetail).
import { createPrivateKey, createPublicKey, type KeyObject } from "node:crypto"
import { KeyError } from "../errors.ts"
import { DerReader, DerTag, type DerValue } from "./der.ts"
import { damaged, unsupported, wrongType } from "./found-key.ts"
import { MAX_EXPONENT, MAX_MODULUS_BITS } from "./rsa-oaep.ts"

/** What a key is, as its DER says. */
export interface KeyFacts {
  /** What node:crypto calls it. */
  readonly type: "rsa" | "rsa-pss" | "ec" | "ed25519" | "ed448" | "x25519" | "x448"
  /** Of an RSA key; 0 for another. */
  readonly modulusBits: number
}

const RSA = "1.2.840.113549.1.1.1"
const RSA_PSS = "1.2.840.113549.1.1.10"
const EC = "1.2.840.10045.2.1"

/** RFC 8410: the key is as many bytes. */
const montgomeryAndEdwards: Readonly<Record<string, readonly [KeyFacts["type"], number]>> = {
  "1.3.101.110": ["x25519", 32],
  "1.3.101.111": ["x448", 56],
  "1.3.101.112": ["ed25519", 32],
  "1.3.101.113": ["ed448", 57],
}

/** Kinds that are refused by name. */
const otherKinds: Readonly<Record<string, string>> = {
  "1.2.840.10040.4.1": "a DSA key",
  "1.2.840.10046.2.1": "a DH key",
  "1.2.840.113549.1.3.1": "a DH key",
}

/** y² = x³ - 3x + b modulo p, with p = 3 modulo 4 (SEC 2, 2.4.2, 2.5.1, 2.6.1). */
interface Curve {
  readonly size: number
  readonly p: bigint
  readonly b: bigint
}

const curves: Readonly<Record<string, Curve>> = {
  "1.2.840.10045.3.1.7": {
    size: 32,
    p: 2n ** 256n - 2n ** 224n + 2n ** 192n + 2n ** 96n - 1n,
    b: 0x5ac635d8_aa3a93e7_b3ebbd55_769886bc_651d06b0_cc53b0f6_3bce3c3e_27d2604bn,
  },
  "1.3.132.0.34": {
    size: 48,
    p: 2n ** 384n - 2n ** 128n - 2n ** 96n + 2n ** 32n - 1n,
    b: 0xb3312fa7_e23ee7e4_988e056b_e3f82d19_181d9c6e_fe814112_0314088f_5013875a_c656398d_8a2ed19d_2a85c8ed_d3ec2aefn,
  },
  "1.3.132.0.35": {
    size: 66,
    p: 2n ** 521n - 1n,
    b: 0x51_953eb961_8e1c9a1f_929a21a0_b68540ee_a2da725b_99b315f3_b8b48991_8ef109e1_56193951_ec7e937b_1652c0bd_3bb1bf07_3573df88_3d2c34f1_ef451fd4_6b503f00n,
  },
}

const numberOf = (bytes: Buffer): bigint => BigInt(`0x${bytes.toString("hex")}`)

function power(base: bigint, exponent: bigint, modulus: bigint): bigint {
  let result = 1n
  let square = base % modulus
  for (let left = exponent; left > 0n; left >>= 1n) {
    if ((left & 1n) === 1n) result = (result * square) % modulus
    square = (square * square) % modulus
  }
  return result
}

/** Is it a point of the curve, and not the one at infinity? SEC 1, 2.3.4 and 3.2.2.1; the cofactor of all three is 1. */
function isOnCurve(point: Buffer, { size, p, b }: Curve): boolean {
  const form = point[0]
  const x = numberOf(Buffer.concat([Buffer.of(0), point.subarray(1, 1 + size)]))
  const square = (((x * x * x - 3n * x + b) % p) + p) % p
  if (x >= p) return false
  if (form === 4 && point.length === 1 + 2 * size) {
    const y = numberOf(point.subarray(1 + size))
    return y < p && (y * y) % p === square
  }
  // A square root exists: Euler's criterion. None of the three curves has a point whose y is 0.
  if (form === 2 || form === 3) return point.length === 1 + size && power(square, (p - 1n) / 2n, p) === 1n
  return false
}

/** An algorithm with its parameters (RFC 5280, 4.1.1.2). */
export interface Algorithm {
  readonly id: string
  readonly parameters: DerValue | undefined
}

export function readAlgorithm(reader: DerReader): Algorithm {
  const algorithm = reader.sequence()
  const id = algorithm.oid()
  const parameters = algorithm.isAtEnd ? undefined : algorithm.any()
  algorithm.end()
  return { id, parameters }
}

/** Are there no parameters, or is it NULL where `allowNull`? */
export function hasNoParameters({ parameters }: Algorithm, allowNull: boolean): boolean {
  return parameters === undefined || (allowNull && parameters.bytes.equals(Buffer.of(DerTag.null, 0)))
}

const pssHashes: Readonly<Record<string, "sha256" | "sha384" | "sha512">> = {
  "2.16.840.1.101.3.4.2.1": "sha256",
  "2.16.840.1.101.3.4.2.2": "sha384",
  "2.16.840.1.101.3.4.2.3": "sha512",
}
const MGF1 = "1.2.840.113549.1.1.8"

/** What RSA-PSS hashes with, and with how much salt (RFC 4055, 3.1). undefined: with SHA-1, or two hashes. */
export function pssParameters(
  parameters: DerValue,
): { readonly hash: "sha256" | "sha384" | "sha512"; readonly saltLength: number } | undefined {
  if (parameters.tag !== DerTag.sequence) return undefined
  const reader = new DerReader(parameters.content)
  const hash = reader.explicit(0)
  const mask = reader.explicit(1)
  const salt = reader.explicit(2)
  const trailer = reader.explicit(3)
  reader.end()
  if (hash === undefined || mask === undefined) return undefined
  const name = readAlgorithm(hash)
  const maskName = readAlgorithm(mask)
  if (maskName.id !== MGF1 || maskName.parameters === undefined) return undefined
  const inner = readAlgorithm(new DerReader(maskName.parameters.bytes))
  const found = hasNoParameters(name, true) && hasNoParameters(inner, true) ? pssHashes[name.id] : undefined
  const saltLength = salt?.number() ?? 20
  if (found === undefined || inner.id !== name.id || saltLength > 512) return undefined
  if (trailer !== undefined && trailer.number() !== 1) return undefined
  for (const part of [hash, mask, salt, trailer]) part?.end()
  return { hash: found, saltLength }
}

/** RSAPublicKey (RFC 8017, A.1.1), or the same two numbers within a private key. Gives the modulus's bits. */
function readRsa(reader: DerReader, origin: string): number {
  const modulus = reader.integer()
  const exponent = reader.integer()
  const bits = (modulus.length - 1) * 8 + (32 - Math.clz32(modulus[0] ?? 0))
  if (bits > MAX_MODULUS_BITS)
    throw unsupported(origin, `an RSA key of ${bits} bits (at most ${MAX_MODULUS_BITS})`)
  const isOdd = (number: Buffer): boolean => ((number.at(-1) ?? 0) & 1) === 1
  // Two's complement: the first bit set means below zero.
  if ((modulus[0] ?? 0x80) >= 0x80 || (exponent[0] ?? 0x80) >= 0x80 || !isOdd(modulus) || !isOdd(exponent))
    throw damaged(origin, "the RSA key")
  if (exponent.length > 8) throw unsupported(origin, "an RSA key with an exponent of more than 64 bits")
  if (numberOf(exponent) > MAX_EXPONENT)
    throw unsupported(origin, `an RSA key with the exponent ${numberOf(exponent)}`)
  if (numberOf(exponent) < 3n)
    throw new KeyError("ERR_KEY_WEAK", `${origin}: an RSA key with the exponent 1 hides nothing`)
  return bits
}

/** Of an EC key: parameters that name a curve which is accepted. Explicit ones let everybody choose a generator of his own. */
function curveOf({ parameters }: Algorithm, origin: string): Curve {
  if (parameters === undefined) throw damaged(origin, "the EC key")
  if (parameters.tag !== DerTag.oid) throw unsupported(origin, "an EC key with parameters of its own")
  const id = new DerReader(parameters.bytes).oid()
  const curve = curves[id]
  if (curve === undefined) throw unsupported(origin, `an EC key on the curve ${id}`)
  return curve
}

function checkPoint(point: Buffer, curve: Curve, origin: string): void {
  if (!isOnCurve(point, curve))
    throw new KeyError("ERR_KEY_DAMAGED", `${origin}: the EC key is no point of its curve`)
}

/** Of RSA-PSS: a hash that is accepted, if the key is bound to one. */
function checkPssKey({ parameters }: Algorithm, origin: string): void {
  if (parameters !== undefined && pssParameters(parameters) === undefined)
    throw unsupported(origin, "an RSA-PSS key for a hash other than SHA-256, SHA-384 and SHA-512")
}

function checkRsaParameters(algorithm: Algorithm, origin: string): void {
  if (algorithm.id === RSA_PSS) checkPssKey(algorithm, origin)
  else if (!hasNoParameters(algorithm, true)) throw damaged(origin, "the RSA key")
}

function refuseKind(what: string, { id }: Algorithm, origin: string): never {
  throw wrongType(origin, otherKinds[id] ?? `${what} of algorithm ${id}`)
}

/** Names what DER could not be read as; a KeyError names itself. */
function reading<T>(what: string, origin: string, read: () => T): T {
  try {
    return read()
  } catch (cause) {
    throw cause instanceof KeyError ? cause : damaged(origin, what, cause)
  }
}

/**
 * Looks at a SubjectPublicKeyInfo (RFC 5280, 4.1.2.7).
 *
 * @throws KeyError `ERR_KEY_TYPE`, `ERR_KEY_UNSUPPORTED`, `ERR_KEY_WEAK`, `ERR_KEY_DAMAGED`.
 */
export function checkSpki(spki: Buffer, origin: string, what = "the public key"): KeyFacts {
  return reading(what, origin, () => {
    const reader = DerReader.sequence(spki)
    const algorithm = readAlgorithm(reader)
    const key = reader.octetsOfBits()
    reader.end()
    const other = montgomeryAndEdwards[algorithm.id]
    if (other !== undefined) {
      if (!hasNoParameters(algorithm, false) || key.length !== other[1]) throw damaged(origin, what)
      return { type: other[0], modulusBits: 0 }
    }
    if (algorithm.id === EC) {
      checkPoint(key, curveOf(algorithm, origin), origin)
      return { type: "ec", modulusBits: 0 }
    }
    if (algorithm.id !== RSA && algorithm.id !== RSA_PSS) return refuseKind(what, algorithm, origin)
    checkRsaParameters(algorithm, origin)
    const numbers = DerReader.sequence(key)
    const modulusBits = readRsa(numbers, origin)
    numbers.end()
    return { type: algorithm.id === RSA ? "rsa" : "rsa-pss", modulusBits }
  })
}

/**
 * A public key.
 *
 * @throws KeyError as {@link checkSpki}.
 */
export function admitPublicKey(
  der: Buffer,
  type: "spki" | "pkcs1",
  origin: string,
  what = "the public key",
): KeyObject {
  if (type === "spki") checkSpki(der, origin, what)
  else
    reading(what, origin, () => {
      const reader = DerReader.sequence(der)
      readRsa(reader, origin)
      reader.end()
    })
  return reading(what, origin, () => createPublicKey({ key: der, format: "der", type }))
}

/** PKCS#1 (RFC 8017, A.1.2): no number is longer than the modulus. */
function checkPrivateRsa(der: Buffer, origin: string, what: string): void {
  const reader = DerReader.sequence(der)
  if (reader.number() !== 0) throw unsupported(origin, `${what} with more than two primes`)
  const bits = readRsa(reader, origin)
  for (let count = 0; count < 6; count++)
    if (reader.integer().length * 8 > bits + 16) throw damaged(origin, what)
  reader.end()
}

/** SEC 1, C.4. A public half that is missing is computed, and looked at when that was done. */
function checkPrivateEc(der: Buffer, given: Algorithm | undefined, origin: string): void {
  const reader = DerReader.sequence(der)
  reader.number()
  const scalar = reader.value(DerTag.octetString)
  const named = reader.explicit(0)?.any()
  const curve = curveOf(given ?? { id: EC, parameters: named }, origin)
  if (named !== undefined && given?.parameters?.bytes.equals(named.bytes) === false)
    throw damaged(origin, "the EC key")
  if (scalar.content.length > curve.size) throw damaged(origin, "the EC key")
  const half = reader.explicit(1)
  if (half !== undefined) checkPoint(half.octetsOfBits(), curve, origin)
  reader.end()
}

/** PKCS#8 (RFC 5958, 2). */
function checkPkcs8(der: Buffer, origin: string, what: string): void {
  const reader = DerReader.sequence(der)
  reader.number()
  const algorithm = readAlgorithm(reader)
  const key = reader.value(DerTag.octetString).content
  const other = montgomeryAndEdwards[algorithm.id]
  if (other !== undefined) {
    const inner = new DerReader(key)
    const { length } = inner.value(DerTag.octetString).content
    inner.end()
    if (!hasNoParameters(algorithm, false) || length !== other[1]) throw damaged(origin, what)
  } else if (algorithm.id === EC) checkPrivateEc(key, algorithm, origin)
  else if (algorithm.id === RSA || algorithm.id === RSA_PSS) {
    checkRsaParameters(algorithm, origin)
    checkPrivateRsa(key, origin, what)
  } else refuseKind(what, algorithm, origin)
}

/**
 * A private key that is not locked.
 *
 * @throws KeyError as {@link checkSpki}.
 */
export function admitPrivateKey(
  der: Buffer,
  type: "pkcs1" | "pkcs8" | "sec1",
  origin: string,
  what: string,
): KeyObject {
  const key = reading(what, origin, () => {
    if (type === "pkcs1") checkPrivateRsa(der, origin, what)
    else if (type === "sec1") checkPrivateEc(der, undefined, origin)
    else checkPkcs8(der, origin, what)
    return createPrivateKey({ key: der, format: "der", type })
  })
  return admitKey(key, origin)
}

/**
 * A private key under a password, which OpenSSL unlocks: that a stranger made it, its owner would know.
 *
 * @throws What node:crypto throws; KeyError as {@link checkSpki}.
 */
export function unlockPrivateKey(
  key: Buffer,
  form: { readonly format: "pem" } | { readonly format: "der"; readonly type: "pkcs8" },
  passphrase: Buffer,
  origin: string,
): KeyObject {
  return admitKey(createPrivateKey({ key, ...form, passphrase }), origin)
}

/**
 * A key that somebody else made: a caller, or OpenSSL when it unlocked one. Nothing was asked of it yet, and nothing is before
 * its public half was looked at as DER, which is what this does.
 *
 * @throws KeyError as {@link checkSpki}; `ERR_KEY_TYPE` for a secret key.
 */
export function admitKey(key: KeyObject, origin: string): KeyObject {
  if (key.type === "secret") throw wrongType(origin, "a secret key")
  const spki = reading("the key", origin, () =>
    (key.type === "private" ? createPublicKey(key) : key).export({ type: "spki", format: "der" }),
  )
  checkSpki(spki, origin, "the key")
  return key
}
