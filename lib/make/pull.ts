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
import { TITLE } from "../oci/sif-artifact.ts"
import { Output } from "../file/output.ts"
import { named, readSif } from "../sif/open.ts"
import { FileReader } from "../sif/source.ts"
import { requireVerified, verifyOptions, verifySif } from "../signing/verify.ts"
import { layerRows, type LayerOptions } from "../source/layer-options.ts"
import { RemoteSif } from "../source/remote-sif.ts"
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
  signal?.throwIfAborted()
  await using target = await Output.create(output, force)
  const { oci, architecture } = options
  await using image = await RemoteSif.find(options.reference, {
    oci: { ...oci, ...(onProgress === undefined ? {} : { onFetch: onProgress }) },
    ...{ architecture, signal, onNotice },
  })
  const { blob, digest, reference } = image
  const isKept = (await image.keep()) !== undefined
  await image.write((piece, position) => target.write(piece, position), isKept ? undefined : onProgress)
  await check(target.file, blob.size, reference.text, options)
  await target.publish(force)
  return {
    output,
    digest: digest.text,
    imageDigest: blob.digest.text,
    size: blob.size,
    title: blob.annotations[TITLE],
  }
}
