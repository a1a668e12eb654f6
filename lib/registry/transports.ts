// What the name of an image stands for, wherever it lies.
import { OciError } from "../errors.ts"
import { copyImage, type CopyOptions } from "../oci/copy.ts"
import { MAX_LAYER_BYTES, openImage, type ImageOptions, type OciImage } from "../oci/image.ts"
import { LayoutSink } from "../oci/layout-sink.ts"
import { findImage, type FoundImage } from "../oci/layout.ts"
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

/**
 * Copies an image from where one name leads to where another does, as it is. What it is copied to may have other images, which stay.
 *
 * @throws OciError; BuildError `ERR_BUILD_OUTPUT`; the signal's reason.
 */
export async function copyOciImage(
  from: ImageReference,
  to: ImageReference,
  options: CopyOptions & { readonly source?: RegistryOptions; readonly target?: RegistrySinkOptions } = {},
): Promise<void> {
  const { source, target, signal } = options
  const shared = signal === undefined ? {} : { signal }
  const found = await find(from, { ...source, ...shared })
  await using store = found.store
  if ("saved" in found)
    throw new OciError(
      "ERR_OCI_UNSUPPORTED",
      `${store.name}: layers without digests, which docker save writes`,
    )
  const { tag: name, digest } =
    to.transport === "docker" ? to : { tag: to.selection.name, digest: to.selection.digest }
  const { text } = found.descriptor.digest
  if (digest !== undefined && digest.text !== text)
    throw new OciError("ERR_OCI_DIGEST", `${store.name}: it is ${text} and cannot become ${digest.text}`)
  if (to.transport !== "docker" && to.selection.index !== undefined)
    throw new OciError(
      "ERR_OCI_REFERENCE",
      `${to.path}: an image is added by name, not in a place of the index`,
    )
  await using sink = await openSink(to, { ...target, ...shared })
  await copyImage({ store, descriptor: found.descriptor }, sink, name, options)
}
