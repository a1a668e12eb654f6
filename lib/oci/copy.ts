// An image from one place to another. As it is, no byte of any part changes, and so no digest; what is chosen of an index, or
// becomes of a layer, changes what names it, and nothing else.
import { OciError } from "../errors.ts"
import type { Bytes } from "../units.ts"
import { isEncryptedType } from "../ocicrypt/annotations.ts"
import { digestOf, type Digest } from "./digest.ts"
import { MAX_LAYER_BYTES, MAX_NESTING, readDocument, resolveManifest } from "./image.ts"
import {
  isConfigType,
  isIndexType,
  MAX_DOCUMENT_BYTES,
  OCI_MANIFEST,
  ociDocument,
  ociType,
  parseConfig,
  parseDocument,
  platformFits,
  platformText,
  withDescriptors,
  type Descriptor,
  type ImageIndex,
  type ImageManifest,
  type Platform,
} from "./manifest.ts"
import { inParallel } from "./parallel.ts"
import { VerifiedBlob, type Document, type ImageSink } from "./sink.ts"
import type { BlobStore } from "./store.ts"

/** More of an image, indexes and manifests together, is not taken. */
const MAX_DOCUMENTS = 1000

/** An image that was found: where its parts lie, and which it is. */
export interface CopySource {
  readonly store: BlobStore
  readonly descriptor: Descriptor
}

/** Bytes from the first on, at each call. */
type Opener = () => AsyncIterable<Buffer> | Iterable<Buffer>

/** What a layer becomes. */
export interface MappedLayer {
  /** Of the new bytes, with all annotations that it is to have. */
  readonly descriptor: Descriptor
  readonly open: Opener
}

/** Where a layer stands. */
export interface LayerPlace {
  readonly store: BlobStore
  readonly manifest: ImageManifest
  /** From 0, the base. */
  readonly index: number
  /** By the index, or else by the configuration; undefined where that is no image's. */
  readonly platform: Platform | undefined
}

/** Says what becomes of a layer; undefined: it stays as it is. Asked once for each layer of each manifest, several at a time. */
export type LayerMap = (layer: Descriptor, place: LayerPlace) => Promise<MappedLayer | undefined>

/** How an image is copied. */
export interface CopyOptions {
  /** For these only: of one, its manifest as it is; of several, the index with nothing else in it. Default: everything. */
  readonly platforms?: readonly Platform[] | undefined
  readonly mapLayer?: LayerMap | undefined
  /** Called when each layer was asked for and nothing is written yet. */
  readonly onMapped?: (() => void) | undefined
  /** Of an index what is there, which may be a part of it only. Default: it is an error if anything is not. */
  readonly partial?: boolean | undefined
  /** What it has to be there, or else nothing is written. */
  readonly digest?: Digest | undefined
  readonly signal?: AbortSignal | undefined
  /** Hears what somebody should know. */
  readonly onNotice?: ((text: string) => void) | undefined
  /** More of it, blobs together, is an error. Default {@link MAX_LAYER_BYTES}. */
  readonly maxLayerBytes?: Bytes | undefined
  /** Bytes of blobs that are there, of how many. */
  readonly onProgress?: ((bytes: Bytes, total: Bytes) => void) | undefined
}

/** Of one digest, wherever it is named. */
interface Part extends MappedLayer {
  /** In another repository it lies as it is. */
  readonly isCopy: boolean
}

/** Where it lies it may not be given away; whoever needs it has addresses. */
function isForeign({ mediaType, urls = [] }: Descriptor): boolean {
  return urls.length > 0 && /nondistributable|\.foreign\./.test(mediaType)
}

/** What names a document now; undefined: as before. Another entry of the index can name the same one in other words. */
function changedEntry(entry: Descriptor, { descriptor }: Document): Descriptor | undefined {
  const { digest, size, mediaType } = descriptor
  return digest.text === entry.digest.text
    ? undefined
    : { ...entry, digest, size, mediaType, data: undefined }
}

/** Everything that the copy will be made of. */
class Plan {
  /** By the digest in the source, and what it is for. What a document names stands before it. */
  readonly documents = new Map<string, Document>()
  readonly parts = new Map<string, Part>()
  readonly #store: BlobStore
  readonly #options: CopyOptions
  readonly #found = new Set<Platform>()
  readonly #counted = new Set<string>()
  #read = 0
  #bytes: Bytes = 0
  #blobBytes: Bytes = 0

  constructor(store: BlobStore, options: CopyOptions) {
    this.#store = store
    this.#options = options
  }

  /** Before anything is made of it: each time that it is named in other words, as what becomes of it depends on them. */
  #count({ digest, size, mediaType, annotations }: Descriptor): void {
    const { mapLayer, maxLayerBytes: limit = MAX_LAYER_BYTES } = this.#options
    const named = mapLayer === undefined ? digest.text : JSON.stringify([digest.text, mediaType, annotations])
    if (this.#counted.has(named)) return
    this.#counted.add(named)
    this.#blobBytes += size
    if (this.#blobBytes > limit)
      throw new OciError("ERR_OCI_LIMIT", `${this.#store.name}: more than ${limit} bytes of blobs`, {
        limit: "layers",
      })
  }

  #addPart(part: Part, what: string): void {
    const { digest, size } = part.descriptor
    const known = this.parts.get(digest.text)
    if (known !== undefined && known.descriptor.size !== size)
      throw new OciError("ERR_OCI_DIGEST", `${what}: ${digest.text} is named with two sizes`)
    this.parts.set(digest.text, part)
  }

  #copied(blob: Descriptor): Part {
    const { data } = blob
    const open: Opener = () => (data === undefined ? this.#store.stream(blob) : [data])
    return { descriptor: blob, open, isCopy: true }
  }

  async #layer(layer: Descriptor, place: LayerPlace, what: string): Promise<Descriptor | undefined> {
    if (!isForeign(layer) || this.#options.mapLayer !== undefined) this.#count(layer)
    const mapped = await this.#options.mapLayer?.(layer, place)
    if (mapped !== undefined) this.#addPart({ ...mapped, isCopy: false }, what)
    else if (isForeign(layer))
      this.#options.onNotice?.(
        `${what}: layer ${place.index} may not be passed on: it stays where ${layer.urls?.[0] ?? ""} has it`,
      )
    else this.#addPart(this.#copied(layer), what)
    return mapped?.descriptor
  }

  async #manifest(
    manifest: ImageManifest,
    platform: Platform | undefined,
    what: string,
  ): Promise<(Descriptor | undefined)[]> {
    this.#count(manifest.config)
    this.#addPart(this.#copied(manifest.config), what)
    const place = { store: this.#store, manifest, platform }
    if (this.#options.mapLayer !== undefined && platform === undefined && isConfigType(manifest.config))
      place.platform = parseConfig(await readDocument(this.#store, manifest.config, what), what).platform
    const changed = manifest.layers.map((): Descriptor | undefined => undefined)
    await inParallel(manifest.layers.entries(), async ([index, layer]) => {
      changed[index] = await this.#layer(layer, { ...place, index }, what)
    })
    return changed
  }

  /** null: it is left out. */
  async #index(index: ImageIndex, depth: number): Promise<(Descriptor | undefined | null)[]> {
    const changed: (Descriptor | undefined | null)[] = []
    for (const entry of index.manifests) {
      const document = this.#isWanted(entry) ? await this.#addBelow(entry, depth + 1) : undefined
      changed.push(document === undefined ? null : changedEntry(entry, document))
    }
    return changed
  }

  async #addBelow(entry: Descriptor, depth: number): Promise<Document | undefined> {
    const { partial = false, onNotice } = this.#options
    try {
      return await this.add(entry, depth)
    } catch (error) {
      if (!partial || !(error instanceof OciError && error.code === "ERR_OCI_NOT_FOUND")) throw error
      const { platform, digest } = entry
      const what = platform === undefined ? digest.text : platformText(platform)
      onNotice?.(`${this.#store.name}: what it has for ${what} is not there, and is left out`)
      return undefined
    }
  }

  #isWanted({ platform }: Descriptor): boolean {
    const { platforms } = this.#options
    // What an index in an index is for, that one says.
    if (platforms === undefined || platform === undefined) return true
    const fits = platforms.filter((one) => platformFits(platform, one))
    for (const one of fits) this.#found.add(one)
    return fits.length > 0
  }

  /** undefined: nothing of it was asked for. */
  async add(descriptor: Descriptor, depth: number): Promise<Document | undefined> {
    const { signal, platforms, mapLayer } = this.#options
    signal?.throwIfAborted()
    // What becomes of its layers may depend on what it is for.
    const { platform } = descriptor
    const target = mapLayer === undefined || platform === undefined ? "" : platformText(platform)
    const key = `${descriptor.digest.text} ${target}`
    const known = this.documents.get(key)
    if (known !== undefined) return known
    const { name } = this.#store
    const what = `${name}: ${descriptor.digest.text}`
    if (depth > MAX_NESTING)
      throw new OciError("ERR_OCI_FORMAT", `${what}: indexes in indexes, more than ${MAX_NESTING} deep`)
    const bytes = await readDocument(this.#store, descriptor, what)
    this.#bytes += bytes.length
    if (++this.#read > MAX_DOCUMENTS || this.#bytes > MAX_DOCUMENT_BYTES)
      throw new OciError(
        "ERR_OCI_LIMIT",
        `${name}: more than ${MAX_DOCUMENTS} manifests, or ${MAX_DOCUMENT_BYTES} bytes of them`,
      )
    const document = parseDocument(bytes, descriptor.mediaType, what)
    const isChoice = platforms !== undefined && depth > 0 && descriptor.platform === undefined
    // Nobody says what it is for.
    if (document.kind === "manifest" && isChoice) return undefined
    const changed =
      document.kind === "index"
        ? await this.#index(document, depth)
        : await this.#manifest(document, descriptor.platform, what)
    if (document.kind === "index" && changed.length > 0 && changed.every((one) => one === null))
      return undefined
    const made = changed.every((one) => one === undefined)
      ? { descriptor, bytes }
      : changedDocument(descriptor, bytes, changed, what)
    this.documents.set(key, made)
    return made
  }

  /** @throws OciError `ERR_OCI_NOT_FOUND`. */
  checkFound(): void {
    const missing = this.#options.platforms?.find((one) => !this.#found.has(one))
    if (missing !== undefined)
      throw new OciError(
        "ERR_OCI_NOT_FOUND",
        `${this.#store.name}: there is no image for ${platformText(missing)}`,
      )
  }
}

function changedDocument(
  old: Descriptor,
  bytes: Buffer,
  changed: readonly (Descriptor | undefined | null)[],
  what: string,
): Document {
  // Docker's manifests name no encrypted layers, and its lists no manifests of OCI's.
  const isOci = changed.some(
    (one) => isEncryptedType(one?.mediaType ?? "") || one?.mediaType === OCI_MANIFEST,
  )
  const made = withDescriptors(isOci ? ociDocument(bytes, what) : bytes, changed, what)
  const mediaType = isOci ? ociType(old.mediaType) : old.mediaType
  const descriptor = { ...old, mediaType, digest: digestOf(made), size: made.length, data: undefined }
  return { descriptor, bytes: made }
}

/** Everything of it, or of one platform the manifest: that needs no index. */
async function planOf(source: CopySource, options: CopyOptions): Promise<Plan> {
  const { store, descriptor } = source
  const { platforms, ...rest } = options
  const [only, ...more] = platforms ?? []
  if (only === undefined || more.length > 0) {
    const plan = new Plan(store, options)
    const root = await plan.add(descriptor, 0)
    plan.checkFound()
    if (root === undefined) throw new OciError("ERR_OCI_NOT_FOUND", `${store.name}: nothing of it is there`)
    return plan
  }
  const found = await resolveManifest(store, descriptor, only)
  const plan = new Plan(store, rest)
  const what = `${store.name}: ${found.descriptor.digest.text}`
  if (!found.chosen && isConfigType(found.manifest.config)) {
    const { platform } = parseConfig(await readDocument(store, found.manifest.config, what), what)
    if (platform.architecture !== "" && !platformFits(platform, only))
      throw new OciError(
        "ERR_OCI_NOT_FOUND",
        `${store.name}: it is for ${platformText(platform)}, not for ${platformText(only)}`,
      )
  }
  await plan.add(found.descriptor, 0)
  return plan
}

/**
 * Copies an image with all that it is made of. It has its name when everything is there.
 *
 * @param name - For the copy; undefined: none but its digest.
 * @returns What it is there: as it was, where nothing was to change.
 * @throws OciError; BuildError `ERR_BUILD_OUTPUT`; the signal's reason; what `mapLayer` throws.
 */
export async function copyImage(
  source: CopySource,
  sink: ImageSink,
  name: string | undefined,
  options: CopyOptions = {},
): Promise<Descriptor> {
  const { store } = source
  const { signal, onProgress } = options
  const plan = await planOf(source, options)
  options.onMapped?.()
  const documents = [...plan.documents.values()]
  const root = documents.pop()
  if (root === undefined) throw new RangeError("nothing was to be copied")
  const { text } = root.descriptor.digest
  if (options.digest !== undefined && options.digest.text !== text)
    throw new OciError(
      "ERR_OCI_DIGEST",
      `${store.name}: it is ${text} and cannot become ${options.digest.text}`,
    )
  if (sink.takesIndexes === false && isIndexType(root.descriptor.mediaType))
    throw new OciError(
      "ERR_OCI_UNSUPPORTED",
      `${sink.name}: it takes images of one platform, not indexes of several`,
    )
  const parts = [...plan.parts.values()]
  const total = parts.reduce((sum, { descriptor }) => sum + descriptor.size, 0)
  let done: Bytes = 0
  // After a failure the others end, too.
  const stop = new AbortController()
  async function* pieces(open: Opener, advance: (have: Bytes) => void): AsyncGenerator<Buffer> {
    let have: Bytes = 0
    for await (const piece of open()) {
      signal?.throwIfAborted()
      stop.signal.throwIfAborted()
      yield piece
      advance((have += piece.length))
    }
  }
  await inParallel(parts, async ({ descriptor, open, isCopy }) => {
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
      const origin = isCopy ? store.repository : undefined
      if (!(await sink.has(descriptor)))
        await sink.write(new VerifiedBlob(descriptor, store.name, () => pieces(open, advance), origin))
      advance(descriptor.size)
    } catch (error) {
      stop.abort(error)
      throw error
    }
  })
  for (const document of documents) {
    signal?.throwIfAborted()
    await sink.put(document)
  }
  signal?.throwIfAborted()
  await sink.finish(root, name)
  return root.descriptor
}
