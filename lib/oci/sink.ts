// Where the parts of an image are written: a folder, a registry. Only what is verified gets there.
import { OciError } from "../errors.ts"
import type { Bytes } from "../units.ts"
import { checkDigest, hashFor } from "./digest.ts"
import type { Descriptor } from "./manifest.ts"
import type { Repository } from "./store.ts"

/** A manifest or an index that is what its descriptor says. */
export interface Document {
  readonly descriptor: Descriptor
  readonly bytes: Buffer
}

/** Where blobs go first, then the documents that name them, and at last the one that is the image. */
export interface ImageSink extends AsyncDisposable {
  /** For messages. */
  readonly name: string
  /** Default: true. */
  readonly takesIndexes?: boolean
  /** Is it there, so that it need not be written? */
  has(blob: Descriptor): Promise<boolean>
  /** The blob is there when all of it is. */
  write(blob: VerifiedBlob): Promise<void>
  /** A document that another one names. */
  put(document: Document): Promise<void>
  /** The image itself. Whoever looks for `name` finds all of this one from now on; undefined: it has its digest only. */
  finish(document: Document, name: string | undefined): Promise<void>
  /** After the last image, where until then nobody can find any. */
  complete?(): Promise<void>
}

/** A blob on its way. Its last bytes come when all of them are known to be what its descriptor says. */
export class VerifiedBlob {
  readonly descriptor: Descriptor
  /** It lies there, too. */
  readonly origin: Repository | undefined
  readonly #where: string
  readonly #open: () => AsyncIterable<Buffer> | Iterable<Buffer>

  /**
   * @param where - It comes from, for messages.
   * @param open - Its bytes from the first on, at each call.
   */
  constructor(
    descriptor: Descriptor,
    where: string,
    open: () => AsyncIterable<Buffer> | Iterable<Buffer>,
    origin?: Repository,
  ) {
    this.descriptor = descriptor
    this.origin = origin
    this.#where = where
    this.#open = open
  }

  /**
   * From the first byte on, at each call.
   *
   * @throws OciError `ERR_OCI_DIGEST`, and what its source throws.
   */
  async *read(): AsyncGenerator<Buffer, void, undefined> {
    const { digest, size } = this.descriptor
    const what = `${this.#where}: ${digest.text}`
    const hash = hashFor(digest)
    let have: Bytes = 0
    if (size === 0) checkDigest(hash, digest, what)
    for await (const piece of this.#open()) {
      if (piece.length === 0) continue
      have += piece.length
      if (have > size)
        throw new OciError("ERR_OCI_DIGEST", `${what}: more than the ${size} bytes that are promised`)
      hash.update(piece)
      if (have === size) checkDigest(hash, digest, what)
      yield piece
    }
    if (have < size) throw new OciError("ERR_OCI_DIGEST", `${what}: ${have} bytes where ${size} are promised`)
  }
}
