// What the name of an image stands for, wherever it lies.
import { MAX_LAYER_BYTES, openImage, type ImageOptions, type OciImage } from "../oci/image.ts"
import { findImage, type FoundImage } from "../oci/layout.ts"
import type { ImageReference } from "../oci/reference.ts"
import { findRemote, type RegistryOptions } from "./store.ts"

/** Where images come from, and which one it is to be. */
export interface OciOptions extends RegistryOptions, ImageOptions {
  readonly signal?: AbortSignal
  readonly onNotice?: (text: string) => void
}

/**
 * Finds an image.
 *
 * @throws OciError.
 */
export async function findAny(reference: ImageReference, options: OciOptions = {}): Promise<FoundImage> {
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
  const name = reference.transport === "docker" ? reference.text : reference.path
  return await openImage(name, await findAny(reference, options), options)
}
