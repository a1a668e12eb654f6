// A blob that is nobody else's business: on disk it is encrypted under a key that only this process has, in a file
// without a name.
import { createCipheriv, randomFillSync } from "node:crypto"
import { mkdir } from "node:fs/promises"
import { allocateSecret } from "../key/secret.ts"
import type { NativeBlob } from "../native/binding.ts"
import { TemporaryFile } from "../oci/temporary-file.ts"
import type { Bytes } from "../units.ts"

const SECTOR: Bytes = 4096
const KEY_SIZE: Bytes = 64

/** Written once, front to back. */
export class Spill implements AsyncDisposable {
  readonly #file: TemporaryFile
  readonly #key = allocateSecret(KEY_SIZE)
  readonly #pending = Buffer.alloc(SECTOR)
  #used = 0
  #sectors = 0

  private constructor(file: TemporaryFile) {
    this.#file = file
    randomFillSync(this.#key)
  }
  static async create(folder: string): Promise<Spill> {
    await mkdir(folder, { recursive: true, mode: 0o700 })
    const file = await TemporaryFile.create(folder)
    await file.unlink()
    return new Spill(file)
  }

  /** aes-xts-plain64, a sector at a time: what the native side reads. */
  #encrypt(sector: Buffer): Buffer {
    const tweak = Buffer.alloc(16)
    tweak.writeBigUInt64LE(BigInt(this.#sectors++) * BigInt(SECTOR / 512))
    const cipher = createCipheriv("aes-256-xts", this.#key, tweak)
    return Buffer.concat([cipher.update(sector), cipher.final()])
  }

  async write(bytes: Buffer): Promise<void> {
    const sectors: Buffer[] = []
    const first = this.#sectors
    for (let at = 0; at < bytes.length;) {
      const n = Math.min(SECTOR - this.#used, bytes.length - at)
      bytes.copy(this.#pending, this.#used, at, at + n)
      this.#used += n
      at += n
      if (this.#used === SECTOR) {
        sectors.push(this.#encrypt(this.#pending))
        this.#used = 0
      }
    }
    if (sectors.length > 0) await this.#file.write(Buffer.concat(sectors), first * SECTOR)
  }

  /** After the last write. */
  async finish(size: Bytes): Promise<NativeBlob> {
    if (this.#used > 0) {
      const first = this.#sectors
      this.#pending.fill(0, this.#used)
      await this.#file.write(this.#encrypt(this.#pending), first * SECTOR)
    }
    const cipher = { type: "xts", key: this.#key, sectorSize: SECTOR, ivTweak: 0 } as const
    return { fd: this.#file.file.fd, offset: 0, size, cipher, storedSize: this.#sectors * SECTOR }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#key.fill(0)
    this.#pending.fill(0)
    await this.#file[Symbol.asyncDispose]()
  }
}
