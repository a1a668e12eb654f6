// Where the parts of an image lie: a folder, an archive, a registry.
import type { FileHandle } from "node:fs/promises"
import type { NativeBlob } from "../native/binding.ts"
import { loadAddon } from "../native/load.ts"
import type { Bytes } from "../units.ts"
import type { Descriptor } from "./manifest.ts"

/** At a registry: its host, by the name that references have. */
export interface Repository {
  readonly host: string
  readonly repository: string
}

/** A source of blobs; disposing it closes files. */
export interface BlobStore extends AsyncDisposable {
  /** For messages. */
  readonly name: string
  /** Where that is one. */
  readonly repository?: Repository
  /** Has what {@link open} gives been compared with its digest? */
  readonly isVerified: boolean
  /** Is it everybody's: has nobody had to be named for what came so far, and may others read the file? Default: true. */
  readonly isPublic?: boolean
  /** A small one, whole; not checked yet. */
  read(descriptor: Descriptor): Promise<Buffer>
  /** One of any size, to be read while this store is open; its size is what the descriptor says. */
  open(descriptor: Descriptor): Promise<NativeBlob>
  /** One of any size, front to back, each time anew; not checked yet. */
  stream(descriptor: Descriptor): AsyncIterable<Buffer>
  /**
   * Has one at hand where whoever comes next finds it, too, if it is everybody's to have.
   *
   * @returns Is it there for {@link stream}?
   */
  keep?(descriptor: Descriptor): Promise<boolean>
  /** Fills a file with one from where an earlier try has left it, and checks all of it. */
  fill?(descriptor: Descriptor, file: FileHandle): Promise<void>
  /** Prepares several that {@link open} will be asked for. */
  fetch?(descriptors: readonly Descriptor[]): Promise<void>
}

const PIECE: Bytes = 1 << 20
// A compressed archive is decoded from its start for each.
const ARCHIVE_PIECE: Bytes = 16 << 20

/** The bytes of a blob, front to back; the next piece is read while somebody has this one. */
export async function* streamBlob(blob: NativeBlob): AsyncGenerator<Buffer, void, undefined> {
  const size = blob.archive === undefined ? PIECE : ARCHIVE_PIECE
  const read = (offset: Bytes): Promise<Buffer> | undefined => {
    if (offset >= blob.size) return undefined
    const piece = loadAddon().readBlob(blob, { offset, size: Math.min(size, blob.size - offset) })
    // Told where it is waited for, if anybody does.
    piece.catch(() => undefined)
    return piece
  }
  let next = read(0)
  try {
    for (let at = size; next !== undefined; at += size) {
      const piece = await next
      next = read(at)
      yield piece
    }
  } finally {
    // The file is closed after that.
    await next?.catch(() => undefined)
  }
}
