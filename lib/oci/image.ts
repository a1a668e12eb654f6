// An OCI image that was found: chosen for a platform, checked, and ready to be read.
import { madeOf } from "../disposal.ts"
import { OciError } from "../errors.ts"
import type { NativeLayer } from "../native/binding.ts"
import { isEncryptedType } from "../ocicrypt/annotations.ts"
import type { Bytes } from "../units.ts"
import { checkBytes, digestOf, type Digest } from "./digest.ts"
import type { FoundImage, SavedImage } from "./layout.ts"
import {
  checkLayerTypes,
  MAX_DOCUMENT,
  parseConfig,
  parseDocument,
  platformFits,
  platformOf,
  platformText,
  type Descriptor,
  type ImageConfig,
  type ImageManifest,
  type Platform,
} from "./manifest.ts"
import { checkEncryption, EncryptedLayers, layerName, type EncryptionDemand } from "./encrypted-layers.ts"
import type { BlobStore } from "./store.ts"

/** All files of an image together. */
export const MAX_LAYER_BYTES: Bytes = 64 * 2 ** 30

/** Which image it is to be. */
export interface ImageOptions extends EncryptionDemand {
  /** `amd64`, `arm64`, `arm32v7`, `ppc64le`; default: this machine's. */
  readonly architecture?: string | undefined
  /** More, uncompressed, is an error: a few bytes can stand for any number. Default {@link MAX_LAYER_BYTES}. */
  readonly maxLayerBytes?: Bytes | undefined
  readonly signal?: AbortSignal | undefined
  /** Hears what somebody should know. */
  readonly onNotice?: ((text: string) => void) | undefined
}

/** An image that was chosen and checked, as far as its documents say. It is open until it is disposed. */
export interface OciImage extends AsyncDisposable {
  /** As it was named. */
  readonly name: string
  readonly config: ImageConfig
  /** Of the manifest; where `docker save` has written none, of the configuration: both name all that is in the layers. */
  readonly digest: Digest
  /** Has nobody had to be named for what came of it so far? */
  readonly isPublic: boolean
  /** Base first. They are fetched with the first call, and at hand while the image is open. */
  layers(): Promise<readonly NativeLayer[]>
  /** What all know who can decrypt it, and nobody else; undefined: it is plain. The caller wipes it. */
  secret(): Promise<Buffer | undefined>
}

/** Of indexes. */
export const MAX_NESTING = 3

/** A document, verified. */
export async function readDocument(store: BlobStore, descriptor: Descriptor, what: string): Promise<Buffer> {
  if (descriptor.size > MAX_DOCUMENT)
    throw new OciError("ERR_OCI_LIMIT", `${what}: ${descriptor.size} bytes, more than ${MAX_DOCUMENT}`)
  const bytes = await store.read(descriptor)
  checkBytes(bytes, descriptor.digest, descriptor.size, what)
  return bytes
}

/**
 * The manifest for a platform, through indexes.
 *
 * @throws OciError `ERR_OCI_NOT_FOUND` where there is none for it.
 */
export async function resolveManifest(
  store: BlobStore,
  root: Descriptor,
  wanted: Platform,
): Promise<{
  readonly manifest: ImageManifest
  readonly descriptor: Descriptor
  /** Of several. */
  readonly chosen: boolean
}> {
  let descriptor = root
  for (let depth = 0; depth <= MAX_NESTING; depth++) {
    const what = `${store.name}: ${descriptor.digest.text}`
    const document = parseDocument(await readDocument(store, descriptor, what), descriptor.mediaType, what)
    if (document.kind === "manifest") return { manifest: document, descriptor, chosen: depth > 0 }
    // Attestations have the platform unknown/unknown; a nested index may have none.
    const known = document.manifests.filter(({ platform }) => platform?.os !== "unknown")
    const fits = known.filter(({ platform }) => platform !== undefined && platformFits(platform, wanted))
    const withoutPlatform = known.filter(({ platform }) => platform === undefined)
    const found = fits[0] ?? (withoutPlatform.length === 1 ? withoutPlatform[0] : undefined)
    if (found === undefined) {
      const there = known
        .map(({ platform }) => (platform === undefined ? "?" : platformText(platform)))
        .join(", ")
      throw new OciError(
        "ERR_OCI_NOT_FOUND",
        `${store.name}: there is no image for ${platformText(wanted)}, but for ${there === "" ? "none" : there}`,
      )
    }
    descriptor = found
  }
  throw new OciError("ERR_OCI_FORMAT", `${store.name}: indexes in indexes, more than ${MAX_NESTING} deep`)
}

function checkPlatform(name: string, config: ImageConfig, options: ImageOptions, chosen: boolean): void {
  const wanted = platformOf(options.architecture ?? process.arch)
  if (config.platform.architecture === "" || platformFits(config.platform, wanted)) return
  const found = platformText(config.platform)
  // An index that promised another one, or a wish that is not granted.
  if (chosen && config.platform.architecture !== wanted.architecture)
    throw new OciError(
      "ERR_OCI_FORMAT",
      `${name}: the image for ${platformText(wanted)} says that it is for ${found}`,
    )
  if (options.architecture !== undefined)
    throw new OciError("ERR_OCI_NOT_FOUND", `${name}: it is for ${found}, not for ${platformText(wanted)}`)
  options.onNotice?.(`${name} is an image for ${found}, not for this machine`)
}

function checkLayerCount(name: string, layers: number, config: ImageConfig): void {
  if (layers !== config.diffIds.length)
    throw new OciError(
      "ERR_OCI_FORMAT",
      `${name}: ${layers} layers, and its configuration names ${config.diffIds.length}`,
    )
}

function diffIdOf(config: ImageConfig, i: number): Buffer {
  const digest = config.diffIds[i]
  if (digest === undefined) throw new RangeError(`there is no layer ${i}`)
  return digest.bytes
}

function savedImage(name: string, store: BlobStore, saved: SavedImage, options: ImageOptions): OciImage {
  if (saved.configDigest !== undefined)
    checkBytes(saved.config, saved.configDigest, undefined, `${name}: its configuration`)
  const config = parseConfig(saved.config, `${name}: its configuration`)
  checkPlatform(name, config, options, false)
  checkLayerCount(name, saved.layers.length, config)
  checkEncryption(name, { layers: saved.layers.map(() => ({ mediaType: "" })) }, options)
  const layers = saved.layers.map((layer, i) => ({
    blob: layer.blob,
    name: `layer ${i} (${layer.name})`,
    digest: undefined,
    diffId: diffIdOf(config, i),
  }))
  return {
    name,
    config,
    digest: saved.configDigest ?? digestOf(saved.config),
    isPublic: store.isPublic !== false,
    layers: () => Promise.resolve(layers),
    secret: () => Promise.resolve(undefined),
    [Symbol.asyncDispose]: () => store[Symbol.asyncDispose](),
  }
}

async function imageOf(
  name: string,
  store: BlobStore,
  root: Descriptor,
  options: ImageOptions,
): Promise<OciImage> {
  const wanted = platformOf(options.architecture ?? process.arch)
  const { manifest, descriptor, chosen } = await resolveManifest(store, root, wanted)
  checkLayerTypes(manifest, name)
  const config = parseConfig(
    await readDocument(store, manifest.config, `${name}: its configuration`),
    `${name}: its configuration`,
  )
  checkPlatform(name, config, options, chosen)
  checkLayerCount(name, manifest.layers.length, config)
  checkEncryption(name, manifest, options)
  const limit = options.maxLayerBytes ?? MAX_LAYER_BYTES
  const stored = manifest.layers.reduce((sum, { size }) => sum + size, 0)
  if (stored > limit)
    throw new OciError("ERR_OCI_LIMIT", `${name}: its layers have ${stored} bytes, more than ${limit}`, {
      limit: "layers",
    })
  const encrypted = new EncryptedLayers(name, options.layerKeys, options.signal)
  let unwrapped: Promise<void> | undefined
  const unwrap = (): Promise<void> => (unwrapped ??= encrypted.unwrap(manifest.layers))
  const fetch = async (): Promise<NativeLayer[]> => {
    // Before anything is fetched that nobody here can read.
    await unwrap()
    await store.fetch?.(manifest.layers)
    const layers: NativeLayer[] = []
    for (const [i, layer] of manifest.layers.entries()) {
      const blob = await store.open(layer)
      const named = { name: layerName(layer, i), diffId: diffIdOf(config, i) }
      layers.push(
        isEncryptedType(layer.mediaType)
          ? { ...named, ...(await encrypted.open(layer, blob, store.isVerified)) }
          : { ...named, blob, digest: store.isVerified ? undefined : layer.digest.bytes },
      )
    }
    return layers
  }
  let fetched: Promise<NativeLayer[]> | undefined
  return {
    name,
    config,
    digest: descriptor.digest,
    get isPublic(): boolean {
      return store.isPublic !== false && !manifest.layers.some(({ mediaType }) => isEncryptedType(mediaType))
    },
    layers: () => (fetched ??= fetch()),
    async secret(): Promise<Buffer | undefined> {
      await unwrap()
      return encrypted.secret(manifest.layers, descriptor.digest)
    },
    async [Symbol.asyncDispose](): Promise<void> {
      encrypted[Symbol.dispose]()
      await store[Symbol.asyncDispose]()
    },
  }
}

/**
 * Opens an image. Documents are verified before they are read; layers when they are.
 *
 * @param found - Closed with the image, or on failure.
 * @throws OciError.
 */
export async function openImage(name: string, found: FoundImage, options: ImageOptions): Promise<OciImage> {
  return await madeOf(found.store, () =>
    "saved" in found
      ? savedImage(name, found.store, found.saved, options)
      : imageOf(name, found.store, found.descriptor, options),
  )
}
