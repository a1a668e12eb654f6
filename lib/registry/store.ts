// Images at a registry: manifests by name, blobs by digest, each fetched once.
import type { FileHandle } from "node:fs/promises"
import os from "node:os"
import { madeOf } from "../disposal.ts"
import { OciError } from "../errors.ts"
import type { NativeBlob } from "../native/binding.ts"
import { Cache, cacheFolder } from "../oci/cache.ts"
import { checkBytes, checkDigest, digestOf, hashFor, parseDigest } from "../oci/digest.ts"
import { acceptedTypes, MAX_DOCUMENT, type Descriptor } from "../oci/manifest.ts"
import { inParallel } from "../oci/parallel.ts"
import type { RegistryReference } from "../oci/reference.ts"
import { streamBlob, type BlobStore, type Repository } from "../oci/store.ts"
import type { Bytes } from "../units.ts"
import { RegistryClient, type ClientOptions } from "./client.ts"
import { download, fillFile } from "./download.ts"
import { replyError } from "./http.ts"
import { Spill } from "./spill.ts"

/** How images are fetched from a registry. */
export interface RegistryOptions extends ClientOptions {
  /** Where public blobs are kept; default: by the environment. */
  readonly cacheFolder?: string | undefined
  /** Keep nothing: what is fetched lies encrypted in an unnamed file until the end. */
  readonly disableCache?: boolean | undefined
  /** For what is not kept. Default: the folder of the cache, or TMPDIR. */
  readonly tmpFolder?: string | undefined
  /** Bytes of blobs that are here, of how many. */
  readonly onFetch?: ((bytes: Bytes, total: Bytes) => void) | undefined
}

/** It takes a credential to get what was going to be kept for everybody. */
class NotPublic extends Error {}

class RegistryStore implements BlobStore {
  readonly name: string
  readonly isVerified = true
  readonly repository: Repository
  readonly #client: RegistryClient
  readonly #options: RegistryOptions
  readonly #cache: Cache | undefined
  readonly #opened = new Map<string, NativeBlob>()
  readonly #files: FileHandle[] = []
  readonly #spills: Spill[] = []
  #fetched: Bytes = 0
  #total: Bytes = 0

  constructor(client: RegistryClient, options: RegistryOptions) {
    this.name = client.reference.text
    this.repository = client.reference
    this.#client = client
    this.#options = options
    this.#cache =
      options.disableCache === true
        ? undefined
        : new Cache(options.cacheFolder ?? cacheFolder(options.environment))
  }

  get isPublic(): boolean {
    return !this.#client.isKnown
  }

  /** A manifest by its tag or digest, with what the registry calls it. */
  async manifest(reference: string): Promise<{ readonly bytes: Buffer; readonly type: string | undefined }> {
    const what = `${this.name}: ${reference}`
    const headers = { accept: acceptedTypes.join(", ") }
    const url = this.#client.url(`manifests/${reference}`)
    const { reply, body: bytes } = await this.#client.fetch(url, { headers }, MAX_DOCUMENT, what)
    if (bytes === undefined) throw await replyError(reply, this.name)
    const announced = reply.headers["docker-content-digest"]
    if (typeof announced === "string") checkBytes(bytes, parseDigest(announced, what), undefined, what)
    const type = reply.headers["content-type"]?.split(";")[0]?.trim().toLowerCase()
    return { bytes, type: type === "" ? undefined : type }
  }

  async read(descriptor: Descriptor): Promise<Buffer> {
    if (descriptor.data !== undefined) return descriptor.data
    const { digest, size, mediaType } = descriptor
    const isManifest = acceptedTypes.includes(mediaType)
    const cached = isManifest ? await this.#cache?.find(digest, size) : await this.#kept(descriptor)
    if (cached !== undefined) {
      try {
        const whole = Buffer.alloc(size)
        await cached.read(whole, 0, size, 0)
        return whole
      } finally {
        await cached.close()
      }
    }
    let bytes: Buffer
    if (isManifest) {
      const found = await this.manifest(digest.text)
      if (found.type !== undefined && acceptedTypes.includes(found.type) && found.type !== mediaType)
        throw new OciError(
          "ERR_OCI_FORMAT",
          `${this.name}: ${digest.text} is announced as ${mediaType} and served as ${found.type}`,
        )
      bytes = found.bytes
    } else {
      const url = this.#client.url(`blobs/${digest.text}`)
      const { reply, body } = await this.#client.fetch(url, {}, MAX_DOCUMENT, this.name)
      if (body === undefined) throw await replyError(reply, this.name)
      bytes = body
    }
    checkBytes(bytes, digest, size, `${this.name}: ${digest.text}`)
    if (isManifest && this.#cache !== undefined && !this.#client.isKnown)
      await (
        await this.#cache.make(digest, size, async (file) => {
          await file.truncate(0)
          await file.writeFile(bytes)
        })
      ).close()
    return bytes
  }

  async fetch(descriptors: readonly Descriptor[]): Promise<void> {
    const wanted = [...new Map(descriptors.map((one) => [one.digest.text, one])).values()]
    this.#fetched = 0
    this.#total = wanted.reduce((sum, { size }) => sum + size, 0)
    await inParallel(wanted, async (next) => {
      this.#opened.set(next.digest.text, await this.#fetch(next))
    })
  }

  #advance(bytes: Bytes): void {
    this.#fetched += bytes
    // What turned out to be wrong is no news.
    if (bytes >= 0) this.#options.onFetch?.(this.#fetched, this.#total)
  }

  /** A blob in the cache, fetched if need be; undefined: it is not for everybody. */
  async #kept(descriptor: Descriptor): Promise<FileHandle | undefined> {
    const { digest, size } = descriptor
    const cached = await this.#cache?.find(digest, size)
    if (cached !== undefined) this.#advance(size)
    if (cached !== undefined || this.#cache === undefined || this.#client.isKnown) return cached
    const { signal } = this.#options
    try {
      return await this.#cache.make(digest, size, (file) => this.#fill(descriptor, file), signal)
    } catch (error) {
      if (error instanceof NotPublic) return undefined
      throw error
    }
  }

  async #fetch(descriptor: Descriptor): Promise<NativeBlob> {
    const { digest, size } = descriptor
    const file = await this.#kept(descriptor)
    if (file !== undefined) {
      this.#files.push(file)
      return { fd: file.fd, offset: 0, size }
    }
    const spill = await Spill.create(this.#options.tmpFolder ?? this.#cache?.folder ?? os.tmpdir())
    this.#spills.push(spill)
    const hash = hashFor(digest)
    for await (const piece of this.#download(descriptor, 0)) {
      hash.update(piece)
      await spill.write(piece)
      this.#advance(piece.length)
    }
    checkDigest(hash, digest, `${this.name}: ${digest.text}`)
    return await spill.finish(size)
  }

  /** Fills a file of the cache, from where an earlier try has left it. */
  async #fill(descriptor: Descriptor, file: FileHandle): Promise<void> {
    const client = this.#client
    const download = (start: Bytes): AsyncIterable<Buffer> => this.#download(descriptor, start)
    async function* publicBytes(start: Bytes): AsyncGenerator<Buffer> {
      for await (const bytes of download(start)) {
        if (client.isKnown) throw new NotPublic()
        yield bytes
      }
    }
    await this.#fillFrom(descriptor, file, publicBytes)
  }

  async #fillFrom(
    { digest, size }: Descriptor,
    file: FileHandle,
    bytesFrom: (start: Bytes) => AsyncIterable<Buffer>,
  ): Promise<void> {
    const what = `${this.name}: ${digest.text}`
    await fillFile(file, { digest, size, what }, bytesFrom, (bytes) => {
      this.#advance(bytes)
    })
  }

  async fill(descriptor: Descriptor, file: FileHandle): Promise<void> {
    this.#fetched = 0
    this.#total = descriptor.size
    await this.#fillFrom(descriptor, file, (start) => this.#download(descriptor, start))
  }

  #download({ digest, size }: Descriptor, start: Bytes): AsyncGenerator<Buffer, void, undefined> {
    const client = this.#client
    const { signal } = this.#options
    const url = client.url(`blobs/${digest.text}`)
    return download(
      {
        what: `${this.name}: ${digest.text}`,
        ...{ size, signal },
        request: (headers) => client.request(url, { headers }),
        pause: (tries) => client.pause(tries),
      },
      start,
    )
  }

  async keep(descriptor: Descriptor): Promise<boolean> {
    this.#fetched = 0
    this.#total = descriptor.size
    const file = await this.#kept(descriptor)
    await file?.close()
    return file !== undefined
  }

  async *stream(descriptor: Descriptor): AsyncGenerator<Buffer, void, undefined> {
    const cached = await this.#cache?.find(descriptor.digest, descriptor.size)
    if (cached === undefined) {
      yield* this.#download(descriptor, 0)
      return
    }
    try {
      yield* streamBlob({ fd: cached.fd, offset: 0, size: descriptor.size })
    } finally {
      await cached.close()
    }
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- others have to look
  async open(descriptor: Descriptor): Promise<NativeBlob> {
    const blob = this.#opened.get(descriptor.digest.text)
    if (blob === undefined)
      throw new OciError("ERR_OCI_NOT_FOUND", `${this.name}: ${descriptor.digest.text} was not fetched`)
    if (blob.size !== descriptor.size)
      throw new OciError("ERR_OCI_DIGEST", `${this.name}: ${descriptor.digest.text} is named with two sizes`)
    return blob
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#client[Symbol.dispose]()
    await Promise.all([
      ...this.#files.map((file) => file.close()),
      ...this.#spills.map((spill) => spill[Symbol.asyncDispose]()),
    ])
  }
}

/**
 * Finds an image at its registry.
 *
 * @throws OciError `ERR_OCI_NOT_FOUND`, `ERR_OCI_CREDENTIALS`, `ERR_OCI_REGISTRY`, `ERR_OCI_DIGEST`, `ERR_OCI_FORMAT`.
 */
export async function findRemote(
  reference: RegistryReference,
  options: RegistryOptions,
): Promise<{ readonly store: BlobStore; readonly descriptor: Descriptor }> {
  const client = await RegistryClient.open(reference, options, "pull")
  options.onNotice?.(`${reference.text} comes from ${client.origin}`)
  const store = new RegistryStore(client, options)
  return await madeOf(store, async () => {
    const wanted = reference.digest?.text ?? reference.tag ?? "latest"
    const { bytes, type } = await store.manifest(wanted)
    const digest = reference.digest ?? digestOf(bytes)
    checkBytes(bytes, digest, undefined, `${reference.text}: its manifest`)
    if (type === undefined)
      throw new OciError("ERR_OCI_FORMAT", `${reference.text}: a manifest without Content-Type`)
    const descriptor = {
      mediaType: type,
      digest,
      size: bytes.length,
      annotations: {},
      platform: undefined,
      data: bytes,
    }
    return { store, descriptor }
  })
}
