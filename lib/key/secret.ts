// Secrets are bytes with an owner: allocated where no copy of them stays behind, wiped when their owner is done.
import * as is from "../arguments.ts"
import type { Decipher } from "node:crypto"

/**
 * A buffer for a secret, filled with zeros; whoever asked for it wipes it. `Buffer.alloc` will not do: up to 64 bytes lie
 * in V8's own heap, where its garbage collector and every native call leave copies that nobody can wipe.
 *
 * @param size - Bytes.
 */
export function allocateSecret(size: number): Buffer {
  return Buffer.from(new ArrayBuffer(is.count(size, "size")))
}

const HEX = Buffer.from("0123456789abcdef")

/** Bytes as hexadecimal digits, for where a secret is text; never as a string. The caller wipes both. */
export function hexSecret(bytes: Uint8Array): Buffer {
  const digits = allocateSecret(2 * bytes.length)
  for (const [i, byte] of bytes.entries()) {
    digits[2 * i] = HEX[byte >> 4] ?? 0
    digits[2 * i + 1] = HEX[byte & 15] ?? 0
  }
  return digits
}

/** Bytes that are deciphered at a time. */
const PIECE = 16

/**
 * Deciphers a secret, to its end. Node moves each output to a place of its size and frees the first one unwiped: as small
 * pieces they all use the same few bytes, and what was deciphered is not left there as a whole.
 *
 * @returns The secret, which the caller wipes.
 * @throws What the decipher throws; nothing is left of the output then.
 */
export function decipherSecret(decipher: Decipher, sealed: Buffer): Buffer {
  const plain = allocateSecret(sealed.length)
  let size = 0
  const take = (part: Buffer): void => {
    size += part.copy(plain, size)
    part.fill(0)
  }
  try {
    for (let at = 0; at < sealed.length; at += PIECE) take(decipher.update(sealed.subarray(at, at + PIECE)))
    take(decipher.final())
    return plain.subarray(0, size)
  } catch (error) {
    plain.fill(0)
    throw error
  }
}

/** A secret that is wiped when disposed. */
export class Secret implements Disposable {
  readonly #bytes: Buffer
  #wiped = false

  /** Copies; the caller wipes its own. */
  constructor(bytes: Uint8Array) {
    this.#bytes = allocateSecret(bytes.length)
    this.#bytes.set(bytes)
  }

  /** The bytes themselves, not a copy. Throws once wiped. */
  get bytes(): Buffer {
    if (this.#wiped) throw new Error("the secret was wiped")
    return this.#bytes
  }

  get length(): number {
    return this.#bytes.length
  }

  wipe(): void {
    this.#wiped = true
    this.#bytes.fill(0)
  }

  [Symbol.dispose](): void {
    this.wipe()
  }
}
