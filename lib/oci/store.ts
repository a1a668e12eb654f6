// Where the parts of an image lie: a folder, an archive, a registry.
import type { NativeBlob } from "../native/binding.ts"
import type { Descriptor } from "./manifest.ts"

/** A source of blobs; disposing it closes files. */
export interface BlobStore extends AsyncDisposable {
  /** For messages. */
  readonly name: string
  /** Has what {@link open} gives been compared with its digest? */
  readonly isVerified: boolean
  /** A small one, whole; not checked yet. */
  read(descriptor: Descriptor): Promise<Buffer>
  /** One of any size, to be read while this store is open; its size is what the descriptor says. */
  open(descriptor: Descriptor): Promise<NativeBlob>
  /** Prepares several that {@link open} will be asked for. */
  fetch?(descriptors: readonly Descriptor[]): Promise<void>
}
