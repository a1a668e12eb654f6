// A SIF at a registry: found there, and fetched to where it is used. What everybody gets is kept in the cache. Of what took a
// credential nothing plain lies on a disk: an encrypted image may, a plain one is in memory as long as it is used.
import { statfs } from "node:fs/promises"
import os from "node:os"
import { encryptionOf, isPartition } from "../encryption/partition.ts"
import { madeOf } from "../disposal.ts"
import { OciError, SifError } from "../errors.ts"
import { Cache, cacheFolder } from "../oci/cache.ts"
import type { Digest } from "../oci/digest.ts"
import { MAX_LAYER_BYTES, resolveManifest } from "../oci/image.ts"
import { platformOf, type Descriptor } from "../oci/manifest.ts"
import { parseOrasName, type RegistryReference } from "../oci/reference.ts"
import { artifactOf } from "../oci/sif-artifact.ts"
import { VerifiedBlob } from "../oci/sink.ts"
import { streamBlob, type BlobStore } from "../oci/store.ts"
import { descriptorPath, TemporaryFile } from "../oci/temporary-file.ts"
import { findRemote } from "../registry/store.ts"
import { openSifAs, readSif, type SifImage } from "../sif/open.ts"
import { FileReader, type ByteReader } from "../sif/source.ts"
import type { Bytes } from "../units.ts"
import type { LayerOptions } from "./layer-options.ts"

const MEMORY = "/dev/shm"
// statfs(2)
const TMPFS_MAGIC = 0x01021994

/** Is all of its file systems' content encrypted? What is no SIF is not. */
async function isEncrypted(reader: ByteReader, name: string): Promise<boolean> {
  try {
    const { objects } = await readSif(reader, name)
    const partitions = objects.filter(isPartition)
    return partitions.length > 0 && partitions.every((one) => encryptionOf(one) !== undefined)
  } catch (error) {
    if (error instanceof SifError) return false
    throw error
  }
}

/** The start of an image that has `size` bytes. */
function headReader(head: Buffer, size: Bytes): ByteReader {
  return {
    size,
    read: (position, length) => Promise.resolve(head.subarray(position, position + length)),
    async [Symbol.asyncDispose](): Promise<void> {
      // It is only memory.
    },
  }
}

/** Where a plain image that is not everybody's has room. */
async function memoryFor(name: string, size: Bytes): Promise<string> {
  const found = await statfs(MEMORY).catch(() => undefined)
  const free = found?.type === TMPFS_MAGIC ? found.bavail * found.bsize : 0
  if (size > free)
    throw new OciError(
      "ERR_OCI_LIMIT",
      `${name} took a credential to get and is not encrypted, so it is held in memory: it has ${size} bytes, and ${MEMORY} has room for ${free}`,
      { limit: "memory" },
    )
  return MEMORY
}

/** A SIF that was found, for as long as it is not disposed. */
export class RemoteSif implements AsyncDisposable {
  readonly reference: RegistryReference
  /** Of its manifest. */
  readonly digest: Digest
  readonly blob: Descriptor
  readonly #store: BlobStore
  readonly #options: LayerOptions

  private constructor(
    reference: RegistryReference,
    store: BlobStore,
    found: { readonly digest: Digest; readonly blob: Descriptor },
    options: LayerOptions,
  ) {
    this.reference = reference
    this.#store = store
    this.digest = found.digest
    this.blob = found.blob
    this.#options = options
  }

  /** @throws OciError. */
  static async find(source: string, options: LayerOptions): Promise<RemoteSif> {
    const { oci = {}, architecture, signal, onNotice } = options
    const reference = parseOrasName(source)
    const { store, descriptor } = await findRemote(reference, { ...oci, signal, onNotice })
    return await madeOf(store, async () => {
      const wanted = platformOf(architecture ?? process.arch)
      const { manifest, descriptor: chosen } = await resolveManifest(store, descriptor, wanted)
      const blob = artifactOf(manifest, reference.text)
      const limit = oci.maxLayerBytes ?? MAX_LAYER_BYTES
      if (blob.size > limit)
        throw new OciError(
          "ERR_OCI_LIMIT",
          `${reference.text}: it has ${blob.size} bytes, more than ${limit}`,
          { limit: "layers" },
        )
      return new RemoteSif(reference, store, { digest: chosen.digest, blob }, options)
    })
  }

  /** Has nobody had to be named for what came so far? */
  get isPublic(): boolean {
    return this.#store.isPublic !== false
  }

  get #cache(): Cache {
    const { oci = {} } = this.#options
    return new Cache(oci.cacheFolder ?? cacheFolder(oci.environment))
  }

  /** All of it in the cache, where that may be; undefined: it is not everybody's, or nothing is kept. */
  async keep(): Promise<string | undefined> {
    if ((await this.#store.keep?.(this.blob)) !== true) return undefined
    return this.#cache.pathOf(this.blob.digest)
  }

  /**
   * Its bytes. The last of them come when all are known to be what the manifest says.
   *
   * @param onRead - Hears how many there were.
   */
  async write(
    write: (piece: Buffer, position: Bytes) => Promise<void>,
    onRead?: (bytes: Bytes, total: Bytes) => void,
  ): Promise<void> {
    let have: Bytes = 0
    for await (const piece of this.#verified()) {
      this.#options.signal?.throwIfAborted()
      await write(piece, have)
      have += piece.length
      onRead?.(have, this.blob.size)
    }
  }

  /**
   * Writes it to a file. A fetch that breaks off, or is ended, goes on where it was the next time: in the cache, or for what
   * takes a credential in a file there that nobody else can read, which goes when it is whole.
   */
  async save(target: Pick<TemporaryFile, "write">): Promise<void> {
    const { oci = {}, signal } = this.#options
    const { blob } = this
    const store = this.#store
    const write = (piece: Buffer, position: Bytes): Promise<void> => target.write(piece, position)
    if ((await this.keep()) !== undefined) {
      await this.write(write)
      return
    }
    const isSaved =
      oci.disableCache !== true &&
      store.fill !== undefined &&
      (await this.#cache.usePrivate(
        blob.digest,
        async (file) => {
          await store.fill?.(blob, file)
          let have: Bytes = 0
          for await (const piece of streamBlob({ fd: file.fd, offset: 0, size: blob.size })) {
            signal?.throwIfAborted()
            await target.write(piece, have)
            have += piece.length
          }
        },
        signal,
      ))
    if (!isSaved) await this.write(write, oci.onFetch)
  }

  #verified(): AsyncIterable<Buffer> {
    return new VerifiedBlob(this.blob, this.reference.text, () => this.#store.stream(this.blob)).read()
  }

  /** By what its start says of it, which nobody has verified. */
  async seemsEncrypted(): Promise<boolean> {
    for await (const head of this.#store.stream(this.blob))
      return await isEncrypted(headReader(head, this.blob.size), this.reference.text)
    return false
  }

  /** Writes it, if it is encrypted. */
  async writeEncrypted(target: Pick<TemporaryFile, "file" | "write">): Promise<void> {
    await this.write((piece, position) => target.write(piece, position), this.#options.oci?.onFetch)
    const { text } = this.reference
    if (!(await isEncrypted(FileReader.of(target.file, this.blob.size), text)))
      throw new OciError("ERR_OCI_DIGEST", `${text}: it began as an encrypted image, and is none`)
  }

  /** @param name - What it is called in messages. */
  async open(name: string): Promise<SifImage> {
    const kept = await this.keep()
    if (kept !== undefined) return await openSifAs(name, kept)
    await using fetched = await this.fetch()
    return await openSifAs(name, descriptorPath(fetched))
  }

  /** An unnamed file, which goes when it is closed. */
  async fetch(): Promise<TemporaryFile> {
    const { oci = {} } = this.#options
    const mayLie = (await this.seemsEncrypted()) || this.isPublic
    const folder = mayLie
      ? (oci.tmpFolder ?? os.tmpdir())
      : await memoryFor(this.reference.text, this.blob.size)
    const file = await TemporaryFile.create(folder)
    return await madeOf(file, async () => {
      await file.unlink()
      if (mayLie && !this.isPublic) await this.writeEncrypted(file)
      else await this.write((piece, position) => file.write(piece, position), oci.onFetch)
      return file
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#store[Symbol.asyncDispose]()
  }
}
