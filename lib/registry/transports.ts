// What the name of an image stands for, wherever it lies.
import os from "node:os"
import { madeOf } from "../disposal.ts"
import { OciError } from "../errors.ts"
import { Output } from "../file/output.ts"
import { ArchiveSink, type ArchiveOutput } from "../oci/archive-sink.ts"
import { copyImage, type CopyOptions, type CopySource } from "../oci/copy.ts"
import { findStored, openStoreSink } from "../oci/image-store.ts"
import { MAX_LAYER_BYTES, openImage, type ImageOptions, type OciImage } from "../oci/image.ts"
import { LayoutSink } from "../oci/layout-sink.ts"
import { findImage, type FoundImage } from "../oci/layout.ts"
import { isIndexType, platformOf, type Descriptor } from "../oci/manifest.ts"
import { storeName, type ImageReference } from "../oci/reference.ts"
import { copySource } from "../oci/saved-source.ts"
import type { ImageSink } from "../oci/sink.ts"
import { spoolArchive } from "../oci/spool.ts"
import { descriptorPath, type TemporaryFile } from "../oci/temporary-file.ts"
import type { Bytes } from "../units.ts"
import { openRegistrySink, type RegistrySinkOptions } from "./sink.ts"
import { findRemote, type RegistryOptions } from "./store.ts"

/** Where images come from, and which one it is to be. */
export interface OciOptions extends RegistryOptions, ImageOptions {
  readonly signal?: AbortSignal | undefined
  /** Hears what somebody should know. */
  readonly onNotice?: ((text: string) => void) | undefined
}

function nameOf(reference: ImageReference): string {
  return reference.transport === "docker" ? reference.text : reference.path
}

async function find(reference: ImageReference, options: OciOptions): Promise<FoundImage> {
  const { signal, maxLayerBytes: limit = MAX_LAYER_BYTES } = options
  signal?.throwIfAborted()
  if (reference.transport === "docker") return await findRemote(reference, options)
  if (reference.transport === "store") return await findStored(reference, limit, signal)
  return await findImage(reference, limit)
}

/**
 * Finds an image to copy it or to tell of it. Of an archive of docker save it is one that has a manifest.
 *
 * @returns Closed by who gets it.
 * @throws OciError.
 */
export async function findOciImage(
  reference: ImageReference,
  options: OciOptions,
): Promise<CopySource & AsyncDisposable> {
  const found = await find(reference, options)
  return await madeOf(found.store, async () => {
    const source = await copySource(found)
    return { ...source, [Symbol.asyncDispose]: () => source.store[Symbol.asyncDispose]() }
  })
}

/**
 * Finds an image and opens it.
 *
 * @throws OciError.
 */
export async function openOciImage(reference: ImageReference, options: OciOptions = {}): Promise<OciImage> {
  return await openImage(nameOf(reference), await find(reference, options), options)
}

/** Where archives are written: a file, that has its name when it is complete. */
async function fileOutput(target: string, replace: boolean): Promise<ArchiveOutput> {
  const output = await Output.create(target, replace, 0o666)
  let size: Bytes = 0
  return {
    name: target,
    async append(bytes: Buffer): Promise<void> {
      await output.write(bytes, size)
      size += bytes.length
    },
    publish: () => output.publish(replace),
    [Symbol.asyncDispose]: () => output[Symbol.asyncDispose](),
  }
}

/** How what images are copied to is opened. */
export interface SinkOptions extends RegistrySinkOptions {
  /** Replace an archive that is there. */
  readonly replace?: boolean | undefined
}

/**
 * Opens what images are added to. An archive is a new one.
 *
 * @throws OciError; BuildError `ERR_BUILD_OUTPUT`, `ERR_BUILD_EXISTS`.
 */
export async function openSink(reference: ImageReference, options: SinkOptions): Promise<ImageSink> {
  const { signal, replace = false } = options
  if (reference.transport === "docker") return await openRegistrySink(reference, options)
  const { transport, path } = reference
  if (transport === "store") return await openStoreSink(path, signal)
  if (transport === "oci") return await LayoutSink.open(path, signal)
  return new ArchiveSink(await fileOutput(path, replace), transport)
}

/** What of an image is copied, and how. */
export interface CopyImageOptions extends Omit<CopyOptions, "digest"> {
  /** Of an index everything. Default: `platforms`, or else the image for this machine. */
  readonly all?: boolean | undefined
}

/**
 * Copies what was found into what is open, by a name there.
 *
 * @param digest - What it has to be there.
 * @returns What it is there.
 * @throws OciError; BuildError `ERR_BUILD_OUTPUT`; the signal's reason.
 */
export async function copyFound(
  source: CopySource,
  sink: ImageSink,
  name: string | undefined,
  options: CopyImageOptions & Pick<CopyOptions, "digest"> = {},
): Promise<Descriptor> {
  const { all = false, onNotice } = options
  let platforms = all ? undefined : options.platforms
  if (!all && platforms === undefined && isIndexType(source.descriptor.mediaType)) {
    platforms = [platformOf(process.arch)]
    onNotice?.(`${source.store.name} has images for several platforms: the one for this machine is copied`)
  }
  return await copyImage(source, sink, name, { ...options, platforms })
}

/**
 * Copies an image from where one name leads to where another does. What it is copied to may have other images, which stay; an archive is
 * a new one.
 *
 * @returns What it is there.
 * @throws OciError; BuildError `ERR_BUILD_OUTPUT`, `ERR_BUILD_EXISTS`; the signal's reason.
 */
export async function copyOciImage(
  from: ImageReference,
  to: ImageReference,
  options: CopyImageOptions & {
    readonly source?: (RegistryOptions & Pick<ImageOptions, "maxLayerBytes">) | undefined
    readonly target?: SinkOptions | undefined
  } = {},
): Promise<Descriptor> {
  const { source, target, signal, onNotice } = options
  const shared = { signal, onNotice }
  await using spooled = await spoolSource(from, { ...source, ...shared })
  const reference = spooled === undefined ? from : { ...from, at: descriptorPath(spooled) }
  await using found = await findOciImage(reference, { ...source, ...shared })
  const { tag, digest } =
    to.transport === "docker" ? to : { tag: to.selection.name, digest: to.selection.digest }
  if (to.transport !== "docker" && to.selection.index !== undefined)
    throw new OciError(
      "ERR_OCI_REFERENCE",
      `${to.path}: an image is added by name, not in a place of the index`,
    )
  const isUnnamed = to.transport === "store" && tag === undefined && digest === undefined
  const name = isUnnamed ? storeNameOf(from) : tag
  await using sink = await openSink(to, { ...target, ...shared })
  const made = await copyFound(found, sink, name, {
    ...{ ...options, digest, maxLayerBytes: source?.maxLayerBytes },
  })
  await sink.complete?.()
  return made
}

/** All of it is read, so that what is compressed is worth unpacking once. */
async function spoolSource(from: ImageReference, options: OciOptions): Promise<TemporaryFile | undefined> {
  const { signal, tmpFolder: folder = os.tmpdir(), maxLayerBytes: limit = MAX_LAYER_BYTES } = options
  if (from.transport !== "oci-archive" && from.transport !== "docker-archive") return undefined
  return await spoolArchive(from.path, from.path, { folder, limit, signal })
}

/** What an image is called in the store unless it is said. */
function storeNameOf(from: ImageReference): string {
  const named = from.transport === "docker" ? from.tag : from.selection.name
  const name = named && storeName(from.transport === "docker" ? from.text : named)
  if (name !== undefined && name !== "") return name
  throw new OciError(
    "ERR_OCI_REFERENCE",
    `${nameOf(from)}: it has no name that it could have in the store, too`,
  )
}
