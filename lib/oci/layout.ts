// Images on disk: a layout (folder or archive) and what `docker save` writes.
import { constants } from "node:fs"
import { open, stat, type FileHandle } from "node:fs/promises"
import path from "node:path"
import { OciError } from "../errors.ts"
import { parseJson } from "../json.ts"
import type { NativeArchive, NativeBlob } from "../native/binding.ts"
import { loadAddon } from "../native/load.ts"
import type { Bytes } from "../units.ts"
import { parseDigest, type Digest } from "./digest.ts"
import { isImageType, MAX_DOCUMENT, parseDocument, type Descriptor, type ImageIndex } from "./manifest.ts"
import { asArchiveError } from "./native-error.ts"
import type { LocalReference, Selection } from "./reference.ts"
import { streamBlob, type BlobStore } from "./store.ts"

/** Files by name, inside a folder or an archive. */
interface Files extends AsyncDisposable {
  has(name: string): Promise<boolean>
  /** @throws OciError `ERR_OCI_NOT_FOUND`. */
  open(name: string): Promise<NativeBlob>
}

/** What an image is called by, in an index. */
export const NAME = "org.opencontainers.image.ref.name"
const CONTAINERD_NAME = "io.containerd.image.name"

function missing(where: string, what: string): OciError {
  return new OciError("ERR_OCI_NOT_FOUND", `${where}: ${what} is not there`, { path: where })
}

class FolderFiles implements Files {
  readonly #folder: string
  readonly #open = new Map<string, FileHandle>()

  constructor(folder: string) {
    this.#folder = folder
  }
  async has(name: string): Promise<boolean> {
    return (await stat(path.join(this.#folder, name)).catch(() => undefined))?.isFile() === true
  }
  async open(name: string): Promise<NativeBlob> {
    let file = this.#open.get(name)
    if (file === undefined) {
      try {
        // Not waiting for the writer of a fifo.
        file = await open(path.join(this.#folder, name), constants.O_RDONLY | constants.O_NONBLOCK)
      } catch (cause) {
        if ((cause as NodeJS.ErrnoException).code === "ENOENT") throw missing(this.#folder, name)
        throw new OciError("ERR_OCI_NOT_FOUND", `${this.#folder}: ${(cause as Error).message}`, {
          path: this.#folder,
          cause,
        })
      }
      this.#open.set(name, file)
    }
    const info = await file.stat()
    if (!info.isFile()) throw new OciError("ERR_OCI_FORMAT", `${this.#folder}: ${name} is no file`)
    return { fd: file.fd, offset: 0, size: info.size }
  }
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#open.values()].map((file) => file.close()))
  }
}

/** As members name each other: without "./", never upwards. */
function memberName(name: string): string {
  return path.posix.normalize(`/${name}`).slice(1)
}

class ArchiveFiles implements Files {
  readonly #path: string
  readonly #file: FileHandle
  readonly #fileSize: Bytes
  readonly #archive: NativeArchive
  readonly #members: ReadonlyMap<string, NativeArchive["members"][number]>

  private constructor(name: string, file: FileHandle, fileSize: Bytes, archive: NativeArchive) {
    this.#path = name
    this.#file = file
    this.#fileSize = fileSize
    this.#archive = archive
    this.#members = new Map(archive.members.map((member) => [memberName(member.path), member]))
  }
  static async open(name: string, limit: Bytes): Promise<ArchiveFiles> {
    const file = await open(name, constants.O_RDONLY | constants.O_NONBLOCK).catch((cause: unknown) => {
      throw new OciError("ERR_OCI_NOT_FOUND", `cannot open ${name}: ${(cause as Error).message}`, {
        path: name,
        cause,
      })
    })
    try {
      const info = await file.stat()
      if (!info.isFile()) throw new OciError("ERR_OCI_NOT_FOUND", `${name} is no file`, { path: name })
      const archive = await loadAddon()
        .listArchive({ fd: file.fd, size: info.size, limit })
        .catch((cause: unknown) => {
          throw asArchiveError(name, cause)
        })
      return new ArchiveFiles(name, file, info.size, archive)
    } catch (error) {
      await file.close()
      throw error
    }
  }
  /** Behind links, which `docker save` makes where layers are the same. */
  #find(name: string): NativeArchive["members"][number] | undefined {
    let at = memberName(name)
    for (let links = 0; links <= 8; links++) {
      const member = this.#members.get(at)
      if (member?.type === "file") return member
      if (member === undefined || member.type === "other") return undefined
      const from = member.type === "symlink" ? path.posix.dirname(at) : ""
      at = memberName(path.posix.join(from, member.target))
    }
    throw new OciError("ERR_OCI_FORMAT", `${this.#path}: ${name} is a link that leads nowhere`)
  }
  // eslint-disable-next-line @typescript-eslint/require-await -- as a folder does it
  async has(name: string): Promise<boolean> {
    return this.#find(name) !== undefined
  }
  // eslint-disable-next-line @typescript-eslint/require-await -- as a folder does it
  async open(name: string): Promise<NativeBlob> {
    const member = this.#find(name)
    if (member === undefined) throw missing(this.#path, name)
    const { offset, size } = member
    const place = { fd: this.#file.fd, offset, size }
    if (!this.#archive.compressed) return place
    return { ...place, archive: { fileSize: this.#fileSize, size: this.#archive.size } }
  }
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close()
  }
}

async function readSmall(files: Files, name: string, where: string): Promise<Buffer> {
  const blob = await files.open(name)
  if (blob.size > MAX_DOCUMENT)
    throw new OciError("ERR_OCI_LIMIT", `${where}: ${name} has ${blob.size} bytes, more than ${MAX_DOCUMENT}`)
  return await loadAddon()
    .readBlob(blob)
    .catch((cause: unknown) => {
      throw asArchiveError(where, cause)
    })
}

/** Blobs by their digests. */
class LayoutStore implements BlobStore {
  readonly name: string
  readonly isVerified = false
  readonly isPublic: boolean
  readonly #files: Files

  constructor(name: string, files: Files, isPublic: boolean) {
    this.name = name
    this.#files = files
    this.isPublic = isPublic
  }
  async read(descriptor: Descriptor): Promise<Buffer> {
    if (descriptor.data !== undefined) return descriptor.data
    return await readSmall(this.#files, blobName(descriptor.digest), this.name)
  }
  async open(descriptor: Descriptor): Promise<NativeBlob> {
    const blob = await this.#files.open(blobName(descriptor.digest))
    if (blob.size !== descriptor.size)
      throw new OciError(
        "ERR_OCI_DIGEST",
        `${this.name}: ${descriptor.digest.text} has ${blob.size} bytes where ${descriptor.size} are promised`,
      )
    return blob
  }
  async *stream(descriptor: Descriptor): AsyncGenerator<Buffer, void, undefined> {
    try {
      yield* streamBlob(await this.open(descriptor))
    } catch (cause) {
      throw asArchiveError(this.name, cause)
    }
  }
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#files[Symbol.asyncDispose]()
  }
}

export function blobName({ algorithm, hex }: Digest): string {
  return `blobs/${algorithm}/${hex}`
}

/** An image that was found on disk: which descriptor, or the files that `docker save` names. */
export type FoundImage =
  | { readonly store: BlobStore; readonly descriptor: Descriptor }
  | { readonly store: BlobStore; readonly saved: SavedImage }

/** An entry of manifest.json. */
export interface SavedImage {
  readonly config: Buffer
  /** Where the file's name says. */
  readonly configDigest: Digest | undefined
  /** Base first. They have no digests, only their contents have. */
  readonly layers: readonly { readonly name: string; readonly blob: NativeBlob }[]
}

/** `alpine` is `docker.io/library/alpine:latest`. */
function fullName(name: string): string {
  const first = name.split("/")[0] ?? ""
  const host = name.includes("/") && (/[.:]/.test(first) || first === "localhost")
  const full = host ? name : `docker.io/${name.includes("/") ? "" : "library/"}${name}`
  return full.lastIndexOf(":") > full.lastIndexOf("/") ? full : `${full}:latest`
}

function isNamed(descriptor: Descriptor, name: string): boolean {
  const names = [descriptor.annotations[NAME], descriptor.annotations[CONTAINERD_NAME]]
  return names.includes(name) || (names[1] !== undefined && fullName(names[1]) === fullName(name))
}

function choose(manifests: readonly Descriptor[], selection: Selection, where: string): Descriptor {
  const { name, digest, index } = selection
  if (index !== undefined) {
    const found = manifests[index]
    if (found === undefined)
      throw new OciError(
        "ERR_OCI_NOT_FOUND",
        `${where}: there is no image @${index}, only ${manifests.length}`,
      )
    return found
  }
  const images = manifests.filter(({ mediaType }) => isImageType(mediaType))
  const fits = images.filter((one) =>
    digest === undefined ? name === undefined || isNamed(one, name) : one.digest.text === digest.text,
  )
  // Several with the same content are one.
  const [first] = fits
  if (first !== undefined && fits.every((one) => one.digest.text === first.digest.text)) return first
  const known = images.map((one) => one.annotations[NAME] ?? one.digest.text).join(", ")
  if (first !== undefined)
    throw new OciError("ERR_OCI_NOT_FOUND", `${where}: it has several images, and none is named: ${known}`)
  const wanted = digest?.text ?? name ?? "an image"
  throw new OciError(
    "ERR_OCI_NOT_FOUND",
    `${where}: ${wanted} is not there${known === "" ? "" : `, but ${known}`}`,
  )
}

function jsonOf(bytes: Buffer, what: string): unknown {
  try {
    return parseJson(bytes.toString("utf8"))
  } catch (cause) {
    throw new OciError("ERR_OCI_FORMAT", `${what} is no JSON`, { cause })
  }
}

/** @throws OciError `ERR_OCI_FORMAT`, `ERR_OCI_UNSUPPORTED`. */
export function checkLayoutVersion(bytes: Buffer, where: string): void {
  const layout = jsonOf(bytes, `${where}: oci-layout`)
  const version = (layout as { readonly imageLayoutVersion?: unknown } | null)?.imageLayoutVersion
  if (version !== "1.0.0")
    throw new OciError("ERR_OCI_UNSUPPORTED", `${where}: a layout of version ${JSON.stringify(version)}`)
}

/** @throws OciError `ERR_OCI_FORMAT`. */
export function parseLayoutIndex(bytes: Buffer, where: string): ImageIndex {
  const index = parseDocument(bytes, undefined, `${where}: index.json`)
  if (index.kind !== "index") throw new OciError("ERR_OCI_FORMAT", `${where}: index.json is no index`)
  return index
}

async function fromLayout(files: Files, reference: LocalReference): Promise<FoundImage> {
  const where = reference.path
  checkLayoutVersion(await readSmall(files, "oci-layout", where), where)
  const bytes = await readSmall(files, "index.json", where)
  const { manifests } = parseLayoutIndex(bytes, where)
  return {
    store: new LayoutStore(where, files, await isForAll(where)),
    descriptor: choose(manifests, reference.selection, where),
  }
}

/** What others may not read is nobody else's. */
async function isForAll(where: string): Promise<boolean> {
  return ((await stat(where)).mode & 0o004) !== 0
}

interface SavedEntry {
  readonly Config: string
  readonly RepoTags: readonly string[] | null
  readonly Layers: readonly string[]
}

function isSavedEntry(value: unknown): value is SavedEntry {
  const { Config, RepoTags, Layers } = (value ?? {}) as Partial<Record<keyof SavedEntry, unknown>>
  const isTexts = (list: unknown): boolean =>
    Array.isArray(list) && list.every((one) => typeof one === "string")
  return typeof Config === "string" && isTexts(RepoTags ?? []) && isTexts(Layers)
}

async function fromSaved(files: Files, reference: LocalReference): Promise<FoundImage> {
  const where = reference.path
  const { name, index, digest } = reference.selection
  if (digest !== undefined)
    throw new OciError("ERR_OCI_REFERENCE", `${where}: an archive of docker save has no digests to choose by`)
  const entries = jsonOf(await readSmall(files, "manifest.json", where), `${where}: manifest.json`)
  if (!Array.isArray(entries) || !entries.every(isSavedEntry))
    throw new OciError("ERR_OCI_FORMAT", `${where}: manifest.json is no list of images`)
  const tags = (entry: SavedEntry): readonly string[] => entry.RepoTags ?? []
  const fits = entries.filter(
    (entry, i) =>
      (index === undefined || i === index) &&
      (name === undefined || tags(entry).some((tag) => fullName(tag) === fullName(name))),
  )
  const [entry, another] = fits
  const known = entries.map((one, i) => tags(one)[0] ?? `@${i}`).join(", ")
  if (entry === undefined)
    throw new OciError(
      "ERR_OCI_NOT_FOUND",
      `${where}: ${name ?? `@${String(index)}`} is not there, but ${known}`,
    )
  if (another !== undefined)
    throw new OciError("ERR_OCI_NOT_FOUND", `${where}: it has several images, and none is named: ${known}`)
  const hex = /(?:^|\/)([0-9a-f]{64})(?:\.json)?$/.exec(entry.Config)?.[1]
  return {
    store: new LayoutStore(where, files, await isForAll(where)),
    saved: {
      config: await readSmall(files, entry.Config, where),
      configDigest: hex === undefined ? undefined : parseDigest(`sha256:${hex}`, where),
      layers: await Promise.all(
        entry.Layers.map(async (layer) => ({ name: layer, blob: await files.open(layer) })),
      ),
    },
  }
}

/**
 * Finds an image on disk.
 *
 * @param limit - Of an archive, uncompressed.
 * @throws OciError `ERR_OCI_NOT_FOUND`, `ERR_OCI_FORMAT`, `ERR_OCI_UNSUPPORTED`, `ERR_OCI_LIMIT`.
 */
export async function findImage(reference: LocalReference, limit: Bytes): Promise<FoundImage> {
  const { transport, path: where, selection } = reference
  const files = transport === "oci" ? new FolderFiles(where) : await ArchiveFiles.open(where, limit)
  try {
    const isLayout = (await files.has("oci-layout")) && (await files.has("index.json"))
    if (transport !== "docker-archive") {
      if (!isLayout) throw missing(where, "oci-layout")
      return await fromLayout(files, reference)
    }
    const isSaved = await files.has("manifest.json")
    // Of an archive that is both, the layout has digests of the layers. Names are manifest.json's.
    if (isLayout && (!isSaved || selection.digest !== undefined)) return await fromLayout(files, reference)
    return await fromSaved(files, reference)
  } catch (error) {
    await files[Symbol.asyncDispose]()
    throw error
  }
}
