// Secrets are bytes with an owner: allocated apart from Node's shared slab, wiped when their owner is done.

/** A secret that is wiped when disposed. */
export class Secret implements Disposable {
  readonly #bytes: Buffer
  #wiped = false

  /** Copies; the caller wipes its own. */
  constructor(bytes: Uint8Array) {
    this.#bytes = Buffer.alloc(bytes.length)
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
