// Makes overlays: file systems that keep what a payload writes over an image.
import * as is from "../arguments.ts"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { mkdirSync, mkdtempSync, rmdirSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import {
  credentialList,
  Credentials,
  wipeCredentials,
  type CredentialSource,
} from "../encryption/credentials.ts"
import { encryptionOf, overlaysOf } from "../encryption/partition.ts"
import { BuildError, EnvironmentError, RunError } from "../errors.ts"
import { loadAddon } from "../native/load.ts"
import { findProgram } from "../runtime/program.ts"
import { scrubbedEnvironment } from "../runtime/starter-protocol.ts"
import { appendFile, withExtra } from "../file/sif-objects.ts"
import { DataType, FileSystem, partitionExtra, PartitionType, type SifPartition } from "../sif/format.ts"
import { architectureDigits } from "../sif/names.ts"
import { openSif, type SifImage } from "../sif/open.ts"
import { PARTITION_ALIGNMENT, SifLayout } from "../sif/write.ts"
import type { Bytes } from "../units.ts"
import { passphraseKdf, prepareEncryption, recipientsOf, type PassphraseKdf } from "../encryption/encrypt.ts"
import { Output } from "../file/output.ts"
import { descriptorPath } from "../oci/temporary-file.ts"

/** How {@link createOverlay} makes an overlay. */
export interface OverlayCreateOptions {
  /** The file to write, which must not exist; or a plain image, which gets an overlay of its own. */
  readonly output: string
  /** Of the file system: a multiple of 1 MiB, at least 64 MiB, which is the default. */
  readonly size?: Bytes | undefined
  /** Take room on the disk only when it is written; not with `encrypt`. */
  readonly sparse?: boolean | undefined
  /** Folders that it has from the start, such as mount points: absolute. */
  readonly folders?: readonly string[] | undefined
  /** Without recipients it is an error then. */
  readonly encrypt?: boolean | undefined
  /** Whoever shall be able to open it, which is encrypted then. Root only: nobody else could write it. */
  readonly recipients?: readonly CredentialSource[]
  readonly passphraseKdf?: PassphraseKdf | undefined
  readonly signal?: AbortSignal | undefined
}

const checkOptions = is.shape<OverlayCreateOptions>({
  output: is.required(is.path),
  size: is.whole(0),
  sparse: is.flag,
  folders: is.list(is.path),
  encrypt: is.flag,
  recipients: is.notUndefined(credentialList),
  passphraseKdf,
  signal: is.abortSignal,
})

/** The least that the peers make. */
export const MIN_OVERLAY_SIZE: Bytes = 64 << 20
const MEBIBYTE: Bytes = 1 << 20
const DESCRIPTOR = 3

/**
 * Runs mke2fs on an open file; `upper` and `work` are there, and belong to 0: in the user namespace of an ordinary user's
 * container that is he himself.
 */
async function makeFileSystem(
  fd: number,
  folders: readonly string[],
  signal: AbortSignal | undefined,
): Promise<void> {
  const program = findProgram("mkfs.ext3", "it makes the file system of an overlay (package e2fsprogs)")
  const staging = mkdtempSync(path.join(tmpdir(), "sifcrypt-overlay-"))
  const made = new Set([staging])
  const make = (folder: string): void => {
    if (made.has(folder)) return
    make(path.dirname(folder))
    mkdirSync(folder, { mode: 0o755 })
    made.add(folder)
  }
  try {
    for (const folder of ["upper", "work", ...folders.map((name) => path.join("upper", name))])
      make(path.resolve(staging, folder))
    const own =
      process.geteuid?.() === 0
        ? [program]
        : [
            findProgram("unshare", "it lets files belong to root (package util-linux)"),
            "--user",
            "--map-root-user",
            program,
          ]
    const [first = program, ...rest] = own
    const child = spawn(
      first,
      [...rest, "-q", "-F", "-m", "0", "-b", "4096", "-d", staging, `/proc/self/fd/${DESCRIPTOR}`],
      { stdio: ["ignore", "ignore", "pipe", fd], env: scrubbedEnvironment, signal, killSignal: "SIGKILL" },
    )
    let complaint = ""
    // Its status says how it went.
    child.stderr?.on("error", () => undefined)
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      complaint += text
    })
    const [status] = (await once(child, "close")) as [number | null]
    if (status !== 0)
      throw new BuildError("ERR_BUILD_OUTPUT", `mkfs.ext3: ${complaint.trim().slice(0, 500) || "it failed"}`)
  } catch (cause) {
    signal?.throwIfAborted()
    throw cause
  } finally {
    // None has to be opened for it, which may be what cannot be done.
    for (const folder of [...made].reverse()) rmdirSync(folder)
  }
}

function isEncryptedOverlay({ encrypt = false, recipients }: OverlayCreateOptions): boolean {
  return encrypt || recipients !== undefined
}

function checked(options: OverlayCreateOptions): {
  readonly size: Bytes
  readonly folders: readonly string[]
} {
  const { size = MIN_OVERLAY_SIZE, folders = [], sparse = false } = options
  const encrypt = isEncryptedOverlay(options)
  if (!Number.isSafeInteger(size) || size < MIN_OVERLAY_SIZE || size % MEBIBYTE !== 0)
    throw new RangeError(`an overlay has whole MiB, at least ${MIN_OVERLAY_SIZE / MEBIBYTE} of them`)
  for (const folder of folders)
    if (!path.isAbsolute(folder) || path.posix.normalize(folder).startsWith("/.."))
      throw new RangeError(`${folder} is not an absolute path`)
  if (encrypt && sparse)
    throw new RangeError("an encrypted overlay is not sparse: holes would show what is in use")
  if (encrypt && process.geteuid?.() !== 0)
    throw new EnvironmentError(
      "ERR_ENV_NO_PRIVILEGE",
      "an encrypted overlay is written through the kernel's dm-crypt, which needs root; " +
        "an ordinary user's changes can be kept in memory only (--writable-tmpfs)",
    )
  return { size, folders: folders.map((folder) => path.posix.normalize(folder)) }
}

async function createPlain(
  options: OverlayCreateOptions,
  size: Bytes,
  folders: readonly string[],
): Promise<void> {
  await using output = await Output.create(options.output, false, 0o644)
  if (options.sparse !== true) {
    const zeros = Buffer.alloc(MEBIBYTE)
    for (let at = 0; at < size; at += MEBIBYTE) {
      options.signal?.throwIfAborted()
      await output.write(zeros, at)
    }
  }
  await output.truncate(size)
  await makeFileSystem(output.file.fd, folders, options.signal)
  options.signal?.throwIfAborted()
  await output.publish(false)
}

/** The root file system of a plain image that has no overlay yet. */
function rootToExtend(image: SifImage, file: string): SifPartition {
  const root = image.primary()
  if (encryptionOf(root) !== undefined)
    throw RunError.at(
      file,
      "ERR_RUN_PLAIN_OVERLAY",
      "what a payload writes would be in the clear there, and the image is encrypted",
    )
  const [overlay] = overlaysOf(image.objects, root)
  if (overlay !== undefined)
    throw RunError.at(file, "ERR_RUN_OVERLAY", `it has an overlay already, object ${overlay.id}`)
  return root
}

/** undefined: the file is no image, or not there. */
async function imageToExtend(file: string): Promise<SifPartition | undefined> {
  const opened = await openSif(file).catch(() => undefined)
  if (opened === undefined) return undefined
  await using image = opened
  return rootToExtend(image, file)
}

/** In an image, whose payloads write to it with `writable`. */
async function createInside(
  { output: file, signal, sparse = false }: OverlayCreateOptions,
  size: Bytes,
  folders: readonly string[],
  { group, partition: { arch } }: SifPartition,
): Promise<void> {
  if (sparse)
    throw new RunError(
      "ERR_RUN_OPTION",
      `--sparse: an overlay inside of an image has its room from the start`,
    )
  // Without a name, and never given one.
  await using empty = await Output.create(file, true, 0o600)
  await empty.truncate(size)
  await makeFileSystem(empty.file.fd, folders, signal)
  const partition = { fileSystem: FileSystem.ext3, type: PartitionType.overlay, arch }
  const object = withExtra({ type: DataType.partition, group, partition })
  // Somebody else may have done the same meanwhile.
  await appendFile(file, object, descriptorPath(empty), { signal }, (image) => {
    rootToExtend(image, file)
  })
}

/** A SIF image whose one partition is an overlay: LUKS2 around an ext3 file system that holds nothing yet. */
async function createEncrypted(
  options: OverlayCreateOptions,
  size: Bytes,
  folders: readonly string[],
): Promise<void> {
  const { signal } = options
  using credentials = new Credentials(options.recipients)
  const recipients = await recipientsOf({ recipients: credentials, signal })
  try {
    const architecture = architectureDigits(process.arch)
    if (architecture === undefined)
      throw new RangeError(`SIF has no code for the architecture ${process.arch}`)
    await using output = await Output.create(options.output, false, 0o600)
    // Without a name, and never given one. There is nothing in it yet.
    await using plain = await Output.create(options.output, false, 0o600)
    await plain.truncate(size)
    await makeFileSystem(plain.file.fd, folders, signal)
    using encryption = await prepareEncryption(recipients, options.passphraseKdf)
    const layout = new SifLayout(Math.floor(Date.now() / 1000))
    const start = layout.next(PARTITION_ALIGNMENT)
    await output.writeSparse(encryption.header, start)
    const written = await loadAddon().buildTree(
      {
        source: { bytes: { fd: plain.file.fd, offset: 0, size, cipher: undefined } },
        fd: output.file.fd,
        offset: start + encryption.header.length,
        cipher: encryption.cipher,
        compression: "zstd",
        level: -1,
        blockSize: 4096,
        threads: 0,
        owner: undefined,
        sourceDateEpoch: -1,
        exclude: [],
      },
      () => signal?.aborted !== true,
    )
    const extra = partitionExtra({
      fileSystem: FileSystem.raw,
      type: PartitionType.overlay,
      arch: architecture,
    })
    const total = encryption.header.length + written.size
    const partition = layout.add({ type: DataType.partition, extra }, total, PARTITION_ALIGNMENT)
    for (const message of encryption.messages) {
      await output.write(message.data, layout.next())
      const link = { to: "object", id: partition } as const
      const { name, extra: about } = message
      layout.add({ type: DataType.cryptoMessage, name, link, extra: about }, message.data.length)
    }
    await output.truncate(layout.size)
    await output.write(layout.serialize(architecture), 0)
    signal?.throwIfAborted()
    await output.publish(false)
  } finally {
    wipeCredentials(recipients)
  }
}

/**
 * Makes an empty overlay.
 *
 * @throws RunError `ERR_RUN_OVERLAY` where an image has one, `ERR_RUN_PLAIN_OVERLAY` where it is encrypted; SifError
 * `ERR_SIF_SIGNED`; BuildError `ERR_BUILD_EXISTS`, `ERR_BUILD_OUTPUT`; EnvironmentError `ERR_ENV_NO_PRIVILEGE` for an encrypted one of an
 * ordinary user, `ERR_ENV_NO_PROGRAM`; KeyError; RangeError; the signal's reason.
 */
export async function createOverlay(given: OverlayCreateOptions): Promise<void> {
  const options = checkOptions(given, "options")
  const { size, folders } = checked(options)
  options.signal?.throwIfAborted()
  if (isEncryptedOverlay(options)) {
    await createEncrypted(options, size, folders)
    return
  }
  const image = await imageToExtend(options.output)
  await (image === undefined
    ? createPlain(options, size, folders)
    : createInside(options, size, folders, image))
}
