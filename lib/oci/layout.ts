// Images on disk: a layout (folder or archive) and what `docker save` writes.
import { constants } from "node:fs"
import { open, stat, type FileHandle } from "node:fs/promises"
import path from "node:path"
import { madeOf } from "../disposal.ts"
import { OciError } from "../errors.ts"
import { parseJson } from "../json.ts"
import type { NativeArchive, NativeBlob } from "../native/binding.ts"
import { loadAddon } from "../native/load.ts"
import type { Bytes } from "../units.ts"
import { checkBytes, parseDigest, type Digest } from "./digest.ts"
import {
  isImageType,
  MAX_DOCUMENT,
  MAX_DOCUMENT_BYTES,
  parseDocument,
  type Descriptor,
  type ImageIndex,
} from "./manifest.ts"
import { asArchiveError } from "./native-error.ts"
import { fullName, type LocalReference, type Selection } from "./reference.ts"
import { streamBlob, type BlobStore } from "./store.ts"

/** Files by name, inside a folder or an archive. */
interface Files extends AsyncDisposable {
  has(name: string): Promise<boolean>
  /** @throws OciError `ERR_OCI_NOT_FOUND`. */
  open(name: string): Promise<NativeBlob>
  /** For one reading, after which it is closed: of many small ones not all can be open. */
  openOnce(name: string): Promise<NativeBlob & AsyncDisposable>
}

/** What an image is called by, in an index. */
export const NAME = "org.opencontainers.image.ref.name"
export const CONTAINERD_NAME = "io.containerd.image.name"

function missing(where: string, what: string): OciError {
  return OciError.at(where, "ERR_OCI_NOT_FOUND", `${what} is not there`)
}

class FolderFiles implements Files {
  readonly #folder: string
  readonly #held: AsyncDisposable | undefined
  readonly #open = new Map<string, Promise<FileHandle>>()

  /** @param held - Until it is closed. */
  constructor(folder: string, held?: AsyncDisposable) {
    this.#folder = folder
    this.#held = held
  }
  async has(name: string): Promise<boolean> {
    return (await stat(path.join(this.#folder, name)).catch(() => undefined))?.isFile() === true
  }
  async #openFile(name: string): Promise<FileHandle> {
    try {
      // Not waiting for the writer of a fifo.
      return await open(path.join(this.#folder, name), constants.O_RDONLY | constants.O_NONBLOCK)
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code === "ENOENT") throw missing(this.#folder, name)
      throw OciError.at(this.#folder, "ERR_OCI_NOT_FOUND", (cause as Error).message, { cause })
    }
  }
  async #whole(file: FileHandle, name: string): Promise<NativeBlob> {
    const info = await file.stat()
    if (!info.isFile()) throw new OciError("ERR_OCI_FORMAT", `${this.#folder}: ${name} is no file`)
    return { fd: file.fd, offset: 0, size: info.size }
  }
  async open(name: string): Promise<NativeBlob> {
    let file = this.#open.get(name)
    // Layers are opened several at a time, and one may be there twice.
    if (file === undefined) this.#open.set(name, (file = this.#openFile(name)))
    return await this.#whole(await file, name)
  }
  async openOnce(name: string): Promise<NativeBlob & AsyncDisposable> {
    const file = await this.#openFile(name)
    return await madeOf(file, async () => ({
      ...(await this.#whole(file, name)),
      [Symbol.asyncDispose]: () => file.close(),
    }))
  }
  async [Symbol.asyncDispose](): Promise<void> {
    // One that could not be opened has said so to whoever wanted it.
    for (const file of this.#open.values()) await file.then((one) => one.close()).catch(() => undefined)
    await this.#held?.[Symbol.asyncDispose]()
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
  static async open(name: string, limit: Bytes, at: string = name): Promise<ArchiveFiles> {
    const file = await open(at, constants.O_RDONLY | constants.O_NONBLOCK).catch((cause: unknown) => {
      throw new OciError("ERR_OCI_NOT_FOUND", `cannot open ${name}: ${(cause as Error).message}`, {
        path: name,
        cause,
      })
    })
    return await madeOf(file, async () => {
      const info = await file.stat()
      if (!info.isFile()) throw new OciError("ERR_OCI_NOT_FOUND", `${name} is no file`, { path: name })
      const archive = await loadAddon()
        .listArchive({ fd: file.fd, size: info.size, limit })
        .catch((cause: unknown) => {
          throw asArchiveError(name, cause)
        })
      return new ArchiveFiles(name, file, info.size, archive)
    })
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
  async openOnce(name: string): Promise<NativeBlob & AsyncDisposable> {
    return { ...(await this.open(name)), [Symbol.asyncDispose]: () => Promise.resolve() }
  }
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close()
  }
}

async function readSmall(files: Files, name: string, where: string): Promise<Buffer> {
  await using blob = await files.openOnce(name)
  if (blob.size > MAX_DOCUMENT)
    throw new OciError("ERR_OCI_LIMIT", `${where}: ${name} has ${blob.size} bytes, more than ${MAX_DOCUMENT}`)
  return await loadAddon()
    .readBlob(blob, { offset: 0, size: blob.size })
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
export type FoundImage = { readonly store: BlobStore; readonly descriptor: Descriptor } | FoundSaved
interface FoundSaved {
  readonly store: BlobStore
  readonly saved: SavedImage
}

/** An entry of manifest.json. */
export interface SavedImage {
  readonly config: Buffer
  /** Where the file's name says. */
  readonly configDigest: Digest | undefined
  /** Base first. They have no digests, only their contents have. */
  readonly layers: readonly { readonly name: string; readonly blob: NativeBlob }[]
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
  const { name, digest } = reference.selection
  // Where a user's images lie nobody has to know, and all of them lie there.
  const shown = reference.transport === "store" ? `store:${name ?? `@${digest?.text ?? ""}`}` : where
  return {
    store: new LayoutStore(shown, files, await isForAll(reference.at ?? where)),
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

async function readSaved(files: Files, where: string): Promise<SavedEntry[]> {
  const entries = jsonOf(await readSmall(files, "manifest.json", where), `${where}: manifest.json`)
  if (!Array.isArray(entries) || !entries.every(isSavedEntry))
    throw new OciError("ERR_OCI_FORMAT", `${where}: manifest.json is no list of images`)
  return entries
}

async function fromSaved(files: Files, reference: LocalReference): Promise<FoundSaved> {
  const where = reference.path
  const { name, index, digest } = reference.selection
  if (digest !== undefined)
    throw new OciError("ERR_OCI_REFERENCE", `${where}: an archive of docker save has no digests to choose by`)
  const entries = await readSaved(files, where)
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
  return await savedImage(files, entry, where, await isForAll(reference.at ?? where))
}

async function savedImage(
  files: Files,
  { Config, Layers }: SavedEntry,
  where: string,
  isPublic: boolean,
): Promise<FoundSaved> {
  const hex = /(?:^|\/)([0-9a-f]{64})(?:\.json)?$/.exec(Config)?.[1]
  return {
    store: new LayoutStore(where, files, isPublic),
    saved: {
      config: await readSmall(files, Config, where),
      configDigest: hex === undefined ? undefined : parseDigest(`sha256:${hex}`, where),
      layers: await Promise.all(
        Layers.map(async (layer) => ({ name: layer, blob: await files.open(layer) })),
      ),
    },
  }
}

/** More manifests are not looked through for one image. */
const MAX_LOOKED_AT = 100

/** The manifest of an image that manifest.json names, in the layout beside it: the one with its configuration. */
async function inLayout(files: Files, { store, saved }: FoundSaved): Promise<FoundImage | undefined> {
  const where = store.name
  const wanted = saved.configDigest?.text
  if (wanted === undefined) return undefined
  checkLayoutVersion(await readSmall(files, "oci-layout", where), where)
  const { manifests } = parseLayoutIndex(await readSmall(files, "index.json", where), where)
  const queue = manifests.filter(({ mediaType }) => isImageType(mediaType))
  for (let i = 0; i < Math.min(queue.length, MAX_LOOKED_AT); i++) {
    const descriptor = queue[i]
    // Of an index it may have one platform only.
    if (descriptor === undefined || !(await files.has(blobName(descriptor.digest)))) continue
    const what = `${where}: ${descriptor.digest.text}`
    const bytes = await store.read(descriptor)
    checkBytes(bytes, descriptor.digest, descriptor.size, what)
    const document = parseDocument(bytes, descriptor.mediaType, what)
    if (document.kind === "index")
      queue.push(...document.manifests.filter((one) => isImageType(one.mediaType)))
    else if (document.config.digest.text === wanted) return { store, descriptor }
  }
  return undefined
}

/** An image on disk, and the names that it has there. */
export interface ListedImage {
  readonly names: readonly string[]
  readonly found: FoundImage
}

/** All images on disk, open together. */
export interface OpenImages extends AsyncDisposable {
  /** Those of one digest are one. */
  readonly images: readonly ListedImage[]
}

/** More images are not taken from one place of others. */
const MAX_IMAGES = 1000

/**
 * Opens all images on disk.
 *
 * @param limit - Of an archive, uncompressed.
 * @param held - Of a folder, for as long as it is open; on failure it is disposed.
 * @throws OciError as {@link findImage}.
 */
export async function openImages(
  { transport, path: where, at }: Omit<LocalReference, "selection">,
  limit: Bytes,
  held?: AsyncDisposable,
): Promise<OpenImages> {
  const isFolder = transport === "oci" || transport === "store"
  const files = isFolder ? new FolderFiles(where, held) : await ArchiveFiles.open(where, limit, at)
  return await madeOf(files, async () => {
    const isLayout = (await files.has("oci-layout")) && (await files.has("index.json"))
    if (!isLayout && !(await files.has("manifest.json"))) throw missing(where, "oci-layout")
    const images = isLayout ? await imagesOfLayout(files, where) : await imagesSaved(files, where)
    if (images.length > MAX_IMAGES && transport !== "store") throw tooMany(where)
    return { images, [Symbol.asyncDispose]: () => files[Symbol.asyncDispose]() }
  })
}

function tooMany(where: string): OciError {
  return new OciError("ERR_OCI_LIMIT", `${where}: more than ${MAX_IMAGES} images`)
}

async function imagesSaved(files: Files, where: string): Promise<ListedImage[]> {
  const entries = await readSaved(files, where)
  if (entries.length > MAX_IMAGES) throw tooMany(where)
  const images: ListedImage[] = []
  // All of them stay at hand.
  let held: Bytes = 0
  for (const entry of entries) {
    const found = await savedImage(files, entry, where, false)
    held += found.saved.config.length
    if (held > MAX_DOCUMENT_BYTES)
      throw OciError.at(where, "ERR_OCI_LIMIT", `more than ${MAX_DOCUMENT_BYTES} bytes of configurations`)
    images.push({ names: entry.RepoTags ?? [], found })
  }
  return images
}

async function imagesOfLayout(files: Files, where: string): Promise<ListedImage[]> {
  checkLayoutVersion(await readSmall(files, "oci-layout", where), where)
  const { manifests } = parseLayoutIndex(await readSmall(files, "index.json", where), where)
  const store = new LayoutStore(where, files, false)
  const images = new Map<string, { readonly names: Set<string>; readonly found: FoundImage }>()
  for (const descriptor of manifests) {
    const { mediaType, digest, annotations } = descriptor
    if (!isImageType(mediaType)) continue
    const image = images.get(digest.text) ?? { names: new Set(), found: { store, descriptor } }
    const name = annotations[CONTAINERD_NAME] ?? annotations[NAME]
    if (name !== undefined) image.names.add(name)
    images.set(digest.text, image)
  }
  return [...images.values()].map(({ names, found }) => ({ names: [...names], found }))
}

/** A layout that is open, whatever is in it. */
export interface OpenLayout extends AsyncDisposable {
  readonly store: BlobStore
  readonly manifests: readonly Descriptor[]
}

/** @throws OciError as {@link findImage}. */
export async function openLayout(folder: string, held?: AsyncDisposable): Promise<OpenLayout> {
  const files = new FolderFiles(folder, held)
  return await madeOf(files, async () => {
    checkLayoutVersion(await readSmall(files, "oci-layout", folder), folder)
    const hasIndex = await files.has("index.json")
    const { manifests } = hasIndex
      ? parseLayoutIndex(await readSmall(files, "index.json", folder), folder)
      : { manifests: [] }
    return {
      store: new LayoutStore(folder, files, false),
      manifests,
      [Symbol.asyncDispose]: () => files[Symbol.asyncDispose](),
    }
  })
}

/**
 * Finds an image on disk.
 *
 * @param limit - Of an archive, uncompressed.
 * @param held - Of a folder, for as long as it is open; on failure it is disposed.
 * @throws OciError `ERR_OCI_NOT_FOUND`, `ERR_OCI_FORMAT`, `ERR_OCI_UNSUPPORTED`, `ERR_OCI_LIMIT`.
 */
export async function findImage(
  reference: LocalReference,
  limit: Bytes,
  held?: AsyncDisposable,
): Promise<FoundImage> {
  const { transport, path: where, at, selection } = reference
  const isFolder = transport === "oci" || transport === "store"
  const files = isFolder ? new FolderFiles(where, held) : await ArchiveFiles.open(where, limit, at)
  return await madeOf(files, async () => {
    const isLayout = (await files.has("oci-layout")) && (await files.has("index.json"))
    if (transport !== "docker-archive") {
      if (!isLayout) throw missing(where, (await files.has("oci-layout")) ? "index.json" : "oci-layout")
      return await fromLayout(files, reference)
    }
    const isSaved = await files.has("manifest.json")
    if (isLayout && (!isSaved || selection.digest !== undefined)) return await fromLayout(files, reference)
    // Of an archive that is both, the layout has digests of the layers. Names are manifest.json's.
    const found = await fromSaved(files, reference)
    return isLayout ? ((await inLayout(files, found)) ?? found) : found
  })
}
