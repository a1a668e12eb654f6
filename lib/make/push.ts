// Sends a SIF to a registry, as the peers do.
import * as is from "../arguments.ts"
import { createHash } from "node:crypto"
import path from "node:path"
import { unsignedPolicy } from "../container/image.ts"
import { hasSignature, type UnsignedPolicy } from "../container/signature.ts"
import { OciError, SignatureError } from "../errors.ts"
import { parseDigest, type Digest } from "../oci/digest.ts"
import { readDocument } from "../oci/image.ts"
import { parseDocument, platformOf } from "../oci/manifest.ts"
import { inParallel } from "../oci/parallel.ts"
import { parseOrasName, type RegistryReference } from "../oci/reference.ts"
import {
  artifactBlob,
  artifactConfig,
  artifactManifest,
  artifactOf,
  indexWith,
  type Artifact,
} from "../oci/sif-artifact.ts"
import { VerifiedBlob, type Document, type ImageSink } from "../oci/sink.ts"
import { openRegistrySink, type RegistrySinkOptions } from "../registry/sink.ts"
import { findRemote } from "../registry/store.ts"
import { architectureName } from "../sif/names.ts"
import { openSif, type SifImage } from "../sif/open.ts"
import { clientRows } from "../source/layer-options.ts"
import type { Bytes } from "../units.ts"

/** What {@link push} sends, and where to. */
export interface PushOptions {
  /** A SIF. */
  readonly image: string
  /** `oras://HOST/REPOSITORY[:TAG]`. */
  readonly reference: string
  /**
   * Add it to the images for other architectures that have this name. Without it that is done where the name has such an index; any
   * other image that has it loses it.
   */
  readonly index?: boolean | undefined
  /** Of the manifest, such as `org.opencontainers.image.description`. */
  readonly annotations?: Readonly<Record<string, string | undefined>> | undefined
  /** What to do about an image that carries no signature. Default `warn`. */
  readonly unsigned?: UnsignedPolicy | undefined
  readonly registry?: Omit<RegistrySinkOptions, "signal" | "onNotice"> | undefined
  readonly signal?: AbortSignal | undefined
  /** Hears what the user should know, in a sentence. */
  readonly onNotice?: ((text: string) => void) | undefined
  /** Bytes that are there, of how many. */
  readonly onProgress?: ((bytes: Bytes, total: Bytes) => void) | undefined
}

/** What {@link push} sent. */
export interface PushResult {
  /** Of the image's manifest. */
  readonly digest: string
  /** Of the index that it was added to. */
  readonly indexDigest: string | undefined
  /** Of the file. */
  readonly imageDigest: string
  readonly size: Bytes
  /** As Go names it. */
  readonly architecture: string
}

const checkOptions = is.shape<PushOptions>({
  image: is.required(is.path),
  reference: is.required(is.path),
  index: is.flag,
  annotations: is.variables,
  unsigned: unsignedPolicy,
  registry: is.shape<NonNullable<PushOptions["registry"]>>({ ...clientRows, chunkSize: is.number(1) }),
  signal: is.abortSignal,
  onNotice: is.callback,
  onProgress: is.callback,
})

const PIECE: Bytes = 4 << 20
/** Of the year 9999: what comes later has no place in RFC 3339. */
const LAST_SECOND = 253_402_300_799
/** An index has one for each architecture. */
const MAX_IN_INDEX = 64
/** Others may change the same index; a registry has no way to forbid it. */
const MAX_TRIES = 5

async function* pieces(image: SifImage, signal: AbortSignal | undefined): AsyncGenerator<Buffer> {
  const { reader } = image
  for (let at = 0; at < reader.size; at += PIECE) {
    signal?.throwIfAborted()
    yield await reader.read(at, PIECE)
  }
}

async function digestOf(image: SifImage, signal: AbortSignal | undefined): Promise<Digest> {
  const hash = createHash("sha256")
  for await (const piece of pieces(image, signal)) hash.update(piece)
  return parseDigest(`sha256:${hash.digest("hex")}`, image.path)
}

/** @throws SignatureError `ERR_UNSIGNED`. */
async function checkSigned(image: SifImage, { unsigned = "warn", onNotice }: PushOptions): Promise<void> {
  if (unsigned === "allow" || (await hasSignature(image, image.primary()))) return
  const text = `${image.path} carries no signature: who pulls it cannot know who made or changed it`
  if (unsigned === "error") throw new SignatureError("ERR_UNSIGNED", text, { path: image.path })
  onNotice?.(text)
}

/** The index of SIFs that has this name now; undefined: something else has it, or nothing. */
async function findIndex(reference: RegistryReference, options: PushOptions): Promise<Document | undefined> {
  const { registry, signal } = options
  try {
    const found = await findRemote(reference, { ...registry, signal, disableCache: true })
    return await indexOfArtifacts(found, reference)
  } catch (error) {
    // Nothing, or what is no such index, whatever it is.
    const others: readonly unknown[] = [
      "ERR_OCI_NOT_FOUND",
      "ERR_OCI_UNSUPPORTED",
      "ERR_OCI_LIMIT",
      "ERR_OCI_FORMAT",
    ]
    if (error instanceof OciError && others.includes(error.code)) return undefined
    throw error
  }
}

async function indexOfArtifacts(
  found: Awaited<ReturnType<typeof findRemote>>,
  reference: RegistryReference,
): Promise<Document | undefined> {
  await using store = found.store
  const { descriptor } = found
  const bytes = await readDocument(store, descriptor, reference.text)
  const document = parseDocument(bytes, descriptor.mediaType, reference.text)
  if (document.kind !== "index") return undefined
  if (document.manifests.length > MAX_IN_INDEX)
    throw new OciError("ERR_OCI_LIMIT", `${reference.text}: an index of more than ${MAX_IN_INDEX} images`)
  for (const one of document.manifests) {
    const what = `${reference.text}: ${one.digest.text}`
    const manifest = parseDocument(await readDocument(store, one, what), one.mediaType, what)
    if (manifest.kind === "index") return undefined
    artifactOf(manifest, what)
  }
  return { descriptor, bytes }
}

/** Gives the name to the image, or to an index with it. */
async function finish(
  sink: ImageSink,
  manifest: Document,
  architecture: string,
  reference: RegistryReference,
  options: PushOptions,
): Promise<Digest | undefined> {
  let index = await findIndex(reference, options)
  if (index === undefined && options.index !== true) {
    await sink.finish(manifest, reference.tag)
    return undefined
  }
  await sink.put(manifest)
  for (let tries = 1; ; tries++) {
    const next = indexWith(index, manifest, architecture, reference.text)
    await sink.finish(next, reference.tag)
    index = await findIndex(reference, options)
    const document = index && parseDocument(index.bytes, index.descriptor.mediaType, reference.text)
    const there = document?.kind === "index" ? document.manifests : []
    if (there.some(({ digest }) => digest.text === manifest.descriptor.digest.text))
      return next.descriptor.digest
    if (tries === MAX_TRIES)
      throw new OciError(
        "ERR_OCI_REGISTRY",
        `${reference.text}: the image was added to its index ${tries} times, and others took it out again`,
      )
  }
}

/**
 * Sends a SIF to a registry. What is there is not sent again.
 *
 * @throws OciError; SifError of what is no SIF; SignatureError `ERR_UNSIGNED`; the signal's reason.
 */
export async function push(given: PushOptions): Promise<PushResult> {
  const options = checkOptions(given, "options")
  const { signal, onNotice, onProgress } = options
  const reference = parseOrasName(options.reference)
  if (reference.digest !== undefined)
    throw new OciError(
      "ERR_OCI_REFERENCE",
      `${options.reference}: an image is pushed by a tag; its digest follows from it`,
    )
  await using image = await openSif(options.image)
  const architecture = platformOf(architectureName(image.primary().partition.arch)).architecture
  await checkSigned(image, options)
  const created = image.header.created
  const artifact: Artifact = {
    digest: await digestOf(image, signal),
    size: image.reader.size,
    title: path.basename(options.image),
    annotations: {
      ...(created > 0 && created <= LAST_SECOND
        ? { "org.opencontainers.image.created": `${new Date(created * 1000).toISOString().slice(0, 19)}Z` }
        : {}),
      ...Object.fromEntries(
        Object.entries(options.annotations ?? {}).flatMap(([name, value]) =>
          value === undefined ? [] : [[name, value]],
        ),
      ),
    },
  }
  const manifest = artifactManifest(artifact)
  await using sink = await openRegistrySink(reference, { ...options.registry, signal, onNotice })
  const { descriptor, bytes } = artifactConfig()
  const config = new VerifiedBlob(descriptor, image.path, () => [bytes])
  const blob = artifactBlob(artifact)
  // What is sent again is no progress.
  let most: Bytes = 0
  async function* counted(): AsyncGenerator<Buffer> {
    let have: Bytes = 0
    for await (const piece of pieces(image, signal)) {
      yield piece
      have += piece.length
      if (have > most) onProgress?.((most = have), blob.size)
    }
  }
  await inParallel([new VerifiedBlob(blob, image.path, counted), config], async (one) => {
    signal?.throwIfAborted()
    if (!(await sink.has(one.descriptor))) await sink.write(one)
  })
  onProgress?.(blob.size, blob.size)
  const index = await finish(sink, manifest, architecture, reference, options)
  return {
    digest: manifest.descriptor.digest.text,
    indexDigest: index?.text,
    imageDigest: artifact.digest.text,
    size: blob.size,
    architecture,
  }
}
