// What an image says of itself: platforms, layers, sizes.
import { OciError } from "../errors.ts"
import { parseJson } from "../json.ts"
import type { Bytes } from "../units.ts"
import type { CopySource } from "./copy.ts"
import { MAX_NESTING, readDocument } from "./image.ts"
import {
  isConfigType,
  isImageType,
  MAX_DOCUMENT_BYTES,
  parseConfig,
  parseDocument,
  type Descriptor,
  type ImageManifest,
  type Platform,
} from "./manifest.ts"

/** More of one image is not told. */
const MAX_MANIFESTS = 1000

/** A manifest, and for what it is. */
export interface DescribedManifest {
  readonly descriptor: Descriptor
  readonly bytes: Buffer
  readonly manifest: ImageManifest
  /** By the index, or else by the configuration; undefined for what is no image, as attestations are. */
  readonly platform: Platform | undefined
  /** Of a container image. */
  readonly config: Buffer | undefined
}

/** What of an image is there. */
export interface DescribedImage {
  readonly manifests: readonly DescribedManifest[]
  /** Of everything that it is made of. */
  readonly size: Bytes
  /** Named by the index and not there: somebody has copied some platforms only. */
  readonly absent: number
}

/** @throws OciError. */
export async function describeImage({ store, descriptor }: CopySource): Promise<DescribedImage> {
  const manifests: DescribedManifest[] = []
  const sizes = new Map<string, Bytes>()
  let absent = 0
  let held: Bytes = 0
  const read = async (one: Descriptor, what: string): Promise<Buffer> => {
    if (held + one.size > MAX_DOCUMENT_BYTES)
      throw new OciError("ERR_OCI_LIMIT", `${what}: more than ${MAX_DOCUMENT_BYTES} bytes to be told of`)
    const bytes = await readDocument(store, one, what)
    held += bytes.length
    return bytes
  }
  const visit = async (one: Descriptor, depth: number): Promise<void> => {
    const what = `${store.name}: ${one.digest.text}`
    if (sizes.has(one.digest.text) || !isImageType(one.mediaType)) return
    if (depth > MAX_NESTING || sizes.size > MAX_MANIFESTS)
      throw new OciError("ERR_OCI_LIMIT", `${what}: more manifests, or deeper, than are told of`)
    let bytes: Buffer
    try {
      bytes = await read(one, what)
    } catch (error) {
      if (depth === 0 || !(error instanceof OciError && error.code === "ERR_OCI_NOT_FOUND")) throw error
      absent++
      return
    }
    sizes.set(one.digest.text, bytes.length)
    const document = parseDocument(bytes, one.mediaType, what)
    if (document.kind === "index") {
      for (const below of document.manifests) await visit(below, depth + 1)
      return
    }
    for (const { digest, size } of [document.config, ...document.layers]) sizes.set(digest.text, size)
    const isImage = isConfigType(document.config)
    const config = isImage ? await read(document.config, what) : undefined
    const platform = one.platform ?? (config && parseConfig(config, what).platform)
    const known = platform?.os === "unknown" ? undefined : platform
    manifests.push({ descriptor: one, bytes, manifest: document, platform: known, config })
  }
  await visit(descriptor, 0)
  return { manifests, size: [...sizes.values()].reduce((sum, size) => sum + size, 0), absent }
}

/** When a configuration says that the image was made. */
export function createdOf(config: Buffer | undefined): string | undefined {
  if (config === undefined) return undefined
  const { created } = parseJson(config.toString("utf8")) as { readonly created?: unknown }
  return typeof created === "string" ? created : undefined
}
