// An image of an archive of `docker save`, as one that has a manifest: which the archive has not, so it is made here. It says what the
// archive has, byte for byte.
import { OciError } from "../errors.ts"
import type { NativeBlob } from "../native/binding.ts"
import type { CopySource } from "./copy.ts"
import { checkBytes, digestOf, hashFor, parseDigest, type Digest } from "./digest.ts"
import type { FoundImage, SavedImage } from "./layout.ts"
import { OCI_CONFIG, OCI_MANIFEST, parseConfig, type Descriptor } from "./manifest.ts"
import { asArchiveError } from "./native-error.ts"
import { streamBlob, type BlobStore } from "./store.ts"
import type { Bytes } from "../units.ts"

const layerType = "application/vnd.oci.image.layer.v1.tar"
/** RFC 1952, RFC 8878. */
const compressions: readonly (readonly [magic: Buffer, suffix: string])[] = [
  [Buffer.from("1f8b", "hex"), "+gzip"],
  [Buffer.from("28b52ffd", "hex"), "+zstd"],
]

class SavedStore implements BlobStore {
  readonly isVerified = false
  readonly #archive: BlobStore
  readonly #documents: ReadonlyMap<string, Buffer>
  readonly #layers: ReadonlyMap<string, NativeBlob>

  constructor(
    archive: BlobStore,
    documents: ReadonlyMap<string, Buffer>,
    layers: ReadonlyMap<string, NativeBlob>,
  ) {
    this.#archive = archive
    this.#documents = documents
    this.#layers = layers
  }
  get name(): string {
    return this.#archive.name
  }
  get isPublic(): boolean {
    return this.#archive.isPublic !== false
  }
  #missing({ digest }: Descriptor): OciError {
    return new OciError("ERR_OCI_NOT_FOUND", `${this.name}: ${digest.text} is not there`)
  }
  read(descriptor: Descriptor): Promise<Buffer> {
    const bytes = this.#documents.get(descriptor.digest.text)
    return bytes === undefined ? Promise.reject(this.#missing(descriptor)) : Promise.resolve(bytes)
  }
  open(descriptor: Descriptor): Promise<NativeBlob> {
    const blob = this.#layers.get(descriptor.digest.text)
    return blob === undefined ? Promise.reject(this.#missing(descriptor)) : Promise.resolve(blob)
  }
  async *stream(descriptor: Descriptor): AsyncGenerator<Buffer, void, undefined> {
    const bytes = this.#documents.get(descriptor.digest.text)
    if (bytes !== undefined) {
      yield bytes
      return
    }
    try {
      yield* streamBlob(await this.open(descriptor))
    } catch (cause) {
      throw asArchiveError(this.name, cause)
    }
  }
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#archive[Symbol.asyncDispose]()
  }
}

/** As it lies there: what it is uncompressed the configuration says; of what is compressed nobody says a digest. */
async function layerOf(blob: NativeBlob, diffId: Digest, name: string): Promise<Descriptor> {
  const rest = { size: blob.size, annotations: {}, platform: undefined, data: undefined }
  const hash = hashFor(diffId)
  let suffix: string | undefined
  try {
    let isFirst = true
    for await (const piece of streamBlob(blob)) {
      if (isFirst) suffix = compressions.find(([magic]) => piece.subarray(0, magic.length).equals(magic))?.[1]
      if (suffix === undefined) return { mediaType: layerType, digest: diffId, ...rest }
      isFirst = false
      hash.update(piece)
    }
  } catch (cause) {
    throw asArchiveError(name, cause)
  }
  if (suffix === undefined) return { mediaType: layerType, digest: diffId, ...rest }
  const digest = parseDigest(`${diffId.algorithm}:${hash.digest("hex")}`, name)
  return { mediaType: `${layerType}${suffix}`, digest, ...rest }
}

/** Of one archive, by where its members lie. One may be named any number of times, as the same; it is read once. */
export type SeenLayers = Map<Bytes, { readonly diffId: string; readonly layer: Descriptor }>

/**
 * What an image that was found is copied from.
 *
 * @throws OciError; the archive stays open then.
 */
export async function copySource(found: FoundImage, seen: SeenLayers = new Map()): Promise<CopySource> {
  return "saved" in found ? await savedSource(found.store, found.saved, seen) : found
}

async function savedSource(archive: BlobStore, saved: SavedImage, seen: SeenLayers): Promise<CopySource> {
  const what = `${archive.name}: its configuration`
  if (saved.configDigest !== undefined) checkBytes(saved.config, saved.configDigest, undefined, what)
  const { diffIds } = parseConfig(saved.config, what)
  if (diffIds.length !== saved.layers.length)
    throw new OciError(
      "ERR_OCI_FORMAT",
      `${archive.name}: ${saved.layers.length} layers, and its configuration names ${diffIds.length}`,
    )
  const config = { mediaType: OCI_CONFIG, digest: digestOf(saved.config).text, size: saved.config.length }
  const layers: Descriptor[] = []
  const blobs = new Map<string, NativeBlob>()
  for (const [i, diffId] of diffIds.entries()) {
    const { blob, name } = saved.layers[i] ?? {}
    if (blob === undefined) continue
    const known = seen.get(blob.offset)
    if (known !== undefined && known.diffId !== diffId.text)
      throw new OciError(
        "ERR_OCI_FORMAT",
        `${archive.name}: ${name ?? ""} is said to be two different layers`,
      )
    const layer = known?.layer ?? (await layerOf(blob, diffId, `${archive.name}: ${name ?? ""}`))
    seen.set(blob.offset, { diffId: diffId.text, layer })
    layers.push(layer)
    blobs.set(layer.digest.text, blob)
  }
  const bytes = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: OCI_MANIFEST,
      config,
      layers: layers.map(({ mediaType, digest, size }) => ({ mediaType, digest: digest.text, size })),
    }),
  )
  const digest = digestOf(bytes)
  const documents = new Map([
    [digest.text, bytes],
    [config.digest, saved.config],
  ])
  return {
    store: new SavedStore(archive, documents, blobs),
    descriptor: {
      mediaType: OCI_MANIFEST,
      digest,
      size: bytes.length,
      annotations: {},
      platform: undefined,
      data: undefined,
    },
  }
}
