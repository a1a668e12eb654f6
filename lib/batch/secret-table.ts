// The secrets of a set's images as one piece of memory, which goes from the process that opened them to where they are given out.
import { readSync } from "node:fs"
import { BatchError } from "../errors.ts"
import { loadAddon } from "../native/load.ts"
import type { Bytes } from "../units.ts"

const DIGEST_SIZE: Bytes = 32
/** Longer than the secret of any image. */
export const MAX_SECRET: Bytes = 512
/** Of all images together: less than any user may lock. */
export const MAX_SECRETS: Bytes = 60 * 1024

/** Secrets by the digests of their images, in memory that is locked and in no dump. */
export class SecretTable implements Disposable {
  readonly #memory: Buffer
  readonly #places = new Map<string, Buffer>()

  private constructor(memory: Buffer) {
    this.#memory = memory
  }

  /** As {@link SecretTable.write} writes it, to the end of what is read. */
  static readFrom(fd: number): SecretTable {
    const memory = loadAddon().secretMemory({ size: MAX_SECRETS })
    let used = 0
    for (;;) {
      const count = readSync(fd, memory, used, memory.length - used, null)
      if (count === 0) break
      used += count
      if (used === memory.length)
        throw new BatchError("ERR_BATCH_SET", "the images have too many secrets for one set")
    }
    return SecretTable.of(memory, used)
  }

  /**
   * As {@link SecretTable.write} writes it; the bytes are the table's from here on.
   *
   * @throws BatchError `ERR_BATCH_SET` where they are no table.
   */
  static of(memory: Buffer, used: Bytes = memory.length): SecretTable {
    const table = new SecretTable(memory)
    for (let at = 0; at < used;) {
      const start = at + DIGEST_SIZE + 2
      const end = start > used ? start : start + memory.readUInt16BE(at + DIGEST_SIZE)
      if (end > used) {
        memory.fill(0)
        throw new BatchError("ERR_BATCH_SET", "what should be the secrets of images is cut short")
      }
      table.#places.set(memory.toString("hex", at, at + DIGEST_SIZE), memory.subarray(start, end))
      at = end
    }
    return table
  }

  /** The bytes that another process reads; the caller wipes them. */
  static write(secrets: ReadonlyMap<string, Uint8Array>): Buffer {
    const size = [...secrets.values()].reduce((sum, secret) => sum + DIGEST_SIZE + 2 + secret.length, 0)
    if (size >= MAX_SECRETS || [...secrets.values()].some(({ length }) => length > MAX_SECRET))
      throw new BatchError("ERR_BATCH_SET", "the images have too many secrets for one set")
    const memory = loadAddon().secretMemory({ size: Math.max(1, size) })
    let at = 0
    for (const [digest, secret] of secrets) {
      memory.write(digest, at, "hex")
      at = memory.writeUInt16BE(secret.length, at + DIGEST_SIZE)
      memory.set(secret, at)
      at += secret.length
    }
    return memory.subarray(0, size)
  }

  get(digest: string): Buffer | undefined {
    return this.#places.get(digest)
  }

  [Symbol.dispose](): void {
    this.#memory.fill(0)
    this.#places.clear()
  }
}
