// Brings a SIF from a registry. The file has its name when all of it is there, is what the registry's manifest says, and is
// signed by whom it has to be.
import {
  abortSignal,
  callback,
  flag,
  notUndefined,
  path as filePath,
  required,
  shape,
  text,
} from "../arguments.ts"
import type { FileHandle } from "node:fs/promises"
import type { OpenOptions } from "../container/image.ts"
import { OciError } from "../errors.ts"
import { MAX_LAYER_BYTES, resolveManifest } from "../oci/image.ts"
import { platformOf } from "../oci/manifest.ts"
import { parseOrasName } from "../oci/reference.ts"
import { artifactOf, TITLE } from "../oci/sif-artifact.ts"
import { VerifiedBlob } from "../oci/sink.ts"
import { Output } from "../file/output.ts"
import { findRemote } from "../registry/store.ts"
import { named, readSif } from "../sif/open.ts"
import { FileReader } from "../sif/source.ts"
import { requireVerified, verifyOptions, verifySif } from "../signing/verify.ts"
import { layerRows, type LayerOptions } from "../source/layer-options.ts"
import type { Bytes } from "../units.ts"

/** What {@link pull} brings, and where to. */
export interface PullOptions extends Pick<LayerOptions, "oci" | "architecture" | "signal" | "onNotice"> {
  /** `oras://HOST/REPOSITORY[:TAG|@DIGEST]`. */
  readonly reference: string
  /** The file to write. */
  readonly output: string
  /** Replace it if it is there. */
  readonly force?: boolean | undefined
  /** By whom it must be signed; what is not never gets its name. */
  readonly verify?: NonNullable<OpenOptions["verify"]>
  /** Bytes that are here, of how many. */
  readonly onProgress?: ((bytes: Bytes, total: Bytes) => void) | undefined
}

export interface PullResult {
  readonly output: string
  /** Of the manifest: what the image can be named by from now on. */
  readonly digest: string
  /** Of the file. */
  readonly imageDigest: string
  readonly size: Bytes
  /** The name of the file that was pushed. */
  readonly title: string | undefined
}

const checkOptions = shape<PullOptions>({
  reference: required(filePath),
  output: required(filePath),
  force: flag,
  verify: notUndefined(verifyOptions),
  architecture: text,
  signal: abortSignal,
  onNotice: callback,
  onProgress: callback,
  ...layerRows,
})

/** @throws SifError of what is no SIF; SignatureError of one that is not signed as it has to be. */
async function check(
  file: FileHandle,
  size: Bytes,
  name: string,
  { verify, signal }: PullOptions,
): Promise<void> {
  try {
    await using image = await readSif(FileReader.of(file, size), name)
    if (verify !== undefined) requireVerified(await verifySif(image, { ...verify, signal }))
  } catch (error) {
    throw named(error, name)
  }
}

/**
 * Brings a SIF from a registry. What an earlier try has brought of an image that is everybody's is not fetched again.
 *
 * @throws OciError; BuildError `ERR_BUILD_EXISTS`, `ERR_BUILD_OUTPUT`; SifError; SignatureError with `verify`; the signal's reason.
 */
export async function pull(given: PullOptions): Promise<PullResult> {
  const options = checkOptions(given, "options")
  const { output, force = false, signal, onNotice, onProgress } = options
  const reference = parseOrasName(options.reference)
  signal?.throwIfAborted()
  await using target = await Output.create(output, force)
  const found = await findRemote(reference, {
    ...options.oci,
    signal,
    onNotice,
    onFetch: onProgress,
  })
  await using store = found.store
  const wanted = platformOf(options.architecture ?? process.arch)
  const { manifest, descriptor } = await resolveManifest(store, found.descriptor, wanted)
  const blob = artifactOf(manifest, reference.text)
  const limit = options.oci?.maxLayerBytes ?? MAX_LAYER_BYTES
  if (blob.size > limit)
    throw new OciError("ERR_OCI_LIMIT", `${reference.text}: it has ${blob.size} bytes, more than ${limit}`)
  const isKept = (await store.keep?.(blob)) === true
  let have: Bytes = 0
  for await (const piece of new VerifiedBlob(blob, reference.text, () => store.stream(blob)).read()) {
    signal?.throwIfAborted()
    await target.write(piece, have)
    have += piece.length
    if (!isKept) onProgress?.(have, blob.size)
  }
  await check(target.file, blob.size, reference.text, options)
  await target.publish(force)
  return {
    output,
    digest: descriptor.digest.text,
    imageDigest: blob.digest.text,
    size: blob.size,
    title: blob.annotations[TITLE],
  }
}
