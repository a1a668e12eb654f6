// A SIF as registries keep it, under names that begin with `oras://`: a manifest with one blob, the file itself, and for several
// architectures an index of such manifests. Written as Apptainer does.
import { createHash } from "node:crypto"
import { OciError } from "../errors.ts"
import { parseJson } from "../json.ts"
import { parseDigest, type Digest } from "./digest.ts"
import {
  MAX_DOCUMENT,
  OCI_INDEX,
  OCI_MANIFEST,
  parseDocument,
  platformFits,
  platformOf,
  type Descriptor,
  type ImageManifest,
} from "./manifest.ts"
import type { Document } from "./sink.ts"

const layerType = "application/vnd.sylabs.sif.layer.v1.sif"
/** Singularity 3.6 and before could not spell. */
const layerTypes: readonly string[] = [layerType, "appliciation/vnd.sylabs.sif.layer.tar"]
export const TITLE = "org.opencontainers.image.title"

function descriptorOf(bytes: Buffer, mediaType: string): Descriptor {
  const hex = createHash("sha256").update(bytes).digest("hex")
  return {
    mediaType,
    digest: parseDigest(`sha256:${hex}`, mediaType),
    size: bytes.length,
    annotations: {},
    platform: undefined,
    data: undefined,
  }
}

/** The configuration says nothing, and has to be there. */
export function artifactConfig(): { readonly descriptor: Descriptor; readonly bytes: Buffer } {
  const bytes = Buffer.from("{}")
  return { descriptor: descriptorOf(bytes, "application/vnd.sylabs.sif.config.v1+json"), bytes }
}

/** What a manifest says of a SIF. */
export interface Artifact {
  readonly digest: Digest
  readonly size: number
  /** The file's name. */
  readonly title: string
  readonly annotations: Readonly<Record<string, string>>
}

export function artifactBlob({ digest, size }: Artifact): Descriptor {
  return { mediaType: layerType, digest, size, annotations: {}, platform: undefined, data: undefined }
}

/** The manifest, in the peers' order of keys. */
export function artifactManifest(artifact: Artifact): Document {
  const { mediaType, size, digest } = artifactConfig().descriptor
  const { annotations } = artifact
  const text = JSON.stringify({
    schemaVersion: 2,
    mediaType: OCI_MANIFEST,
    config: { mediaType, size, digest: digest.text },
    layers: [
      {
        mediaType: layerType,
        size: artifact.size,
        digest: artifact.digest.text,
        annotations: { [TITLE]: artifact.title },
      },
    ],
    ...(Object.keys(annotations).length === 0 ? {} : { annotations }),
  })
  const bytes = Buffer.from(text)
  return { descriptor: descriptorOf(bytes, OCI_MANIFEST), bytes }
}

/**
 * The SIF that a manifest names.
 *
 * @throws OciError `ERR_OCI_UNSUPPORTED` where it is something else.
 */
export function artifactOf({ config, layers }: ImageManifest, what: string): Descriptor {
  const [layer, ...others] = layers
  if (layer === undefined || others.length > 0 || !layerTypes.includes(layer.mediaType)) {
    const found =
      others.length > 0
        ? `${layers.length} layers`
        : (layer?.mediaType ?? `${config.mediaType} without layers`)
    throw new OciError("ERR_OCI_UNSUPPORTED", `${what}: no SIF, but ${found}`)
  }
  return layer
}

/**
 * An index with `manifest` for an architecture, and with what another index has for others, as it is there.
 *
 * @param architecture - As Go names it; its place in the other index is taken.
 * @throws OciError `ERR_OCI_FORMAT`, `ERR_OCI_UNSUPPORTED`, `ERR_OCI_LIMIT`.
 */
export function indexWith(
  other: Document | undefined,
  { descriptor }: Document,
  architecture: string,
  what: string,
): Document {
  const platform = platformOf(architecture)
  let kept: unknown[] = []
  let rest: Readonly<Record<string, unknown>> = {}
  if (other !== undefined) {
    const document = parseDocument(other.bytes, other.descriptor.mediaType, what)
    if (document.kind !== "index") throw new OciError("ERR_OCI_FORMAT", `${what}: it is no index`)
    const { manifests, ...others } = parseJson(other.bytes.toString("utf8")) as { manifests: unknown[] }
    rest = others
    kept = manifests.filter((_, i) => {
      const found = document.manifests[i]
      const isSame = found?.digest.text === descriptor.digest.text
      return !isSame && (found?.platform === undefined || !platformFits(found.platform, platform))
    })
  }
  const own = {
    mediaType: descriptor.mediaType,
    size: descriptor.size,
    digest: descriptor.digest.text,
    platform: { architecture: platform.architecture, os: platform.os },
  }
  const mediaType = other?.descriptor.mediaType ?? OCI_INDEX
  const bytes = Buffer.from(
    JSON.stringify({ schemaVersion: 2, mediaType, ...rest, manifests: [...kept, own] }),
  )
  if (bytes.length > MAX_DOCUMENT)
    throw new OciError("ERR_OCI_LIMIT", `${what}: an index of more than ${MAX_DOCUMENT} bytes`)
  return { descriptor: descriptorOf(bytes, mediaType), bytes }
}
