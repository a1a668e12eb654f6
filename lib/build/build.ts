// Builds an image in one pass: tree → squashfs → cipher → SIF. Nothing plain is written anywhere on the way.
import { randomFillSync } from "node:crypto"
import { constants } from "node:os"
import {
  credentialVariable,
  hasExplicitCredentials,
  resolveRecipients,
  wipeCredentials,
  type Credential,
  type CredentialOptions,
} from "../container/credentials.ts"
import { DEFAULT_KDF_LIMITS } from "../device/luks-header.ts"
import {
  FIPS_PASSPHRASE_KDF,
  formatLuks,
  LUKS_HEADER_SIZE,
  PASSPHRASE_KDF,
  RANDOM_SECRET_KDF,
} from "../device/luks.ts"
import { BuildError, KeyError } from "../errors.ts"
import { encodeCryptoMessage } from "../key/crypto-message.ts"
import { wrapSecret } from "../key/rsa-oaep.ts"
import type { NativeCipher, NativeKdf } from "../native/binding.ts"
import { loadAddon } from "../native/load.ts"
import {
  cryptoMessageExtra,
  DataType,
  DEFAULT_SLOTS,
  FileSystem,
  partitionExtra,
  PartitionType,
  type SifObject,
} from "../sif/format.ts"
import { architectureDigits } from "../sif/names.ts"
import { PARTITION_ALIGNMENT, SifLayout, writeFully } from "../sif/write.ts"
import type { Bytes } from "../units.ts"
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

/** How a passphrase is stretched; an RSA key's secret is random and needs none. */
export interface PassphraseKdf {
  /** `pbkdf2` where only FIPS-approved functions may be used. */
  readonly type: "argon2id" | "pbkdf2"
  /** Of Argon2, KiB; default 256 MiB, the same wherever an image is built. */
  readonly memory?: number
  /** Passes of Argon2 (default 4) or iterations of PBKDF2 (default 2,000,000). */
  readonly iterations?: number
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

const RSA_SECRET_SIZE: Bytes = 64 // what the peers use as LUKS key file
const BLOCK_SIZE: Bytes = 128 * 1024
const PAGE: Bytes = 4096
const NIL_UUID = "00000000-0000-0000-0000-000000000000"

/** What the native side calls a failure of reading the source; everything else is about the output. */
const readingCalls: ReadonlySet<string> = new Set(
  "open fstat stat opendir readdir readlink listxattr getxattr lseek pread".split(" "),
)

function checkCompression(compression: Compression): void {
  const [least, most] = compressionLevels[compression.name]
  const { level } = compression
  if (level !== undefined && !(Number.isInteger(level) && level >= least && level <= most))
    throw new RangeError(`the level of ${compression.name} is ${least} to ${most}, not ${level}`)
}

async function recipientsOf(options: BuildOptions): Promise<Credential[]> {
  const { credentials = {}, encrypt = false, onNotice = () => undefined } = options
  if (!encrypt && !hasExplicitCredentials(credentials)) {
    const variable = credentialVariable(credentials)
    if (variable !== undefined)
      onNotice(`${variable} is set, but encryption was not asked for: the image will be plain`)
    return []
  }
  const recipients = await resolveRecipients(credentials, onNotice)
  if (recipients.length === 0)
    throw new KeyError("ERR_KEY_MISSING", "an encrypted image was asked for and no key was given")
  const messages = recipients.filter(({ kind }) => kind === "rsa").length
  if (messages >= DEFAULT_SLOTS)
    throw new BuildError("ERR_BUILD_OUTPUT", `an image holds ${DEFAULT_SLOTS - 1} RSA recipients, not ${messages}`)
  return recipients
}

/**
 * Least and most of what {@link PassphraseKdf} takes: libcryptsetup refuses less, and more is refused when the image is
 * opened, as two passphrases together must stay below the limits that hold there.
 */
export const passphraseKdfLimits: Readonly<Record<"memory" | "argon2id" | "pbkdf2", readonly [number, number]>> = {
  memory: [32, DEFAULT_KDF_LIMITS.memory],
  argon2id: [4, 1000],
  pbkdf2: [1000, 3_500_000],
}

function kdfFor(wanted: PassphraseKdf = { type: "argon2id" }): NativeKdf {
  const preset = wanted.type === "pbkdf2" ? FIPS_PASSPHRASE_KDF : PASSPHRASE_KDF
  const check = (what: string, value: number, [least, most]: readonly [number, number]): number => {
    if (!Number.isInteger(value) || value < least || value > most)
      throw new RangeError(`the ${what} of ${wanted.type} is ${least} to ${most}, not ${value}`)
    return value
  }
  if (wanted.type === "pbkdf2" && wanted.memory !== undefined) throw new RangeError("pbkdf2 takes no memory")
  const kdf = {
    ...preset,
    iterations: check("number of iterations", wanted.iterations ?? preset.iterations, passphraseKdfLimits[wanted.type]),
    memory: wanted.memory === undefined ? preset.memory : check("memory in KiB", wanted.memory, passphraseKdfLimits.memory),
  }
  const most = DEFAULT_KDF_LIMITS.work / 2
  if (kdf.memory * kdf.iterations > most)
    throw new RangeError(`memory times passes of argon2id is at most ${most} KiB, not ${kdf.memory * kdf.iterations}`)
  return kdf
}

/** A header and key for these recipients, and the messages that carry the secret to the RSA keys among them. */
async function formatFor(
  recipients: readonly Credential[],
  passphraseKdf: NativeKdf,
): Promise<{
  readonly header: Buffer
  readonly volumeKey: Buffer
  readonly messages: readonly Buffer[]
}> {
  const rsa = recipients.flatMap((recipient) => (recipient.kind === "rsa" ? [recipient.key] : []))
  const passphrases = recipients.flatMap((recipient) =>
    recipient.kind === "passphrase" ? [recipient.passphrase.bytes] : [],
  )
  const secret = Buffer.alloc(RSA_SECRET_SIZE)
  try {
    randomFillSync(secret)
    const messages = rsa.map((key) => encodeCryptoMessage(wrapSecret(key, secret)))
    const keyslots = [
      ...(rsa.length === 0 ? [] : [{ secret, kdf: RANDOM_SECRET_KDF }]),
      ...passphrases.map((passphrase) => ({ secret: passphrase, kdf: passphraseKdf })),
    ]
    return { ...(await formatLuks({ keyslots })), messages }
  } finally {
    secret.fill(0)
  }
}

/** Writes what is not zero; the rest becomes holes. */
async function writeSparse(
  write: (bytes: Uint8Array, position: Bytes) => Promise<void>,
  bytes: Buffer,
  position: Bytes,
): Promise<void> {
  const empty = Buffer.alloc(PAGE)
  for (let at = 0; at < bytes.length; at += PAGE) {
    const page = bytes.subarray(at, at + PAGE)
    if (!page.equals(empty.subarray(0, page.length))) await write(page, position + at)
  }
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
  const write = async (bytes: Uint8Array, position: Bytes): Promise<void> => {
    try {
      await writeFully(output.file, bytes, position)
    } catch (cause) {
      throw asOutputError(output.target, cause)
    }
  }
  for (const object of metadataToKeep(options, source, encrypted)) {
    const data = await source.read(object)
    await write(data, layout.next())
    layout.add({ type: object.type, name: object.name, extra: object.extra }, data.length)
  }
  const start = layout.next(PARTITION_ALIGNMENT)
  const extra = partitionExtra({
    fileSystem: encrypted ? FileSystem.encryptedSquashfs : FileSystem.squashfs,
    type: PartitionType.primarySystem,
    arch: architecture,
  })
  let written: Written
  let messages: readonly Buffer[] = []
  if (encrypted) {
    const formatted = await formatFor(recipients, kdfFor(options.passphraseKdf))
    try {
      messages = formatted.messages
      await writeSparse(write, formatted.header, start)
      written = await writeTree(options, source, output, start + LUKS_HEADER_SIZE, {
        type: "xts",
        volumeKey: formatted.volumeKey,
        sectorSize: 4096,
        ivTweak: 0,
      })
    } finally {
      formatted.volumeKey.fill(0)
    }
  } else written = await writeTree(options, source, output, start, undefined)
  const partitionSize = written.size + (encrypted ? LUKS_HEADER_SIZE : 0)
  const partition = layout.add({ type: DataType.partition, extra }, partitionSize, PARTITION_ALIGNMENT)
  for (const message of messages) {
    await write(message, layout.next())
    layout.add(
      { type: DataType.cryptoMessage, link: { to: "object", id: partition }, extra: cryptoMessageExtra() },
      message.length,
    )
  }
  await write(layout.serialize(architecture), 0)
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
  kdfFor(options.passphraseKdf)
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
