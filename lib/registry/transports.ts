// What the name of an image stands for, wherever it lies.
import { OciError } from "../errors.ts"
import { copyImage, type CopyOptions } from "../oci/copy.ts"
import { MAX_LAYER_BYTES, openImage, type ImageOptions, type OciImage } from "../oci/image.ts"
import { LayoutSink } from "../oci/layout-sink.ts"
import { findImage, type FoundImage } from "../oci/layout.ts"
import { isIndexType, platformOf, type Descriptor } from "../oci/manifest.ts"
import type { ImageReference } from "../oci/reference.ts"
import type { ImageSink } from "../oci/sink.ts"
import { openRegistrySink, type RegistrySinkOptions } from "./sink.ts"
import { findRemote, type RegistryOptions } from "./store.ts"

/** Where images come from, and which one it is to be. */
export interface OciOptions extends RegistryOptions, ImageOptions {
  readonly signal?: AbortSignal | undefined
  readonly onNotice?: ((text: string) => void) | undefined
}

function nameOf(reference: ImageReference): string {
  return reference.transport === "docker" ? reference.text : reference.path
}

async function find(reference: ImageReference, options: OciOptions): Promise<FoundImage> {
  options.signal?.throwIfAborted()
  return reference.transport === "docker"
    ? await findRemote(reference, options)
    : await findImage(reference, options.maxLayerBytes ?? MAX_LAYER_BYTES)
}

/**
 * Finds an image and opens it.
 *
 * @throws OciError.
 */
export async function openOciImage(reference: ImageReference, options: OciOptions = {}): Promise<OciImage> {
  return await openImage(nameOf(reference), await find(reference, options), options)
}

async function openSink(reference: ImageReference, options: RegistrySinkOptions): Promise<ImageSink> {
  if (reference.transport === "docker") return await openRegistrySink(reference, options)
  if (reference.transport === "oci") return await LayoutSink.open(reference.path, options.signal)
  throw new OciError("ERR_OCI_UNSUPPORTED", `${reference.path}: images are not added to archives`)
}

/** How an image is copied, and what of it. */
export interface CopyImageOptions extends CopyOptions {
  /** Of an index everything. Default: `platforms`, or else the image for this machine. */
  readonly all?: boolean | undefined
  readonly source?: RegistryOptions | undefined
  readonly target?: RegistrySinkOptions | undefined
}

/**
 * Copies an image from where one name leads to where another does. What it is copied to may have other images, which stay.
 *
 * @returns What it is there.
 * @throws OciError; BuildError `ERR_BUILD_OUTPUT`; the signal's reason.
 */
export async function copyOciImage(
  from: ImageReference,
  to: ImageReference,
  options: CopyImageOptions = {},
): Promise<Descriptor> {
  const { source, target, signal, onNotice, all = false } = options
  const shared = { signal, onNotice }
  const found = await find(from, { ...source, ...shared })
  await using store = found.store
  if ("saved" in found)
    throw new OciError(
      "ERR_OCI_UNSUPPORTED",
      `${store.name}: layers without digests, which docker save writes`,
    )
  const { tag: name, digest } =
    to.transport === "docker" ? to : { tag: to.selection.name, digest: to.selection.digest }
  const { descriptor } = found
  if (to.transport !== "docker" && to.selection.index !== undefined)
    throw new OciError(
      "ERR_OCI_REFERENCE",
      `${to.path}: an image is added by name, not in a place of the index`,
    )
  let platforms = all ? undefined : options.platforms
  if (!all && platforms === undefined && isIndexType(descriptor.mediaType)) {
    platforms = [platformOf(process.arch)]
    onNotice?.(`${store.name} has images for several platforms: the one for this machine is copied`)
  }
  await using sink = await openSink(to, { ...target, ...shared })
  return await copyImage({ store, descriptor }, sink, name, { ...options, platforms, digest })
}
