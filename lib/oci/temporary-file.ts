// A file that nobody finds before it is whole.
import { randomBytes } from "node:crypto"
import { constants } from "node:fs"
import { open, rename, rm, type FileHandle } from "node:fs/promises"
import path from "node:path"
import { loadAddon } from "../native/load.ts"
import type { Bytes } from "../units.ts"

/** How the names begin that such files have where there are none without. */
export const TEMPORARY = ".sifcrypt-"

/** What leads to an open file in this process, whether it has a name or not. */
export function descriptorPath({ file }: { readonly file: FileHandle }): string {
  return `/proc/self/fd/${file.fd}`
}

/** Gone when it is closed, unless it was given a name. */
export class TemporaryFile implements AsyncDisposable {
  readonly file: FileHandle
  #name: string | undefined

  private constructor(file: FileHandle, name: string | undefined) {
    this.file = file
    this.#name = name
  }

  static async create(folder: string, mode = 0o600): Promise<TemporaryFile> {
    try {
      // Linux's O_TMPFILE, which node:fs does not name.
      const flags = constants.O_RDWR | 0o20000000 | constants.O_DIRECTORY
      return new TemporaryFile(await open(folder, flags, mode), undefined)
    } catch {
      // NFS has none.
      const name = path.join(folder, `${TEMPORARY}${randomBytes(12).toString("hex")}`)
      return new TemporaryFile(await open(name, "wx+", mode), name)
    }
  }

  async write(bytes: Buffer, position: Bytes): Promise<void> {
    await writeAll(this.file, bytes, position)
  }

  /** Nobody can find it any more. */
  async unlink(): Promise<void> {
    if (this.#name !== undefined) await rm(this.#name)
    this.#name = undefined
  }

  /** On the same file system; what has the name is replaced. */
  async publish(target: string): Promise<void> {
    if (this.#name === undefined) {
      await loadAddon().publishFile({ fd: this.file.fd, path: target, replace: true })
      return
    }
    await this.file.sync()
    await rename(this.#name, target)
    this.#name = undefined
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.file.close()
    } finally {
      if (this.#name !== undefined) await rm(this.#name, { force: true })
    }
  }
}

/**
 * Writes pieces one behind the other, each while the next one comes.
 *
 * @returns Where the last one ends.
 */
export async function writePieces(
  pieces: AsyncIterable<Buffer> | Iterable<Buffer>,
  write: (piece: Buffer, position: Bytes) => Promise<void>,
  position: Bytes = 0,
): Promise<Bytes> {
  let end = position
  let writing = Promise.resolve()
  try {
    for await (const piece of pieces) {
      await writing
      writing = write(piece, end)
      // Told where it is waited for.
      writing.catch(() => undefined)
      end += piece.length
    }
    await writing
    return end
  } finally {
    // The file is closed after that.
    await writing.catch(() => undefined)
  }
}

export async function writeAll(file: FileHandle, bytes: Buffer, position: Bytes): Promise<void> {
  for (let done = 0; done < bytes.length;)
    done += (await file.write(bytes, done, bytes.length - done, position + done)).bytesWritten
}
