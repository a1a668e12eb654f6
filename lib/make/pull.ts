// Brings a SIF from a registry. The file has its name when all of it is there, is what the registry's manifest says, and is
// signed by whom it has to be.
import * as is from "../arguments.ts"
import { createHash } from "node:crypto"
import type { FileHandle } from "node:fs/promises"
import path from "node:path"
import type { OpenOptions } from "../container/image.ts"
import { Cache, cacheFolder } from "../oci/cache.ts"
import { parseDigest, type Digest } from "../oci/digest.ts"
import { MAX_LAYER_BYTES } from "../oci/image.ts"
import { TITLE } from "../oci/sif-artifact.ts"
import { streamBlob } from "../oci/store.ts"
import { OciError } from "../errors.ts"
import { isWebName, WebFile } from "../registry/web-file.ts"
import { Output } from "../file/output.ts"
import { named, readSif } from "../sif/open.ts"
import { FileReader } from "../sif/source.ts"
import { requireVerified, verifyOptions, verifySif } from "../signing/verify.ts"
import { layerRows, type LayerOptions } from "../source/layer-options.ts"
import { RemoteSif } from "../source/remote-sif.ts"
import type { Bytes } from "../units.ts"

/** What {@link pull} brings, and where to. */
export interface PullOptions extends Pick<LayerOptions, "oci" | "architecture" | "signal" | "onNotice"> {
  /**
   * `oras://HOST/REPOSITORY[:TAG|@DIGEST]`, or an address, `https://…` or `http://…`. What is there is anybody's to change, so for an
   * address `digest` or `verify` is needed.
   */
  readonly reference: string
  /** The file to write. */
  readonly output: string
  /** Replace it if it is there. */
  readonly force?: boolean | undefined
  /** Of the file: `sha256:…`. What is another one never gets its name. */
  readonly digest?: string | undefined
  /** By whom it must be signed; what is not never gets its name. */
  readonly verify?: NonNullable<OpenOptions["verify"]>
  /** Bytes that are here, of how many. */
  readonly onProgress?: ((bytes: Bytes, total: Bytes) => void) | undefined
}

/** What {@link pull} fetched. */
export interface PullResult {
  readonly output: string
  /** Of the manifest: what the image can be named by from now on. undefined: it has none, it came from an address. */
  readonly digest: string | undefined
  /** Of the file. */
  readonly imageDigest: string
  readonly size: Bytes
  /** The name of the file that was pushed. */
  readonly title: string | undefined
}

const checkOptions = is.shape<PullOptions>({
  reference: is.required(is.path),
  output: is.required(is.path),
  force: is.flag,
  digest: is.text,
  verify: is.notUndefined(verifyOptions),
  architecture: is.text,
  signal: is.abortSignal,
  onNotice: is.callback,
  onProgress: is.callback,
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

/** Brings a file from an address. */
async function pullWebFile(
  options: PullOptions,
  digest: Digest | undefined,
  target: Output,
): Promise<PullResult> {
  const { reference, output, oci = {}, signal, onNotice, onProgress } = options
  if (digest === undefined && options.verify === undefined)
    throw new OciError(
      "ERR_OCI_REFERENCE",
      `${reference}: an address says nothing of what is there: a digest of the file or a signer is needed`,
    )
  using file = await WebFile.find(reference, { ...oci, signal, onNotice })
  const { size, name } = file
  const limit = oci.maxLayerBytes ?? MAX_LAYER_BYTES
  if (size > limit)
    throw new OciError("ERR_OCI_LIMIT", `${name}: it has ${size} bytes, more than ${limit}`, {
      limit: "layers",
    })
  const hash = createHash("sha256")
  const write = async (pieces: AsyncIterable<Buffer>, onRead?: typeof onProgress): Promise<void> => {
    let have: Bytes = 0
    for await (const piece of pieces) {
      signal?.throwIfAborted()
      hash.update(piece)
      await target.write(piece, have)
      have += piece.length
      onRead?.(have, size)
    }
  }
  const through = async (wanted: Digest): Promise<boolean> => {
    const cache = new Cache(oci.cacheFolder ?? cacheFolder(oci.environment))
    const copy = (from: FileHandle): Promise<void> => write(streamBlob({ fd: from.fd, offset: 0, size }))
    const fill = (partial: FileHandle): Promise<void> => file.fill(partial, wanted, onProgress)
    // An address with a query may be a credential itself: what is behind it is not kept for everybody, only until it is whole.
    if (new URL(reference).search !== "")
      return await cache.usePrivate(
        wanted,
        async (partial) => {
          await fill(partial)
          await copy(partial)
        },
        signal,
      )
    const kept = await cache.make(wanted, size, fill, signal)
    try {
      await copy(kept)
      return true
    } finally {
      await kept.close()
    }
  }
  if (digest === undefined || oci.disableCache === true || !(await through(digest)))
    await write(file.read(), onProgress)
  const found = `sha256:${hash.digest("hex")}`
  if (digest !== undefined && found !== digest.text)
    throw new OciError("ERR_OCI_DIGEST", `${name}: it is ${found} and not ${digest.text}`)
  await check(target.file, size, name, options)
  await target.publish(options.force === true)
  const title = path.basename(new URL(name).pathname)
  return { output, digest: undefined, imageDigest: found, size, title: title === "" ? undefined : title }
}

/**
 * Brings a SIF from a registry, or from an address. What an earlier try has brought is not fetched again, unless it came from an
 * address without a digest.
 *
 * @throws OciError; BuildError `ERR_BUILD_EXISTS`, `ERR_BUILD_OUTPUT`; SifError; SignatureError with `verify`; the signal's reason.
 */
export async function pull(given: PullOptions): Promise<PullResult> {
  const options = checkOptions(given, "options")
  const { output, force = false, signal, onNotice, onProgress } = options
  signal?.throwIfAborted()
  const wanted = options.digest === undefined ? undefined : parseDigest(options.digest, "digest")
  if (wanted !== undefined && wanted.algorithm !== "sha256")
    throw new OciError("ERR_OCI_UNSUPPORTED", `${wanted.text}: files are compared by sha256`)
  await using target = await Output.create(output, force)
  if (isWebName(options.reference)) return await pullWebFile(options, wanted, target)
  const { oci, architecture } = options
  await using image = await RemoteSif.find(options.reference, {
    oci: { ...oci, ...(onProgress === undefined ? {} : { onFetch: onProgress }) },
    ...{ architecture, signal, onNotice },
  })
  const { blob, digest, reference } = image
  if (wanted !== undefined && wanted.text !== blob.digest.text)
    throw new OciError(
      "ERR_OCI_DIGEST",
      `${reference.text}: it is ${blob.digest.text} and not ${wanted.text}`,
    )
  await image.save(target)
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
