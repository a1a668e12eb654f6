// An archive that images are written into: a layout as a tar file and, for what reads no layouts, what `docker save` writes, about
// the same files. It is written front to back, so it may be a pipe, and it is there when it is complete.
import { OciError } from "../errors.ts"
import { blobName, CONTAINERD_NAME, NAME } from "./layout.ts"
import { isConfigType, parseDocument, type Descriptor } from "./manifest.ts"
import { fullName, parseRegistryName } from "./reference.ts"
import { VerifiedBlob, type Document, type ImageSink } from "./sink.ts"
import { TAR_END, tarHeader, tarPadding } from "./tar-writer.ts"

/** What the archive is written to. */
export interface ArchiveOutput extends AsyncDisposable {
  /** For messages. */
  readonly name: string
  /** Behind what was written. */
  append(bytes: Buffer): Promise<void>
  /** It is complete. */
  publish(): Promise<void>
}

/** An image of manifest.json. */
interface SavedEntry {
  readonly Config: string
  readonly RepoTags: readonly string[]
  readonly Layers: readonly string[]
}

export class ArchiveSink implements ImageSink {
  readonly name: string
  readonly takesIndexes: boolean
  readonly #output: ArchiveOutput
  readonly #isSaved: boolean
  /** Digests of blobs that are in it, or on their way. */
  readonly #written = new Map<string, Promise<void>>()
  readonly #entries: object[] = []
  readonly #saved: SavedEntry[] = []
  /** One file at a time is written. */
  #last: Promise<void> = Promise.resolve()

  /** @param format - `docker-archive`: one that `docker load` and whoever knows nothing newer can read, too. */
  constructor(output: ArchiveOutput, format: "oci-archive" | "docker-archive") {
    this.name = output.name
    this.#output = output
    this.#isSaved = format === "docker-archive"
    this.takesIndexes = !this.#isSaved
    this.#last = this.#file("oci-layout", Buffer.from('{"imageLayoutVersion":"1.0.0"}'))
    // Whoever writes next is told.
    this.#last.catch(() => undefined)
  }

  async #file(name: string, bytes: Buffer): Promise<void> {
    await this.#output.append(Buffer.concat([tarHeader(name, bytes.length), bytes, tarPadding(bytes.length)]))
  }

  /** After a failure nothing is written any more: the archive ends in the middle of something. */
  async #inTurn(work: () => Promise<void>): Promise<void> {
    const turn = this.#last.then(work)
    this.#last = turn
    turn.catch(() => undefined)
    await turn
  }

  async has({ digest }: Descriptor): Promise<boolean> {
    const written = this.#written.get(digest.text)
    await written
    return written !== undefined
  }

  async write(blob: VerifiedBlob): Promise<void> {
    const { digest, size } = blob.descriptor
    const written = this.#inTurn(async () => {
      await this.#output.append(tarHeader(blobName(digest), size))
      for await (const piece of blob.read()) await this.#output.append(piece)
      await this.#output.append(tarPadding(size))
    })
    this.#written.set(digest.text, written)
    await written
  }

  async put({ descriptor, bytes }: Document): Promise<void> {
    if (await this.has(descriptor)) return
    await this.write(new VerifiedBlob(descriptor, this.name, () => [bytes]))
  }

  #savedEntry({ descriptor, bytes }: Document, name: string | undefined): SavedEntry {
    const document = parseDocument(bytes, descriptor.mediaType, this.name)
    if (document.kind === "index" || !isConfigType(document.config))
      throw new OciError(
        "ERR_OCI_UNSUPPORTED",
        `${this.name}: docker-archive: holds container images of one platform each`,
      )
    const absent = document.layers.findIndex(({ digest }) => !this.#written.has(digest.text))
    if (absent >= 0)
      throw new OciError(
        "ERR_OCI_UNSUPPORTED",
        `${this.name}: docker-archive: holds all layers of an image, and layer ${absent} lies elsewhere`,
      )
    return {
      Config: blobName(document.config.digest),
      RepoTags: name === undefined ? [] : [parseRegistryName(name).text],
      Layers: document.layers.map(({ digest }) => blobName(digest)),
    }
  }

  async finish(document: Document, name: string | undefined): Promise<void> {
    await this.put(document)
    const { mediaType, digest, size } = document.descriptor
    // containerd and docker look for the whole name, the others for what was asked for.
    const whole =
      name !== undefined && (this.#isSaved || fullName(name) === name) ? fullName(name) : undefined
    const annotations = {
      ...(whole === undefined ? {} : { [CONTAINERD_NAME]: whole }),
      ...(name === undefined ? {} : { [NAME]: name }),
    }
    if (this.#isSaved) this.#saved.push(this.#savedEntry(document, name))
    const notes = name === undefined ? {} : { annotations }
    this.#entries.push({ mediaType, digest: digest.text, size, ...notes })
  }

  async complete(): Promise<void> {
    await this.#inTurn(async () => {
      const index = { schemaVersion: 2, manifests: this.#entries }
      await this.#file("index.json", Buffer.from(JSON.stringify(index)))
      if (this.#isSaved) await this.#file("manifest.json", Buffer.from(JSON.stringify(this.#saved)))
      await this.#output.append(TAR_END)
    })
    await this.#output.publish()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#last.catch(() => undefined)
    await this.#output[Symbol.asyncDispose]()
  }
}
