// Builds an image of a folder, a squashfs or another image.
import { gatherCredentials, wipeCredentials, type CredentialOptions } from "../container/credentials.ts"
import { checkStretching, recipientsOf } from "./encryption.ts"
import { checkTarget } from "./output.ts"
import { openSource } from "./source.ts"
import {
  makeImage,
  type BuildResult,
  type Compression,
  type CompressionName,
  type EncryptedOutputOptions,
  type TreeOptions,
} from "./write-image.ts"

/** The least and the highest level of each compressor. */
export const compressionLevels: Readonly<Record<CompressionName, readonly [number, number]>> = {
  zstd: [1, 22],
  gzip: [1, 12],
  lz4: [1, 12],
  xz: [0, 9],
}

/** What {@link build} makes of what. */
export interface BuildOptions extends EncryptedOutputOptions, TreeOptions {
  /** A folder, a squashfs file, or another SIF image. */
  readonly source: string
  /** Whoever shall be able to open the image: every RSA key and passphrase. They also open an encrypted source. */
  readonly credentials?: CredentialOptions
  /** Opens an encrypted source, where that takes other keys than the output. */
  readonly sourceCredentials?: CredentialOptions
  /**
   * Encrypt, with what the environment in `credentials` names if nothing else is given. Explicit credentials encrypt
   * without this; the environment alone never does.
   */
  readonly encrypt?: boolean
}

function checkCompression(compression: Compression): void {
  const [least, most] = compressionLevels[compression.name]
  const { level } = compression
  if (level !== undefined && !(Number.isInteger(level) && level >= least && level <= most))
    throw new RangeError(`the level of ${compression.name} is ${least} to ${most}, not ${level}`)
}

/**
 * Builds a SIF image. Needs no privilege, no loop device, no device-mapper and no temporary file; the output appears
 * under its name when it is complete, and not at all otherwise. Of a source image every other object is kept.
 *
 * @throws BuildError `ERR_BUILD_SOURCE`, `ERR_BUILD_EXISTS`, `ERR_BUILD_OUTPUT`; KeyError before any work when a key is
 * missing or unusable, GocryptfsError `ERR_GOCRYPTFS_RECIPIENTS` when the format cannot have those recipients; SifError,
 * LuksError, GocryptfsError and TreeError of a source image; EnvironmentError; the signal's reason.
 */
export async function build(options: BuildOptions): Promise<BuildResult> {
  const started = performance.now()
  const { signal, force = false, compression = { name: "zstd" } } = options
  signal?.throwIfAborted()
  checkCompression(compression)
  checkStretching(options)
  await checkTarget(options.output, force)
  // They may be needed twice: for the source, and for whom the image is encrypted.
  using credentials = await gatherCredentials(options.credentials ?? {}, signal)
  const recipients = await recipientsOf({ ...options, credentials })
  try {
    await using source = await openSource(options.source, options.sourceCredentials ?? credentials)
    if (options.compression !== undefined && "squashfs" in source.tree)
      options.onNotice?.(`${options.source} holds a squashfs, which is copied as it is: compression has no effect`)
    const made = await makeImage(options, recipients, source)
    return { ...made, milliseconds: Math.round(performance.now() - started) }
  } finally {
    wipeCredentials(recipients)
  }
}
