// An image from one place to another, as it is: no byte of any part changes, and so no digest.
import { OciError } from "../errors.ts"
import type { Bytes } from "../units.ts"
import { MAX_NESTING, readDocument } from "./image.ts"
import { parseDocument, type Descriptor } from "./manifest.ts"
import { inParallel } from "./parallel.ts"
import { VerifiedBlob, type Document, type ImageSink } from "./sink.ts"
import type { BlobStore } from "./store.ts"

/** More of an image, indexes and manifests together, is not taken. */
const MAX_DOCUMENTS = 1000
const MAX_DOCUMENT_BYTES: Bytes = 64 << 20

/** How an image is copied. */
export interface CopyOptions {
  readonly signal?: AbortSignal | undefined
  /** Bytes of blobs that are there, of how many. */
  readonly onProgress?: ((bytes: Bytes, total: Bytes) => void) | undefined
}

interface Parts {
  /** What a document names stands before it. */
  readonly documents: Map<string, Document>
  readonly blobs: Map<string, Descriptor>
}

function addBlob({ blobs }: Parts, blob: Descriptor, what: string): void {
  const known = blobs.get(blob.digest.text)
  if (known !== undefined && known.size !== blob.size)
    throw new OciError("ERR_OCI_DIGEST", `${what}: ${blob.digest.text} is named with two sizes`)
  blobs.set(blob.digest.text, blob)
}

async function collect(store: BlobStore, descriptor: Descriptor, parts: Parts, depth: number): Promise<void> {
  const { documents } = parts
  if (documents.has(descriptor.digest.text)) return
  const what = `${store.name}: ${descriptor.digest.text}`
  if (depth > MAX_NESTING)
    throw new OciError("ERR_OCI_FORMAT", `${what}: indexes in indexes, more than ${MAX_NESTING} deep`)
  const bytes = await readDocument(store, descriptor, what)
  const document = parseDocument(bytes, descriptor.mediaType, what)
  if (document.kind === "index")
    for (const manifest of document.manifests) await collect(store, manifest, parts, depth + 1)
  else for (const blob of [document.config, ...document.layers]) addBlob(parts, blob, what)
  documents.set(descriptor.digest.text, { descriptor, bytes })
  const total = [...documents.values()].reduce((sum, one) => sum + one.bytes.length, 0)
  if (documents.size > MAX_DOCUMENTS || total > MAX_DOCUMENT_BYTES)
    throw new OciError(
      "ERR_OCI_LIMIT",
      `${store.name}: more than ${MAX_DOCUMENTS} manifests, or ${MAX_DOCUMENT_BYTES} bytes of them`,
    )
}

/**
 * Copies an image with all that it is made of. It has its name when everything is there.
 *
 * @param name - For the copy; undefined: none but its digest.
 * @throws OciError; BuildError `ERR_BUILD_OUTPUT`; the signal's reason.
 */
export async function copyImage(
  { store, descriptor }: { readonly store: BlobStore; readonly descriptor: Descriptor },
  sink: ImageSink,
  name: string | undefined,
  { signal, onProgress }: CopyOptions = {},
): Promise<void> {
  const parts: Parts = { documents: new Map(), blobs: new Map() }
  await collect(store, descriptor, parts, 0)
  const blobs = [...parts.blobs.values()]
  const total = blobs.reduce((sum, { size }) => sum + size, 0)
  let done: Bytes = 0
  // After a failure the others end, too.
  const stop = new AbortController()
  async function* pieces(blob: Descriptor, advance: (have: Bytes) => void): AsyncGenerator<Buffer> {
    let have: Bytes = 0
    for await (const piece of blob.data === undefined ? store.stream(blob) : [blob.data]) {
      signal?.throwIfAborted()
      stop.signal.throwIfAborted()
      yield piece
      advance((have += piece.length))
    }
  }
  await inParallel(blobs, async (blob) => {
    // What is sent again is no progress.
    let most: Bytes = 0
    const advance = (have: Bytes): void => {
      if (have <= most) return
      done += have - most
      most = have
      onProgress?.(done, total)
    }
    try {
      signal?.throwIfAborted()
      if (!(await sink.has(blob)))
        await sink.write(new VerifiedBlob(blob, store.name, () => pieces(blob, advance), store.repository))
      advance(blob.size)
    } catch (error) {
      stop.abort(error)
      throw error
    }
  })
  for (const document of parts.documents.values()) {
    signal?.throwIfAborted()
    if (document.descriptor === descriptor) await sink.finish(document, name)
    else await sink.put(document)
  }
}
