// Secrets are bytes with an owner: allocated where no copy of them stays behind, wiped when their owner is done.

/**
 * A buffer for a secret, filled with zeros; whoever asked for it wipes it. `Buffer.alloc` will not do: up to 64 bytes lie
 * in V8's own heap, where its garbage collector and every native call leave copies that nobody can wipe.
 *
 * @param size - Bytes.
 */
export function allocateSecret(size: number): Buffer {
  return Buffer.from(new ArrayBuffer(size))
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
