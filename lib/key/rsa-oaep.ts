// RSAES-OAEP with SHA-256 and an empty label, chunk by chunk, as the peers wrap an image's secret.
import { privateDecrypt, publicEncrypt, type KeyObject } from "node:crypto"
import { allocateSecret } from "./secret.ts"

const HASH_SIZE = 32
/** The secrets of all writers fit in two; more would only cost time. */
const MAX_CHUNKS = 8
const RSA_PKCS1_OAEP_PADDING = 4 // openssl/rsa.h; asking node:crypto would load it at the start of every command
const scheme = { padding: RSA_PKCS1_OAEP_PADDING, oaepHash: "sha256" } as const

/** Larger keys are in nobody's use, and would only cost time. */
export const MAX_MODULUS_BITS: number = 16384
export const MAX_EXPONENT: bigint = 0x1_0000_0001n

/** Bits of an RSA key's modulus. */
export function modulusBits(key: KeyObject): number {
  return key.asymmetricKeyDetails?.modulusLength ?? 0
}

/** Bytes of the modulus: the size of one wrapped chunk. */
function modulusSize(key: KeyObject): number {
  return Math.ceil(modulusBits(key) / 8)
}

/** Wraps `secret` for the holder of the private key. */
export function wrapSecret(publicKey: KeyObject, secret: Uint8Array): Buffer {
  const chunk = modulusSize(publicKey) - 2 * HASH_SIZE - 2
  const wrapped: Buffer[] = []
  for (let at = 0; at < secret.length; at += chunk)
    wrapped.push(publicEncrypt({ key: publicKey, ...scheme }, secret.subarray(at, at + chunk)))
  return Buffer.concat(wrapped)
}

/** More than malloc keeps at hand of one size for a thread (glibc: 7, since 2.42 16). */
const PLACES_AT_HAND = 32

/**
 * Unwraps what {@link wrapSecret} made.
 *
 * @returns The secret, which the caller wipes, or undefined when it was wrapped for another key.
 */
export function unwrapSecret(privateKey: KeyObject, wrapped: Buffer): Buffer | undefined {
  const size = modulusSize(privateKey)
  if (wrapped.length === 0 || wrapped.length % size !== 0 || wrapped.length / size > MAX_CHUNKS)
    return undefined
  const chunks: Buffer[] = []
  try {
    for (let at = 0; at < wrapped.length; at += size)
      chunks.push(privateDecrypt({ key: privateKey, ...scheme }, wrapped.subarray(at, at + size)))
    const secret = allocateSecret(chunks.reduce((sum, { length }) => sum + length, 0))
    let at = 0
    for (const chunk of chunks) at += chunk.copy(secret, at)
    return secret
  } catch {
    // OAEP tells "not for this key" and "damaged" apart for nobody, by design.
    return undefined
  } finally {
    for (const chunk of chunks) chunk.fill(0)
    // privateDecrypt decrypts into a place as large as the modulus, moves the secret to one of its size and frees the first one
    // unwiped. Malloc keeps that at hand for whoever asks next, or lets it join what is free around it: then it is for the caller to have
    // it overwritten (lib/device/process.ts), since this needs nothing native.
    const places = Array.from({ length: PLACES_AT_HAND }, () => Buffer.allocUnsafeSlow(size))
    for (const place of places) place.fill(0)
  }
}
