// How a layer is encrypted: AES-256-CTR, and HMAC-SHA-256 over the ciphertext, under the same key.
import {
  createCipheriv,
  createDecipheriv,
  createHash,
  createHmac,
  timingSafeEqual,
  type Hash,
} from "node:crypto"
import type { Bytes } from "../units.ts"
import type { LayerKey } from "./layer-key.ts"

const CIPHER = "aes-256-ctr"

/** What a pass over a ciphertext has found. Of the plaintext nothing but its digest is known to anybody yet. */
export interface CheckedLayer {
  readonly size: Bytes
  readonly isAuthentic: boolean
  /** SHA-256 of the plaintext. */
  readonly plainDigest: Buffer
}

/**
 * Reads all of a ciphertext, and gives none of the plaintext.
 *
 * @param hash - Of the ciphertext, which is updated.
 */
export async function checkLayer(
  ciphertext: AsyncIterable<Buffer>,
  { key, iv }: LayerKey,
  mac: Buffer,
  hash?: Hash,
): Promise<CheckedLayer> {
  const running = createHmac("sha256", key)
  const decipher = createDecipheriv(CIPHER, key, iv)
  const plain = createHash("sha256")
  let size = 0
  for await (const piece of ciphertext) {
    size += piece.length
    hash?.update(piece)
    running.update(piece)
    plain.update(decipher.update(piece))
  }
  return { size, isAuthentic: timingSafeEqual(running.digest(), mac), plainDigest: plain.digest() }
}

/** A layer that is being encrypted. */
export class LayerCipher {
  readonly #mac
  readonly #cipher

  constructor({ key, iv }: LayerKey) {
    this.#mac = createHmac("sha256", key)
    this.#cipher = createCipheriv(CIPHER, key, iv)
  }

  encrypt(piece: Buffer): Buffer {
    const ciphertext = this.#cipher.update(piece)
    this.#mac.update(ciphertext)
    return ciphertext
  }

  /** Of all that was encrypted. Once. */
  mac(): Buffer {
    return this.#mac.digest()
  }
}
