// A layout on disk that images are added to. At every moment, and whoever is killed, it is whole: files get their names
// when they are, and an index names only what is there.
import { constants } from "node:fs"
import { mkdir, open, readdir, type FileHandle } from "node:fs/promises"
import path from "node:path"
import { readBounded } from "../bounded-file.ts"
import { BuildError, OciError } from "../errors.ts"
import { lockOpenFile } from "../native/lock.ts"
import { contentFits } from "./digest.ts"
import { blobName, checkLayoutVersion, NAME, parseLayoutIndex } from "./layout.ts"
import { MAX_DOCUMENT, type Descriptor } from "./manifest.ts"
import { VerifiedBlob, type Document, type ImageSink } from "./sink.ts"
import { TEMPORARY, TemporaryFile, writePieces } from "./temporary-file.ts"

const MODE = 0o666
const EMPTY_INDEX = Buffer.from('{"schemaVersion":2,"manifests":[]}')

/** What an index has of a manifest. */
interface Entry {
  readonly digest: string
  readonly annotations?: Readonly<Record<string, string>>
}

/** An entry that was taken out. */
export interface RemovedImage {
  readonly name: string | undefined
  readonly digest: string
}

export class LayoutSink implements ImageSink {
  readonly name: string
  readonly #signal: AbortSignal | undefined
  readonly #held: AsyncDisposable | undefined
  /** undefined: nothing was written yet, and there is no layout. */
  #begun: Promise<void> | undefined

  private constructor(folder: string, signal: AbortSignal | undefined, held: AsyncDisposable | undefined) {
    this.name = folder
    this.#signal = signal
    this.#held = held
  }

  /**
   * Opens a layout, or makes one of a folder that is empty or not there, when the first file is written.
   *
   * @param held - Until it is disposed.
   * @throws OciError `ERR_OCI_FORMAT`, `ERR_OCI_UNSUPPORTED`; BuildError `ERR_BUILD_OUTPUT`.
   */
  static async open(folder: string, signal?: AbortSignal, held?: AsyncDisposable): Promise<LayoutSink> {
    const sink = new LayoutSink(folder, signal, held)
    if (await sink.#isThere()) sink.#begun = Promise.resolve()
    return sink
  }

  /** @throws OciError of a folder that is something else. */
  async #isThere(): Promise<boolean> {
    const found = await this.#disk(
      readdir(this.name).catch((cause: unknown) => {
        if ((cause as NodeJS.ErrnoException).code !== "ENOENT") throw cause
        return []
      }),
    )
    const names = found.filter((name) => !name.startsWith(TEMPORARY))
    if (names.length === 0) return false
    if (!names.includes("oci-layout"))
      throw OciError.at(this.name, "ERR_OCI_FORMAT", "neither a layout nor empty")
    const file = path.join(this.name, "oci-layout")
    checkLayoutVersion(await this.#disk(readBounded(file, MAX_DOCUMENT, { signal: this.#signal })), this.name)
    return true
  }

  async #begin(): Promise<void> {
    await this.#disk(mkdir(this.name, { recursive: true }))
    // Somebody else may have begun meanwhile.
    if (!(await this.#isThere()))
      await this.#write("oci-layout", [Buffer.from('{"imageLayoutVersion":"1.0.0"}')])
  }

  /** What goes wrong here is about the output. */
  async #disk<T>(work: Promise<T>): Promise<T> {
    try {
      return await work
    } catch (cause) {
      throw new BuildError("ERR_BUILD_OUTPUT", `cannot write ${this.name}: ${(cause as Error).message}`, {
        path: this.name,
        cause,
      })
    }
  }

  async #save(name: string, pieces: AsyncIterable<Buffer> | Iterable<Buffer>): Promise<void> {
    await (this.#begun ??= this.#begin())
    await this.#write(name, pieces)
  }

  async #write(name: string, pieces: AsyncIterable<Buffer> | Iterable<Buffer>): Promise<void> {
    await using file = await this.#disk(TemporaryFile.create(this.name, MODE))
    await writePieces(pieces, (piece, position) => {
      this.#signal?.throwIfAborted()
      return this.#disk(file.write(piece, position))
    })
    const target = path.join(this.name, name)
    await this.#disk(mkdir(path.dirname(target), { recursive: true }))
    await this.#disk(file.publish(target))
  }

  /** What is there and is something else is replaced. */
  async has({ digest, size }: Descriptor): Promise<boolean> {
    let file: FileHandle
    try {
      const flags = constants.O_RDONLY | constants.O_NONBLOCK
      file = await open(path.join(this.name, blobName(digest)), flags)
    } catch {
      return false
    }
    try {
      return await this.#disk(contentFits(file, digest, size))
    } finally {
      await file.close()
    }
  }

  async write(blob: VerifiedBlob): Promise<void> {
    await this.#save(blobName(blob.descriptor.digest), blob.read())
  }

  async put({ descriptor, bytes }: Document): Promise<void> {
    if (await this.has(descriptor)) return
    await this.write(new VerifiedBlob(descriptor, this.name, () => [bytes]))
  }

  /** One at a time changes the index. */
  async #lock(): Promise<AsyncDisposable> {
    // The one file that is never replaced. NFS locks only what is open for writing.
    const file = await this.#disk(open(path.join(this.name, "oci-layout"), "r+"))
    const lock = await this.#disk(lockOpenFile(file.fd, true, Infinity, this.#signal)).catch(
      async (error: unknown) => {
        await file.close()
        this.#signal?.throwIfAborted()
        throw error
      },
    )
    return {
      [Symbol.asyncDispose]: async () => {
        await file.close()
        await lock?.[Symbol.asyncDispose]()
      },
    }
  }

  async #readIndex(): Promise<{ readonly manifests: readonly Entry[] }> {
    const bytes = await this.#disk(
      readBounded(path.join(this.name, "index.json"), MAX_DOCUMENT, { signal: this.#signal }).catch(
        (cause: unknown) => {
          if ((cause as NodeJS.ErrnoException).code !== "ENOENT") throw cause
          return EMPTY_INDEX
        },
      ),
    )
    parseLayoutIndex(bytes, this.name)
    return JSON.parse(bytes.toString("utf8")) as { readonly manifests: readonly Entry[] }
  }

  /** Others' entries stay as they are, whatever is in them. */
  async #changeIndex(change: (entries: readonly Entry[]) => readonly object[]): Promise<void> {
    const lock = await this.#lock()
    try {
      const index = await this.#readIndex()
      const bytes = Buffer.from(JSON.stringify({ ...index, manifests: change(index.manifests) }))
      if (bytes.length > MAX_DOCUMENT)
        throw new OciError("ERR_OCI_LIMIT", `${this.name}: an index of more than ${MAX_DOCUMENT} bytes`)
      await this.#save("index.json", [bytes])
    } finally {
      await lock[Symbol.asyncDispose]()
    }
  }

  async finish(document: Document, name: string | undefined): Promise<void> {
    await this.put(document)
    const { mediaType, digest, size } = document.descriptor
    const entry = { mediaType, digest: digest.text, size }
    const added = name === undefined ? entry : { ...entry, annotations: { [NAME]: name } }
    await this.#changeIndex((entries) => [
      ...entries.filter((one) => {
        const same = one.annotations?.[NAME] === name
        return name === undefined ? !same || one.digest !== digest.text : !same
      }),
      added,
    ])
  }

  /** Takes the names of images away; what they are made of stays. */
  async remove(isMeant: (image: RemovedImage) => boolean): Promise<RemovedImage[]> {
    const removed: RemovedImage[] = []
    await this.#changeIndex((entries) =>
      entries.filter(({ digest, annotations }) => {
        const image = { name: annotations?.[NAME], digest }
        if (!isMeant(image)) return true
        removed.push(image)
        return false
      }),
    )
    return removed
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // Nothing stays open in between.
    await this.#held?.[Symbol.asyncDispose]()
  }
}
