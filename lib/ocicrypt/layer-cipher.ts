// How a layer is encrypted: AES-256-CTR, and HMAC-SHA-256 over the ciphertext, under the same key.
import { createCipheriv, createHmac, type Cipher } from "node:crypto"
import type { NativeBlob } from "../native/binding.ts"
import { loadAddon } from "../native/load.ts"
import type { LayerKey } from "./layer-key.ts"

const CIPHER = "aes-256-ctr"

/** What a pass over a ciphertext has found. Of the plaintext nothing but its digest is known to anybody yet. */
export interface CheckedLayer {
  readonly isAuthentic: boolean
  /** Has it the digest that was expected, if one was? */
  readonly matches: boolean
  /** SHA-256 of the plaintext. */
  readonly plainDigest: Buffer
}

/**
 * Reads all of a ciphertext, and gives none of the plaintext. MAC and digests are computed at the same time.
 *
 * @param digest - Of the ciphertext, SHA-256 or SHA-512; undefined: it was compared already.
 * @throws The signal's reason.
 */
export async function checkLayer(
  blob: NativeBlob,
  { key, iv }: LayerKey,
  mac: Buffer,
  {
    digest,
    signal,
  }: { readonly digest?: Buffer | undefined; readonly signal?: AbortSignal | undefined } = {},
): Promise<CheckedLayer> {
  signal?.throwIfAborted()
  try {
    const layer = { blob, counter: { key, iv }, mac, digest }
    return await loadAddon().checkCiphertext(layer, () => signal?.aborted !== true)
  } finally {
    // Whether it was stopped, or had ended before it heard of it.
    signal?.throwIfAborted()
  }
}

/** What encrypts a layer from its first byte on, and decrypts it. */
export function newCipher({ key, iv }: LayerKey): Cipher {
  return createCipheriv(CIPHER, key, iv)
}

/** A layer that is being encrypted. */
export class LayerCipher {
  readonly #mac
  readonly #cipher

  constructor(key: LayerKey) {
    this.#mac = createHmac("sha256", key.key)
    this.#cipher = newCipher(key)
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
