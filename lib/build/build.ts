// Builds an image in one pass: tree → squashfs → cipher → SIF. Nothing plain is written anywhere on the way.
import { constants } from "node:os"
import { wipeCredentials, type Credential, type CredentialOptions } from "../container/credentials.ts"
import { BuildError } from "../errors.ts"
import type { NativeCipher } from "../native/binding.ts"
import { loadAddon } from "../native/load.ts"
import {
  DataType,
  FileSystem,
  partitionExtra,
  PartitionType,
  type SifObject,
} from "../sif/format.ts"
import { architectureDigits } from "../sif/names.ts"
import { PARTITION_ALIGNMENT, SifLayout } from "../sif/write.ts"
import type { Bytes } from "../units.ts"
import { passphraseKdfFor, prepareEncryption, recipientsOf, type PassphraseKdf } from "./encryption.ts"
import { asOutputError, checkTarget, Output } from "./output.ts"
import { openSource, type BuildSource } from "./source.ts"

/** The compressors of squashfs that are written; each is read as well. */
export type CompressionName = "zstd" | "gzip" | "lz4" | "xz"

/** How blocks of the squashfs are compressed. */
export interface Compression {
  readonly name: CompressionName
  /** The compressor's own scale; default: what is fast at nearly the best size. */
  readonly level?: number
}

/** The least and the highest level of each compressor. */
export const compressionLevels: Readonly<Record<CompressionName, readonly [number, number]>> = {
  zstd: [1, 22],
  gzip: [1, 12],
  lz4: [1, 12],
  xz: [0, 9],
}

/** What {@link build} makes of what. */
export interface BuildOptions {
  /** The image to write. */
  readonly output: string
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
  /** Default Argon2id with fixed costs. */
  readonly passphraseKdf?: PassphraseKdf
  /** Leave out of the image whom its RSA recipients are: name and public key. */
  readonly anonymous?: boolean
  /** Replace an existing output, once the new one is complete. */
  readonly force?: boolean
  /** Default zstd. */
  readonly compression?: Compression
  /** Default: true for root; everybody else's files become root's, as with the peers. */
  readonly keepOwner?: boolean
  /** Keep definition, labels and so on of a source image readable beside the encrypted partition. */
  readonly publicMetadata?: boolean
  /** Go's or Node's name; default: the source's, or this machine's. */
  readonly architecture?: string
  /** Seconds since 1970 that no time in the image exceeds: makes a plain build reproducible. */
  readonly sourceDateEpoch?: number
  /** Stops the build; nothing is left of it. */
  readonly signal?: AbortSignal
  /** Bytes of input so far, about ten times a second. */
  readonly onProgress?: (bytes: Bytes) => void
  /** Things worth knowing that are no errors. */
  readonly onNotice?: (text: string) => void
}

/** What {@link build} made. */
export interface BuildResult {
  /** The image, as it was named. */
  readonly output: string
  readonly encrypted: boolean
  /** Of the image. */
  readonly size: Bytes
  /** Of the content of all files in the tree. */
  readonly inputBytes: Bytes
  /** Names in the tree, its root included. */
  readonly entries: number
  /** From the call to the finished image. */
  readonly milliseconds: number
}

const BLOCK_SIZE: Bytes = 128 * 1024
const NIL_UUID = "00000000-0000-0000-0000-000000000000"

/** What the native side calls a failure of reading the source; everything else is about the output. */
const readingCalls: ReadonlySet<string> = new Set(
  "open fstat stat opendir readdir readlink listxattr getxattr lseek pread gocryptfs_read".split(" "),
)

function checkCompression(compression: Compression): void {
  const [least, most] = compressionLevels[compression.name]
  const { level } = compression
  if (level !== undefined && !(Number.isInteger(level) && level >= least && level <= most))
    throw new RangeError(`the level of ${compression.name} is ${least} to ${most}, not ${level}`)
}

interface Written {
  readonly size: Bytes
  readonly inputBytes: Bytes
  readonly entries: number
}

async function writeTree(
  options: BuildOptions,
  source: BuildSource,
  output: Output,
  offset: Bytes,
  cipher: NativeCipher | undefined,
): Promise<Written> {
  const { signal, onProgress, compression = { name: "zstd" } } = options
  const { tree } = source
  let progressError: { readonly error: unknown } | undefined
  try {
    return await loadAddon().buildTree(
      {
        source: tree,
        fd: output.file.fd,
        offset,
        cipher,
        compression: compression.name,
        level: compression.level ?? -1,
        blockSize: BLOCK_SIZE,
        threads: 0,
        squashOwner: !(options.keepOwner ?? process.geteuid?.() === 0),
        sourceDateEpoch: options.sourceDateEpoch ?? -1,
        exclude: "directory" in tree ? await output.within(tree.directory) : [],
      },
      (bytes) => {
        try {
          onProgress?.(bytes)
        } catch (error) {
          progressError = { error }
          return false
        }
        return signal?.aborted !== true
      },
    )
  } catch (cause) {
    signal?.throwIfAborted()
    if (progressError !== undefined) throw progressError.error
    const errno = cause instanceof Error && "errno" in cause ? -Number(cause.errno) : 0
    const { EBADMSG, EOVERFLOW } = constants.errno
    const message = cause instanceof Error ? cause.message : String(cause)
    const reading = cause instanceof Error && "syscall" in cause && readingCalls.has(String(cause.syscall))
    if (errno === EBADMSG || errno === EOVERFLOW || reading)
      throw new BuildError("ERR_BUILD_SOURCE", `cannot read the source ${options.source}: ${message}`, {
        path: options.source,
        cause,
      })
    throw asOutputError(output.target, cause)
  }
}

/** Which objects of a source image go along. */
function metadataToKeep(options: BuildOptions, source: BuildSource, encrypted: boolean): readonly SifObject[] {
  if (!encrypted || options.publicMetadata === true) return source.metadata
  const left = source.metadata.length
  if (left > 0)
    options.onNotice?.(
      `${left} metadata ${left === 1 ? "object" : "objects"} of ${options.source} would be readable beside the ` +
        "encrypted partition and are left out",
    )
  return []
}

function primaryExtra(fileSystem: number, arch: string): Buffer {
  return partitionExtra({ fileSystem, type: PartitionType.primarySystem, arch })
}

async function writeImage(
  options: BuildOptions,
  source: BuildSource,
  output: Output,
  recipients: readonly Credential[],
): Promise<Written> {
  const encrypted = recipients.length > 0
  const architecture =
    options.architecture === undefined
      ? (source.architecture ?? architectureDigits(process.arch))
      : architectureDigits(options.architecture)
  if (architecture === undefined)
    throw new RangeError(`SIF has no code for the architecture ${options.architecture ?? process.arch}`)
  const time = options.sourceDateEpoch ?? Math.floor(Date.now() / 1000)
  const layout = new SifLayout(time, options.sourceDateEpoch === undefined || encrypted ? undefined : NIL_UUID)
  for (const object of metadataToKeep(options, source, encrypted)) {
    const data = await source.read(object)
    await output.write(data, layout.next())
    layout.add({ type: object.type, name: object.name, extra: object.extra }, data.length)
  }
  const start = layout.next(PARTITION_ALIGNMENT)
  let written: Written
  if (encrypted) {
    using encryption = await prepareEncryption(recipients, options.passphraseKdf, options.anonymous)
    await output.writeSparse(encryption.header, start)
    written = await writeTree(options, source, output, start + encryption.header.length, encryption.cipher)
    const size = encryption.header.length + written.size
    const extra = primaryExtra(encryption.fileSystem, architecture)
    const partition = layout.add({ type: DataType.partition, extra }, size, PARTITION_ALIGNMENT)
    for (const message of encryption.messages) {
      await output.write(message.data, layout.next())
      layout.add(
        {
          type: DataType.cryptoMessage,
          name: message.name,
          link: { to: "object", id: partition },
          extra: message.extra,
        },
        message.data.length,
      )
    }
  } else {
    written = await writeTree(options, source, output, start, undefined)
    const extra = primaryExtra(FileSystem.squashfs, architecture)
    layout.add({ type: DataType.partition, extra }, written.size, PARTITION_ALIGNMENT)
  }
  await output.write(layout.serialize(architecture), 0)
  return { ...written, size: layout.size }
}

/**
 * Builds a SIF image. Needs no privilege, no loop device, no device-mapper and no temporary file; the output appears
 * under its name when it is complete, and not at all otherwise.
 *
 * @throws BuildError `ERR_BUILD_SOURCE`, `ERR_BUILD_EXISTS`, `ERR_BUILD_OUTPUT`; KeyError before any work when a key is
 * missing or unusable; SifError and LuksError of a source image; EnvironmentError; the signal's reason.
 */
export async function build(options: BuildOptions): Promise<BuildResult> {
  const started = performance.now()
  const { signal, force = false, compression = { name: "zstd" } } = options
  signal?.throwIfAborted()
  checkCompression(compression)
  passphraseKdfFor(options.passphraseKdf)
  await checkTarget(options.output, force)
  const recipients = await recipientsOf(options)
  try {
    await using source = await openSource(options.source, options.sourceCredentials ?? options.credentials ?? {})
    if (options.compression !== undefined && "squashfs" in source.tree)
      options.onNotice?.(`${options.source} holds a squashfs, which is copied as it is: compression has no effect`)
    signal?.throwIfAborted()
    await using output = await Output.create(options.output, force)
    const { size, inputBytes, entries } = await writeImage(options, source, output, recipients)
    signal?.throwIfAborted()
    await output.publish(force)
    return {
      output: options.output,
      encrypted: recipients.length > 0,
      size,
      inputBytes,
      entries,
      milliseconds: Math.round(performance.now() - started),
    }
  } finally {
    wipeCredentials(recipients)
  }
}
