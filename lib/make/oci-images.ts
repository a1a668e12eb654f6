/**
 * OCI images as they are, copied, kept and told of: not built into a SIF.
 *
 * @packageDocumentation
 */
import * as is from "../arguments.ts"
import os from "node:os"
import { Readable, Writable } from "node:stream"
import { BuildError, OciError } from "../errors.ts"
import { parseJson } from "../json.ts"
import { ArchiveSink, type ArchiveOutput } from "../oci/archive-sink.ts"
import type { CopySource } from "../oci/copy.ts"
import { createdOf, describeImage, type DescribedManifest } from "../oci/describe.ts"
import { MAX_LAYER_BYTES, readDocument, resolveManifest } from "../oci/image.ts"
import { openStored, removeStored } from "../oci/image-store.ts"
import { openImages } from "../oci/layout.ts"
import {
  isIndexType,
  parseDocument,
  parsePlatformName,
  platformFits,
  platformOf,
  platformText,
  type Platform,
} from "../oci/manifest.ts"
import { parseReference, parseStoreName, storeName, type LocalReference } from "../oci/reference.ts"
import { copySource, type SeenLayers } from "../oci/saved-source.ts"
import { spoolArchive } from "../oci/spool.ts"
import { descriptorPath } from "../oci/temporary-file.ts"
import { isEncryptedType } from "../ocicrypt/annotations.ts"
import { copyFound, findOciImage, openSink } from "../registry/transports.ts"
import { layerRows, type LayerOptions } from "../source/layer-options.ts"
import type { Bytes } from "../units.ts"

import { copyAs, placeRows, referenceOf, type ConvertedImage, type PlaceOptions } from "./encrypted-images.ts"

export { decodeLayer } from "./decode-layer.ts"
export type { DecodedLayer, DecodeLayerOptions } from "./decode-layer.ts"
export { changeRecipients, decrypt, encrypt, layerInfo } from "./encrypted-images.ts"
export type {
  ChangeRecipientsOptions,
  ConvertedImage,
  DecryptImageOptions,
  EncryptImageOptions,
  LayerInfo,
  LayerInfoOptions,
} from "./encrypted-images.ts"

/** What of an image with several platforms is taken. */
export interface PlatformOptions {
  /** Everything, byte for byte. */
  readonly all?: boolean | undefined
  /**
   * `linux/amd64`, `linux/arm/v7`: of one its manifest, byte for byte; of several the index with these only, which has another digest
   * then. Default: the image for this machine.
   */
  readonly platforms?: readonly string[] | undefined
}

interface WorkOptions {
  readonly signal?: AbortSignal | undefined
  /** Hears what the user should know, in a sentence. */
  readonly onNotice?: ((text: string) => void) | undefined
  /** Bytes of blobs that are there, of how many. */
  readonly onProgress?: ((bytes: Bytes, total: Bytes) => void) | undefined
}

/** What {@link copy} copies, and where to. */
export interface CopyOptions extends PlatformOptions, PlaceOptions {}

/** What {@link copy} wrote. */
export type CopyResult = ConvertedImage

const workRows: is.Rows<WorkOptions> = {
  signal: is.abortSignal,
  onNotice: is.callback,
  onProgress: is.callback,
}
const platformRows: is.Rows<PlatformOptions> = { all: is.flag, platforms: is.filled(is.list(is.text)) }

const checkCopy = is.shape<CopyOptions>({ ...placeRows, ...platformRows })

function platformsOf({ all, platforms }: PlatformOptions): readonly Platform[] | undefined {
  if (all === true && platforms !== undefined)
    throw is.invalidValue("options.all and options.platforms: everything, or these platforms")
  return platforms?.map(parsePlatformName)
}

/**
 * Copies an image. What is there is not sent again, and no digest changes but that of an index of which some platforms were chosen.
 *
 * @throws OciError; BuildError `ERR_BUILD_OUTPUT`, `ERR_BUILD_EXISTS`; the signal's reason.
 */
export async function copy(given: CopyOptions): Promise<CopyResult> {
  const options = checkCopy(given, "options")
  return await copyAs(options, { all: options.all, platforms: platformsOf(options) })
}

/** How {@link save} writes. */
export type ArchiveFormat = "oci-archive" | "docker-archive"

/** What {@link save} writes: of images with several platforms everything, where the format has room for it. */
export interface SaveOptions extends PlatformOptions, WorkOptions {
  /** Of images in the store: as {@link CopyOptions} has them behind `store:`. */
  readonly names: readonly string[]
  /** A file, or a stream that is not ended. */
  readonly output: string | Writable
  /** `docker-archive` is a layout as well, and has images of one platform each. Default `oci-archive`. */
  readonly format?: ArchiveFormat | undefined
  /** Replace a file that is there. */
  readonly force?: boolean | undefined
}

const pathOrStream =
  <T>(stream: is.Check<T>): is.Check<string | T> =>
  (value, name) =>
    typeof value === "string" ? is.path(value, name) : stream(value, name)

const checkSave = is.shape<SaveOptions>({
  names: is.required(is.filled(is.list(is.text))),
  output: is.required(pathOrStream(is.instance(Writable, "a path or a Writable"))),
  format: is.oneOf("oci-archive", "docker-archive"),
  force: is.flag,
  ...platformRows,
  ...workRows,
})

/** Written as it comes; whoever made the stream ends it. */
function streamOutput(stream: Writable): ArchiveOutput {
  return {
    name: "the archive",
    async append(bytes: Buffer): Promise<void> {
      await new Promise<void>((resolve, reject) => {
        stream.write(bytes, (cause) => {
          if (cause instanceof Error)
            reject(
              new BuildError("ERR_BUILD_OUTPUT", `cannot write the archive: ${cause.message}`, { cause }),
            )
          else resolve()
        })
      })
    },
    publish: () => Promise.resolve(),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  }
}

/**
 * Writes images of the store into one archive.
 *
 * @returns A result for each name.
 * @throws OciError; BuildError `ERR_BUILD_OUTPUT`, `ERR_BUILD_EXISTS`; the signal's reason.
 */
export async function save(given: SaveOptions): Promise<CopyResult[]> {
  const options = checkSave(given, "options")
  const { names, output, format = "oci-archive", force: replace, signal, onNotice, onProgress } = options
  const platforms = platformsOf(options)
  const all = options.all ?? (platforms === undefined && format === "oci-archive")
  const references = names.map(parseStoreName)
  await using sink =
    typeof output === "string"
      ? await openSink({ transport: format, path: output, selection: {} }, { replace, signal })
      : new ArchiveSink(streamOutput(output), format)
  const made: CopyResult[] = []
  for (const reference of references) {
    await using found = await findOciImage(reference, { signal })
    const work = { all, platforms, signal, onNotice, onProgress }
    const { digest, mediaType } = await copyFound(found, sink, reference.selection.name, work)
    made.push({ digest: digest.text, mediaType })
  }
  await sink.complete?.()
  return made
}

/** What {@link load} reads. */
export interface LoadOptions extends WorkOptions {
  /** An archive: of a layout, or what `docker save` writes; or such an archive as a stream, which is kept in `tmpFolder` meanwhile. */
  readonly input: string | Readable
  /** Of all that the archive holds uncompressed. Default {@link MAX_LAYER_BYTES}. */
  readonly maxBytes?: Bytes | undefined
  /** Default: TMPDIR. */
  readonly tmpFolder?: string | undefined
}

/** An image that {@link load} put into the store. */
export interface LoadedImage extends CopyResult {
  /** In the store; undefined: it has none but its digest. */
  readonly name: string | undefined
}

const checkLoad = is.shape<LoadOptions>({
  input: is.required(pathOrStream(is.instance(Readable, "a path or a Readable"))),
  maxBytes: is.count,
  tmpFolder: is.path,
  ...workRows,
})

async function loadArchive(
  archive: Pick<LocalReference, "path" | "at">,
  options: LoadOptions,
): Promise<LoadedImage[]> {
  const { signal, onNotice, onProgress, maxBytes = MAX_LAYER_BYTES } = options
  await using opened = await openImages({ transport: "docker-archive", ...archive }, maxBytes)
  const { images } = opened
  if (images.length === 0) throw new OciError("ERR_OCI_NOT_FOUND", `${archive.path}: no image is in it`)
  await using sink = await openSink(parseStoreName(""), { signal })
  const loaded: LoadedImage[] = []
  const seen: SeenLayers = new Map()
  for (const { names, found } of images) {
    const source = await copySource(found, seen)
    const known = new Set<string>()
    for (const given of names) {
      const name = storeName(given)
      if (name === undefined)
        onNotice?.(
          `${archive.path}: ${JSON.stringify(given)} cannot be a name here: the image has its digest only`,
        )
      else known.add(name)
    }
    for (const name of known.size === 0 ? [undefined] : known) {
      // Others write an index of all platforms, and only one of them into the archive.
      const work = { all: true, partial: true, signal, onNotice, onProgress }
      const { digest, mediaType } = await copyFound(source, sink, name, work)
      loaded.push({ name, digest: digest.text, mediaType })
    }
  }
  return loaded
}

/**
 * Adds all images of an archive to the store, by the names that they have in it.
 *
 * @throws OciError; BuildError `ERR_BUILD_OUTPUT`; the signal's reason.
 */
export async function load(given: LoadOptions): Promise<LoadedImage[]> {
  const options = checkLoad(given, "options")
  const { input, signal, maxBytes: limit = MAX_LAYER_BYTES, tmpFolder = os.tmpdir() } = options
  const path = typeof input === "string" ? input : "the archive"
  await using spooled = await spoolArchive(input, path, { folder: tmpFolder, limit, signal })
  return await loadArchive({ path, at: spooled && descriptorPath(spooled) }, options)
}

/** An image as {@link list} shows it. */
export interface ListedOciImage {
  /** Several names may lead to one image; undefined: none does. */
  readonly name: string | undefined
  readonly digest: string
  readonly mediaType: string
  /** `linux/amd64` */
  readonly platforms: readonly string[]
  /** Of everything that it is made of, as it lies there. */
  readonly size: Bytes
  /** Are its layers encrypted? As their types say: no key is asked for. */
  readonly encrypted: "all" | "some" | "none"
  /** As its first configuration says. */
  readonly created: string | undefined
  /** Why nothing else can be told of it; undefined: it is as it should be, as far as this was read. */
  readonly damage: string | undefined
}

/** What {@link list} lists. */
export interface ListOptions {
  /** `oci:DIR`, `oci-archive:FILE`, `docker-archive:FILE`. Default: the store. */
  readonly place?: string | undefined
  /** Where a compressed archive is unpacked meanwhile, as an unnamed file. Default: TMPDIR. */
  readonly tmpFolder?: string | undefined
  readonly signal?: AbortSignal | undefined
}

const checkList = is.shape<ListOptions>({ place: is.path, tmpFolder: is.path, signal: is.abortSignal })

function placeOf(name: string | undefined): LocalReference {
  const reference = name === undefined ? parseStoreName("") : referenceOf(name)
  if (reference.transport !== "docker") return reference
  throw new OciError(
    "ERR_OCI_REFERENCE",
    `${reference.text}: a registry does not list images; a folder or an archive does`,
  )
}

/**
 * The images of the store, of a layout or of an archive.
 *
 * @throws OciError.
 */
export async function list(given: ListOptions = {}): Promise<ListedOciImage[]> {
  const { place, tmpFolder: folder = os.tmpdir(), signal } = checkList(given, "options")
  const { transport, path } = placeOf(place)
  // What is looked at lies here and there in it.
  const isFolder = transport === "oci" || transport === "store"
  await using spooled = isFolder
    ? undefined
    : await spoolArchive(path, path, { folder, limit: MAX_LAYER_BYTES, signal })
  await using opened =
    transport === "store"
      ? await openStored(path, signal)
      : await openImages({ transport, path, at: spooled && descriptorPath(spooled) }, MAX_LAYER_BYTES)
  const listed: ListedOciImage[] = []
  const seen: SeenLayers = new Map()
  for (const { names, found } of opened.images) {
    signal?.throwIfAborted()
    const image = await shownImage(await copySource(found, seen))
    for (const name of names.length === 0 ? [undefined] : names) listed.push({ name, ...image })
  }
  const key = ({ name, digest }: ListedOciImage): string => name ?? digest
  return listed.sort((one, other) => (key(one) < key(other) ? -1 : 1))
}

async function shownImage(source: CopySource): Promise<Omit<ListedOciImage, "name">> {
  const { digest, mediaType } = source.descriptor
  const known = { digest: digest.text, mediaType }
  try {
    const { manifests, size } = await describeImage(source)
    const created = createdOf(manifests[0]?.config)
    const layers = manifests.flatMap(({ manifest }) => manifest.layers)
    const sealed = layers.filter(({ mediaType }) => isEncryptedType(mediaType)).length
    const encrypted = sealed === 0 ? "none" : sealed === layers.length ? "all" : "some"
    return { ...known, platforms: shownPlatforms(manifests), size, encrypted, created, damage: undefined }
  } catch (error) {
    if (!(error instanceof OciError)) throw error
    const nothing = { platforms: [], size: 0, encrypted: "none", created: undefined } as const
    return { ...known, ...nothing, damage: error.message }
  }
}

function shownPlatforms(manifests: readonly DescribedManifest[]): string[] {
  return [
    ...new Set(manifests.flatMap(({ platform }) => (platform === undefined ? [] : platformText(platform)))),
  ]
}

/** An image as {@link inspect} shows it. */
export interface InspectedImage {
  readonly digest: string
  readonly mediaType: string
  /** That the image has; none where that is not said. */
  readonly platforms: readonly string[]
  /** The document itself, byte for byte: its digest is `digest`. */
  readonly raw: Buffer
  /** For the platform that was chosen; undefined where there is none for this machine and none was. */
  readonly manifest: InspectedManifest | undefined
}

/** A manifest as {@link inspect} shows it. */
export interface InspectedManifest {
  readonly digest: string
  readonly mediaType: string
  readonly platform: string | undefined
  readonly annotations: Readonly<Record<string, string>>
  /** Of all that it is made of, as it lies there. */
  readonly size: Bytes
  readonly created: string | undefined
  /** Base first. */
  readonly layers: readonly InspectedLayer[]
  /** Of the configuration, which is what others call the image's ID. */
  readonly configDigest: string
  /** The configuration, as it is written; undefined for what is no container image. */
  readonly config: Readonly<Record<string, unknown>> | undefined
  readonly rawConfig: Buffer | undefined
}

/** A layer as {@link inspect} shows it. */
export interface InspectedLayer {
  readonly digest: string
  readonly mediaType: string
  readonly size: Bytes
  readonly annotations: Readonly<Record<string, string>>
}

/** What {@link inspect} looks at. */
export interface InspectOptions extends Pick<LayerOptions, "oci"> {
  /** As {@link CopyOptions} has it; without a transport an image of the store. */
  readonly source: string
  /** Default: the image itself, and what it has for this machine. */
  readonly platform?: string | undefined
  readonly signal?: AbortSignal | undefined
  /** Hears what somebody should know. */
  readonly onNotice?: ((text: string) => void) | undefined
}

const checkInspect = is.shape<InspectOptions>({
  source: is.required(is.path),
  platform: is.text,
  signal: is.abortSignal,
  onNotice: is.callback,
  ...layerRows,
})

/** What an image has for a platform; undefined: there is nothing, and nobody insists. */
async function chosen(
  source: CopySource,
  wanted: string | undefined,
): Promise<DescribedManifest | undefined> {
  const { store, descriptor } = source
  const platform = wanted === undefined ? platformOf(process.arch) : parsePlatformName(wanted)
  try {
    const found = await resolveManifest(store, descriptor, platform)
    const [described] = (await describeImage({ store, descriptor: found.descriptor })).manifests
    const isOther = wanted !== undefined && described?.platform && !platformFits(described.platform, platform)
    if (isOther !== true) return described
    throw new OciError("ERR_OCI_NOT_FOUND", `${store.name}: there is no image for ${platformText(platform)}`)
  } catch (error) {
    const isAbsent = error instanceof OciError && error.code === "ERR_OCI_NOT_FOUND"
    if (wanted === undefined && isAbsent && isIndexType(descriptor.mediaType)) return undefined
    throw error
  }
}

function inspected({ descriptor, bytes, manifest, platform, config }: DescribedManifest): InspectedManifest {
  const { annotations = {} } = parseJson(bytes.toString("utf8")) as Partial<InspectedManifest>
  const blobs = [manifest.config, ...manifest.layers]
  return {
    digest: descriptor.digest.text,
    mediaType: descriptor.mediaType,
    platform: platform && platformText(platform),
    annotations,
    size: blobs.reduce((sum, { size }) => sum + size, bytes.length),
    created: createdOf(config),
    layers: manifest.layers.map(({ digest, mediaType, size, annotations: notes }) => ({
      digest: digest.text,
      mediaType,
      size,
      annotations: notes,
    })),
    configDigest: manifest.config.digest.text,
    config: config && (parseJson(config.toString("utf8")) as InspectedManifest["config"]),
    rawConfig: config,
  }
}

/**
 * What an image is made of, without its layers being read.
 *
 * @throws OciError.
 */
export async function inspect(given: InspectOptions): Promise<InspectedImage> {
  const { source, platform, oci, signal, onNotice } = checkInspect(given, "options")
  const reference = parseReference(source) ?? parseStoreName(source)
  await using found = await findOciImage(reference, { ...oci, signal, onNotice })
  const { store, descriptor: root } = found
  const manifest = await chosen(found, platform)
  const descriptor = platform === undefined ? root : (manifest?.descriptor ?? root)
  const what = `${store.name}: ${descriptor.digest.text}`
  const raw = await readDocument(store, descriptor, what)
  const document = parseDocument(raw, descriptor.mediaType, what)
  const named = document.kind === "index" ? document.manifests : [{ platform: manifest?.platform }]
  return {
    digest: descriptor.digest.text,
    mediaType: descriptor.mediaType,
    platforms: [
      ...new Set(
        named.flatMap((one) =>
          one.platform === undefined || one.platform.os === "unknown" ? [] : platformText(one.platform),
        ),
      ),
    ],
    raw,
    manifest: manifest && inspected(manifest),
  }
}

/** An image that {@link remove} took out. */
export interface RemovedOciImage {
  readonly name: string | undefined
  readonly digest: string
}

/** What {@link remove} takes out of the store. */
export interface RemoveOptions {
  /** `NAME[:TAG]`, or `@DIGEST` with all names that it has. */
  readonly names: readonly string[]
  readonly signal?: AbortSignal | undefined
}

const checkRemove = is.shape<RemoveOptions>({
  names: is.required(is.filled(is.list(is.text))),
  signal: is.abortSignal,
})

/**
 * Takes images out of the store, and what they were made of where no other image needs it.
 *
 * @throws OciError `ERR_OCI_NOT_FOUND`, `ERR_OCI_REFERENCE`; BuildError `ERR_BUILD_OUTPUT`.
 */
export async function remove(given: RemoveOptions): Promise<RemovedOciImage[]> {
  const { names, signal } = checkRemove(given, "options")
  const references = names.map(parseStoreName)
  const removed: RemovedOciImage[] = []
  for (const { path, selection } of references) removed.push(...(await removeStored(path, selection, signal)))
  return removed
}
