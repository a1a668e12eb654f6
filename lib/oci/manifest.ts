// Indexes, manifests and configurations of images: hostile JSON, checked before anything in it is used.
import { OciError } from "../errors.ts"
import { isJsonObject, parseJson, type JsonObject } from "../json.ts"
import { ociLayerTypes, plainType } from "../ocicrypt/annotations.ts"
import type { Bytes } from "../units.ts"
import { parseDigest, type Digest } from "./digest.ts"

/** More is not read into memory. */
export const MAX_DOCUMENT: Bytes = 4 << 20
/** Of manifests, indexes and configurations of one image, or of one place. */
export const MAX_DOCUMENT_BYTES: Bytes = 64 << 20

/** What a document says of another or of a blob. */
export interface Descriptor {
  readonly mediaType: string
  readonly digest: Digest
  readonly size: Bytes
  readonly annotations: Readonly<Record<string, string>>
  readonly platform: Platform | undefined
  /** The content itself, where it is embedded. */
  readonly data: Buffer | undefined
  /** Where else it lies. */
  readonly urls?: readonly string[]
}

/** As Go names them. */
export interface Platform {
  readonly os: string
  readonly architecture: string
  readonly variant: string | undefined
}

export interface ImageIndex {
  readonly kind: "index"
  readonly manifests: readonly Descriptor[]
}
export interface ImageManifest {
  readonly kind: "manifest"
  readonly config: Descriptor
  readonly layers: readonly Descriptor[]
}

/** What of a configuration is used. */
export interface ImageConfig {
  readonly platform: Platform
  readonly diffIds: readonly Digest[]
  readonly env: readonly string[]
  readonly entrypoint: readonly string[]
  readonly cmd: readonly string[]
  readonly labels: Readonly<Record<string, string>>
  /** `config`, as JSON. */
  readonly raw: string
}

/** OCI's types of documents. */
export const OCI_INDEX = "application/vnd.oci.image.index.v1+json"
export const OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
export const OCI_CONFIG = "application/vnd.oci.image.config.v1+json"

const indexTypes: readonly string[] = [OCI_INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"]
const manifestTypes: readonly string[] = [
  OCI_MANIFEST,
  "application/vnd.docker.distribution.manifest.v2+json",
]
const schemaOne = /^application\/vnd\.docker\.distribution\.manifest\.v1\+(?:json|prettyjws)$/
const configTypes: ReadonlySet<string> = new Set([
  OCI_CONFIG,
  "application/vnd.docker.container.image.v1+json",
])
const layerType =
  /^application\/vnd\.(?:oci\.image\.layer(?:\.nondistributable)?\.v1\.tar(?:\+(?:gzip|zstd))?|docker\.image\.rootfs\.(?:foreign\.)?diff\.tar(?:\.gzip|\.zstd)?)$/

/** What a registry is asked for. */
export const acceptedTypes: readonly string[] = [...manifestTypes, ...indexTypes]

function malformed(what: string, reason: string): OciError {
  return new OciError("ERR_OCI_FORMAT", `${what}: ${reason}`)
}

function parseRecord(bytes: Buffer, what: string): JsonObject {
  let value: unknown
  try {
    value = parseJson(bytes.toString("utf8"))
  } catch (cause) {
    throw new OciError("ERR_OCI_FORMAT", `${what} is no JSON`, { cause })
  }
  if (!isJsonObject(value)) throw malformed(what, "it is no JSON object")
  return value
}

function texts(value: unknown, what: string): Record<string, string> {
  if (value === undefined || value === null) return {}
  if (!isJsonObject(value)) throw malformed(what, "not a map of texts")
  const entries = Object.entries(value)
  if (!entries.every((entry): entry is [string, string] => typeof entry[1] === "string"))
    throw malformed(what, "not a map of texts")
  return Object.fromEntries(entries)
}

function list(value: unknown, what: string): string[] {
  if (value === undefined || value === null) return []
  if (!Array.isArray(value) || !value.every((one): one is string => typeof one === "string"))
    throw malformed(what, "not a list of texts")
  return value
}

function parsePlatform(value: unknown): Platform | undefined {
  if (!isJsonObject(value)) return undefined
  const { os, architecture, variant } = value
  if (typeof os !== "string" || typeof architecture !== "string") return undefined
  return { os, architecture, variant: typeof variant === "string" && variant !== "" ? variant : undefined }
}

/** @throws OciError `ERR_OCI_FORMAT`. */
export function parseDescriptor(value: unknown, what: string): Descriptor {
  if (!isJsonObject(value)) throw malformed(what, "a descriptor is missing")
  const { mediaType, digest, size, annotations, platform, data, urls } = value
  if (typeof mediaType !== "string") throw malformed(what, "a descriptor without mediaType")
  if (typeof size !== "number" || !Number.isSafeInteger(size) || size < 0)
    throw malformed(what, `a size of ${String(size)}`)
  return {
    mediaType,
    digest: parseDigest(digest, what),
    size,
    annotations: texts(annotations, `${what}: annotations`),
    platform: parsePlatform(platform),
    data: typeof data === "string" ? Buffer.from(data, "base64") : undefined,
    urls: list(urls, `${what}: urls`),
  }
}

function descriptors(value: unknown, what: string): Descriptor[] {
  if (!Array.isArray(value)) throw malformed(what, "not a list")
  return value.map((one, i) => parseDescriptor(one, `${what}[${i}]`))
}

/**
 * Reads an index or a manifest. What it calls itself, what it was called by whoever named it, and what is in it have to
 * agree: the same bytes must not be one thing here and another elsewhere.
 *
 * @param type - From a descriptor or the Content-Type; undefined: nobody said.
 * @throws OciError `ERR_OCI_FORMAT`, `ERR_OCI_UNSUPPORTED`.
 */
export function parseDocument(
  bytes: Buffer,
  type: string | undefined,
  what: string,
): ImageIndex | ImageManifest {
  const json = parseRecord(bytes, what)
  const own = json["mediaType"]
  if (own !== undefined && typeof own !== "string") throw malformed(what, "mediaType is no text")
  if (json["schemaVersion"] === 1 || schemaOne.test(own ?? type ?? ""))
    throw new OciError(
      "ERR_OCI_UNSUPPORTED",
      `${what}: an image of schema 1, which has no digests of its layers`,
    )
  if (json["schemaVersion"] !== 2) throw malformed(what, "schemaVersion is not 2")
  if (own !== undefined && type !== undefined && own !== type)
    throw malformed(what, `it calls itself ${own} and was announced as ${type}`)
  if ("layers" in json && "manifests" in json) throw malformed(what, "both an index and a manifest")
  const called = own ?? type
  const kind = "manifests" in json ? "index" : "layers" in json || "config" in json ? "manifest" : undefined
  if (kind === undefined) throw malformed(what, "neither an index nor a manifest")
  if (called !== undefined) {
    const [wanted, other] = kind === "index" ? [indexTypes, manifestTypes] : [manifestTypes, indexTypes]
    if (other.includes(called))
      throw malformed(
        what,
        `it is announced as ${called} and holds ${kind === "index" ? "manifests" : "layers"}`,
      )
    if (!wanted.includes(called)) throw new OciError("ERR_OCI_UNSUPPORTED", `${what}: of type ${called}`)
  }
  if (kind === "index") return { kind, manifests: descriptors(json["manifests"], `${what}: manifests`) }
  return {
    kind,
    config: parseDescriptor(json["config"], `${what}: config`),
    layers: descriptors(json["layers"] ?? [], `${what}: layers`),
  }
}

/**
 * A document with others in the places of what it names: a manifest's layers, an index's manifests. Whatever else is in it, known or not,
 * stays as it is.
 *
 * @param changed - For each of them: undefined stays, null is left out.
 * @throws OciError `ERR_OCI_LIMIT`.
 */
export function withDescriptors(
  bytes: Buffer,
  changed: readonly (Descriptor | undefined | null)[],
  what: string,
): Buffer {
  const json = parseRecord(bytes, what)
  const key = "manifests" in json ? "manifests" : "layers"
  const listed = (json[key] as readonly JsonObject[]).flatMap((one, i) => {
    const next = changed[i]
    if (next === undefined) return [one]
    if (next === null) return []
    const { mediaType, digest, size } = next
    const annotations = Object.keys(next.annotations).length === 0 ? undefined : next.annotations
    // What is embedded, or lies elsewhere, has the old bytes.
    const stale = { data: undefined, urls: undefined }
    return [{ ...one, mediaType, digest: digest.text, size, annotations, ...stale }]
  })
  const made = Buffer.from(JSON.stringify({ ...json, [key]: listed }))
  if (made.length > MAX_DOCUMENT)
    throw new OciError("ERR_OCI_LIMIT", `${what}: it becomes larger than ${MAX_DOCUMENT} bytes`)
  return made
}

/** Docker's types, as OCI calls them. */
const ociTypes: Readonly<Record<string, string>> = {
  "application/vnd.docker.distribution.manifest.list.v2+json": OCI_INDEX,
  "application/vnd.docker.distribution.manifest.v2+json": OCI_MANIFEST,
  "application/vnd.docker.container.image.v1+json": OCI_CONFIG,
  "application/vnd.docker.image.rootfs.foreign.diff.tar":
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
  "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
  ...ociLayerTypes,
}

/** The type by which OCI calls what Docker has a type for; others stay. */
export function ociType(mediaType: string): string {
  return ociTypes[mediaType] ?? mediaType
}

/** A document in OCI's types: Docker has none for what is encrypted, and no bytes but these differ. */
export function ociDocument(bytes: Buffer, what: string): Buffer {
  const retyped = (value: unknown): unknown =>
    isJsonObject(value) && typeof value["mediaType"] === "string"
      ? { ...value, mediaType: ociType(value["mediaType"]) }
      : value
  const json = retyped(parseRecord(bytes, what)) as JsonObject
  const { config, layers } = json
  return Buffer.from(
    JSON.stringify({
      ...json,
      ...(config === undefined ? {} : { config: retyped(config) }),
      ...(Array.isArray(layers) ? { layers: layers.map(retyped) } : {}),
    }),
  )
}

/** Is it what says how an image runs? */
export function isConfigType({ mediaType }: Descriptor): boolean {
  return configTypes.has(mediaType)
}

export function isIndexType(mediaType: string): boolean {
  return indexTypes.includes(mediaType)
}

/** Could it be an image, or an index of some? What is neither is passed by. */
export function isImageType(mediaType: string): boolean {
  return acceptedTypes.includes(mediaType) || schemaOne.test(mediaType)
}

/** @throws OciError `ERR_OCI_UNSUPPORTED` for what is not made of layers that can be read. */
export function checkLayerTypes(manifest: ImageManifest, what: string): void {
  const { config, layers } = manifest
  if (!isConfigType(config))
    throw new OciError("ERR_OCI_UNSUPPORTED", `${what}: no container image, but ${config.mediaType}`)
  if (layers.length === 0) throw new OciError("ERR_OCI_UNSUPPORTED", `${what}: it has no layers`)
  const other = layers.find(({ mediaType }) => !layerType.test(plainType(mediaType)))
  if (other !== undefined)
    throw new OciError("ERR_OCI_UNSUPPORTED", `${what}: a layer of type ${other.mediaType}`)
}

/** @throws OciError `ERR_OCI_FORMAT`. */
export function parseConfig(bytes: Buffer, what: string): ImageConfig {
  const json = parseRecord(bytes, what)
  const config = json["config"] ?? {}
  if (!isJsonObject(config)) throw malformed(what, "config is no object")
  const rootfs = json["rootfs"]
  if (!isJsonObject(rootfs) || !Array.isArray(rootfs["diff_ids"])) throw malformed(what, "it has no diff_ids")
  const { architecture, os, variant } = json
  return {
    platform: {
      os: typeof os === "string" && os !== "" ? os : "linux",
      architecture: typeof architecture === "string" ? architecture : "",
      variant: typeof variant === "string" && variant !== "" ? variant : undefined,
    },
    diffIds: rootfs["diff_ids"].map((one, i) => parseDigest(one, `${what}: diff_ids[${i}]`)),
    env: list(config["Env"], `${what}: Env`),
    entrypoint: list(config["Entrypoint"], `${what}: Entrypoint`),
    cmd: list(config["Cmd"], `${what}: Cmd`),
    labels: texts(config["Labels"], `${what}: Labels`),
    raw: JSON.stringify(config),
  }
}

/** What people and Node call architectures, by Go's names. */
const aliases: Readonly<Record<string, readonly [string, string?]>> = {
  x64: ["amd64"],
  x86_64: ["amd64"],
  ia32: ["386"],
  i386: ["386"],
  aarch64: ["arm64"],
  arm64v8: ["arm64", "v8"],
  arm32v5: ["arm", "v5"],
  arm32v6: ["arm", "v6"],
  arm32v7: ["arm", "v7"],
  arm: ["arm", "v7"],
  ppc64: ["ppc64le"],
}

/** @param architecture - `amd64`, `arm64`, `arm32v7`, `arm/v6`; Node's names as well. */
export function platformOf(architecture: string): Platform {
  const [name = "", given] = architecture.split("/")
  const [go, variant] = aliases[name] ?? [name]
  return { os: "linux", architecture: go, variant: given ?? variant }
}

/**
 * The platform of a name: `linux/amd64`, `linux/arm/v7`, or an architecture as {@link platformOf} takes it.
 *
 * @throws OciError `ERR_OCI_REFERENCE`.
 */
export function parsePlatformName(name: string): Platform {
  if (!/^[a-z0-9_.-]+(?:\/[a-z0-9_.-]+){0,2}$/i.test(name))
    throw new OciError(
      "ERR_OCI_REFERENCE",
      `${JSON.stringify(name)} is no platform: it is OS/ARCHITECTURE[/VARIANT]`,
    )
  const [first = "", second, third] = name.split("/")
  const isArchitecture = second === undefined || (third === undefined && /^v\d+$/.test(second))
  if (isArchitecture) return platformOf(name)
  return { ...platformOf(third === undefined ? second : `${second}/${third}`), os: first }
}

/** As files in the cache are named for it: `amd64`, `armv7`. Default: this machine's. */
export function architectureOf(chosen: string = process.arch): string {
  const { architecture, variant = "" } = platformOf(chosen)
  return `${architecture}${variant}`
}

function variantFits(found: string | undefined, wanted: string | undefined, architecture: string): boolean {
  const assumed = architecture === "arm64" ? "v8" : architecture === "arm" ? "v7" : undefined
  return wanted === undefined || (found ?? assumed) === wanted
}

/** Does something for `found` run where `wanted` does? */
export function platformFits(found: Platform, wanted: Platform): boolean {
  return (
    found.os === wanted.os &&
    found.architecture === wanted.architecture &&
    variantFits(found.variant, wanted.variant, wanted.architecture)
  )
}

export function platformText({ os, architecture, variant }: Platform): string {
  return `${os}/${architecture}${variant === undefined ? "" : `/${variant}`}`
}
