// Where the bytes of an image come from: a file or a buffer.
import type { Stats } from "node:fs"
import { open, stat, type FileHandle } from "node:fs/promises"
import { madeOf } from "../disposal.ts"
import { SifError } from "../errors.ts"
import type { Bytes } from "../units.ts"

/** Random access to the bytes of an image. */
export interface ByteReader extends AsyncDisposable {
  readonly size: Bytes
  /** Of an image in a file, valid until the reader is disposed. */
  readonly fd?: number
  /** Its first bytes, of a file as they were when it was opened: most tables lie there. */
  readonly head?: Buffer
  /** At most `length` bytes; fewer only at the end. */
  read(position: Bytes, length: Bytes): Promise<Buffer>
}

/** Header and table of an image as it is usually made. */
const HEAD_SIZE: Bytes = 32768

/** The first bytes of a file. */
export async function readHead(file: FileHandle): Promise<Buffer> {
  const { bytesRead, buffer } = await file.read(Buffer.alloc(HEAD_SIZE), 0, HEAD_SIZE, 0)
  return buffer.subarray(0, bytesRead)
}

/** An image in memory. */
export class BufferReader implements ByteReader {
  readonly #bytes: Buffer
  constructor(bytes: Uint8Array) {
    this.#bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  }
  get size(): Bytes {
    return this.#bytes.length
  }
  read(position: Bytes, length: Bytes): Promise<Buffer> {
    return Promise.resolve(this.#bytes.subarray(position, Math.min(position + length, this.size)))
  }
  async [Symbol.asyncDispose](): Promise<void> {
    // Nothing to give back.
  }
}

/** An image in a file: opened once, read through that descriptor only. */
export class FileReader implements ByteReader {
  readonly #file: FileHandle
  readonly size: Bytes
  readonly head: Buffer
  readonly #owned: boolean
  #closed = false
  private constructor(file: FileHandle, size: Bytes, head: Buffer, owned: boolean) {
    this.#file = file
    this.size = size
    this.head = head
    this.#owned = owned
  }
  /** A file that is open and stays so: it is somebody else's to close. */
  static of(file: FileHandle, size: Bytes): FileReader {
    return new FileReader(file, size, Buffer.alloc(0), false)
  }
  /** @param before - What stat(2) says of it, where that is known. */
  static async open(path: string, before?: Stats): Promise<FileReader> {
    const check = (info: Stats): void => {
      if (info.isFile()) return
      const what = info.isDirectory() ? "a folder" : "not a regular file"
      throw new SifError("ERR_SIF_MAGIC", `not a SIF image: ${what}`)
    }
    // Looked at before, since opening a pipe waits for somebody who writes; not with O_NONBLOCK, which file systems with tapes obey.
    const seen = before ?? (await stat(path).catch(() => undefined))
    if (seen !== undefined) check(seen)
    const file = await open(path, "r")
    return await madeOf(file, async () => {
      // What is asked for together is waited for once.
      const [info, head] = await Promise.all([file.stat(), readHead(file)])
      check(info)
      return new FileReader(file, info.size, head, true)
    })
  }
  /** A closed one would be the number of somebody else's file by and by. */
  get fd(): number {
    this.#needsOpen()
    return this.#file.fd
  }
  #needsOpen(): void {
    if (this.#closed) throw new SifError("ERR_SIF_CLOSED", "the image is closed")
  }
  async read(position: Bytes, length: Bytes): Promise<Buffer> {
    this.#needsOpen()
    const wanted = Math.max(0, Math.min(length, this.size - position))
    const buffer = Buffer.alloc(wanted)
    let done = 0
    while (done < wanted) {
      const { bytesRead } = await this.#file.read(buffer, done, wanted - done, position + done)
      if (bytesRead === 0) break
      done += bytesRead
    }
    return buffer.subarray(0, done)
  }
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    if (this.#owned) await this.#file.close()
  }
}
