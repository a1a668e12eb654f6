// Writes an image in one pass: tree → squashfs → cipher → SIF, with what a source image has beside its tree. Nothing
// plain is written anywhere on the way.
import * as is from "../arguments.ts"
import { randomBytes, randomFillSync } from "node:crypto"
import { constants } from "node:os"
import path from "node:path"
import type { Credential } from "../encryption/credentials.ts"
import { encodeTrailer, MAX_SEALED_SIZE, lengthFields, type ObjectToSeal } from "../encryption/sealed.ts"
import { madeOf } from "../disposal.ts"
import { BuildError, SifError } from "../errors.ts"
import { allocateSecret } from "../key/secret.ts"
import type { NativeBuild, NativeBuildCipher, NativeRange } from "../native/binding.ts"
import { loadAddon } from "../native/load.ts"
import { TemporaryFile } from "../oci/temporary-file.ts"
import { DataType, FileSystem, partitionExtra, PARTITION_FACTS, PartitionType } from "../sif/format.ts"
import { architectureDigits } from "../sif/names.ts"
import { PARTITION_ALIGNMENT, SifLayout } from "../sif/write.ts"
import type { Bytes, OnProgress } from "../units.ts"
import {
  encryptionFormat,
  passphraseKdf,
  loadEncryption,
  prepareEncryption,
  type PassphraseKdf,
} from "../encryption/encrypt.ts"
import type { EncryptionFormat } from "../encryption/encryption-format.ts"
import { choosePassengers, isReadable, objectText, type Passenger, type Passengers } from "./objects.ts"
import { asOutputError, Output } from "../file/output.ts"
import type { BuildSource, SourceImage, TreeWritten } from "../source/source.ts"

/** The compressors of squashfs that are written; each is read as well. */
export type CompressionName = "zstd" | "gzip" | "lz4" | "xz"

/** How blocks of the squashfs are compressed. */
export interface Compression {
  readonly name: CompressionName
  /** The compressor's own scale; default: what is fast at nearly the best size. */
  readonly level?: number
}

/** What {@link build}, {@link encrypt}, {@link decrypt} and {@link reencrypt} have in common. */
export interface OutputOptions {
  /** The image to write. */
  readonly output: string
  /** Replace an existing output, once the new one is complete. */
  readonly force?: boolean | undefined
  /** Stops it; nothing is left. */
  readonly signal?: AbortSignal | undefined
  /** Bytes of input so far, of how many, about ten times a second. */
  readonly onProgress?: OnProgress | undefined
  /** Things worth knowing that are no errors. */
  readonly onNotice?: ((text: string) => void) | undefined
}

/** {@link OutputOptions} where the output is encrypted. */
export interface EncryptedOutputOptions extends OutputOptions {
  /** Of LUKS2 only; default Argon2id with fixed costs. */
  readonly passphraseKdf?: PassphraseKdf | undefined
  /**
   * Naming it asks for encryption. Default `luks`. `gocryptfs` is what Apptainer's ordinary users can run; it takes any
   * number of RSA keys, or one passphrase without a line end in it.
   */
  readonly format?: EncryptionFormat | undefined
  /** Leave out of the image whom its RSA recipients are: name and public key. */
  readonly anonymous?: boolean | undefined
  /**
   * Leave definition, labels and so on of a source image readable beside the encrypted partition, as the peers do;
   * default: they are kept inside the encryption.
   */
  readonly publicMetadata?: boolean | undefined
}

/** Owners as the source has them, all root, or somebody else by number. */
export type Owner = "preserve" | "root" | { readonly uid: number; readonly gid: number }

/** How a tree is written; of no effect where the source has a squashfs. */
export interface TreeOptions {
  /** Default zstd. */
  readonly compression?: Compression | undefined
  /**
   * Whom everything belongs to. Default: layers of OCI and Docker images keep their owners (`preserve`); so does what
   * root builds from a folder, and everybody else's files become root's, as with the peers.
   */
  readonly owner?: Owner | undefined
  /** Go's or Node's name; default: the source's, or this machine's. */
  readonly architecture?: string | undefined
  /** Seconds since 1970 that no time in the image exceeds: makes a plain build reproducible. */
  readonly sourceDateEpoch?: number | undefined
  /** The partition is not a root but data, to be bound into containers (`image-src`). Not of images, and not encrypted. */
  readonly data?: boolean | undefined
}

/** What was made. */
export interface BuildResult {
  /** The image, as it was named. */
  readonly output: string
  readonly encrypted: boolean
  /** Of the image. */
  readonly size: Bytes
  /** Of the content of all files in the tree, or of the squashfs that was copied. */
  readonly inputBytes: Bytes
  /** Names in the tree, its root included. */
  readonly entries: number
  /** From the call to the finished image. */
  readonly milliseconds: number
}

/** The least and the highest level of each compressor. */
export const compressionLevels: Readonly<Record<CompressionName, readonly [number, number]>> = {
  zstd: [1, 22],
  gzip: [1, 12],
  lz4: [1, 12],
  xz: [0, 9],
}

const compressionNames = Object.keys(compressionLevels) as CompressionName[]
const namedCompression = is.shape<Compression>({
  name: is.required(is.oneOf(...compressionNames)),
  level: is.count,
})
const compression: is.Check<Compression> = (value, name) => {
  const checked = namedCompression(value, name)
  const levels = compressionLevels[checked.name]
  if (checked.level !== undefined) is.whole(...levels)(checked.level, `${name}.level, of ${checked.name},`)
  return checked
}

const MAX_ID = 2 ** 32 - 2
const ownerIds = is.shape<Exclude<Owner, string>>({
  uid: is.required(is.whole(0, MAX_ID)),
  gid: is.required(is.whole(0, MAX_ID)),
})
const owner: is.Check<Owner> = (value, name) =>
  typeof value === "object" ? ownerIds(value, name) : is.oneOf("preserve", "root")(value, name)

export const outputRows: is.Rows<OutputOptions> = {
  output: is.required(is.path),
  force: is.flag,
  signal: is.abortSignal,
  onProgress: is.callback,
  onNotice: is.callback,
}

export const encryptedOutputRows: is.Rows<EncryptedOutputOptions> = {
  ...outputRows,
  passphraseKdf,
  format: encryptionFormat,
  anonymous: is.flag,
  publicMetadata: is.flag,
}

export const treeRows: is.Rows<TreeOptions> = {
  compression,
  owner,
  architecture: is.text,
  sourceDateEpoch: is.count,
  data: is.flag,
}

type Options = EncryptedOutputOptions & TreeOptions

const BLOCK_SIZE: Bytes = 128 * 1024
const COPY_PIECE: Bytes = 1 << 20
/** Of AES-256-XTS. */
const VOLUME_KEY_SIZE: Bytes = 64
const SEALED_SECTOR: Bytes = 4096
const NIL_UUID = "00000000-0000-0000-0000-000000000000"

/** What the native side calls a failure of reading the source; everything else is about the output. */
const readingCalls: ReadonlySet<string> = new Set(
  "open fstat stat opendir readdir readlink listxattr getxattr lseek pread squashfs_copy gocryptfs_read".split(
    " ",
  ),
)

type Written = TreeWritten

/** What is written to; a plan is told of what would be. */
interface Destination extends Pick<Output, "target" | "within" | "write" | "writeSparse" | "truncate"> {
  readonly file: { readonly fd: number }
  /** Instead of copying the object. */
  readonly place?: (passenger: Passenger, offset: Bytes) => void
}

/** Where a tree goes, and how. */
interface TreeTarget {
  readonly output: Pick<Destination, "file" | "target" | "within">
  readonly offset: Bytes
  readonly cipher: NativeBuildCipher | undefined
  readonly trailer: Buffer | undefined
}

function nativeOwner(owner: Owner | undefined, source: BuildSource): NativeBuild["owner"] {
  const keep = source.ownersAreReal === true || process.geteuid?.() === 0
  const wanted = owner ?? (keep ? "preserve" : "root")
  if (wanted === "preserve") return undefined
  return wanted === "root" ? { uid: 0, gid: 0 } : wanted
}

function withAdded(source: BuildSource, time = Math.floor(Date.now() / 1000)): NativeBuild["source"] {
  const { tree } = source
  if (source.added === undefined || "squashfs" in tree || "bytes" in tree) return tree
  const added = source.added.map((entry) => ({
    ...entry,
    mtime: time,
    keep: entry.keep === true,
    ...(entry.type === "file" ? { content: Buffer.from(entry.content, "utf8") } : {}),
  }))
  return { ...tree, added: [...tree.added, ...added] } as NativeBuild["source"]
}

async function writeTree(options: Options, source: BuildSource, target: TreeTarget): Promise<Written> {
  const { signal, onProgress, compression = { name: "zstd" } } = options
  const { tree } = source
  const { output, offset, cipher, trailer } = target
  let progressError: { readonly error: unknown } | undefined
  const report = (bytes: Bytes, total: Bytes | undefined): boolean => {
    try {
      // A folder that grows meanwhile has more than was added up.
      onProgress?.(bytes, total && Math.max(bytes, total))
    } catch (error) {
      progressError = { error }
      return false
    }
    return signal?.aborted !== true
  }
  try {
    const write: NonNullable<BuildSource["write"]> =
      source.write ??
      ((build, report) =>
        loadAddon().buildTree({ ...build, source: withAdded(source, options.sourceDateEpoch) }, report))
    const written = await write(
      {
        fd: output.file.fd,
        offset,
        cipher,
        compression: compression.name,
        level: compression.level ?? -1,
        blockSize: BLOCK_SIZE,
        threads: 0,
        owner: nativeOwner(options.owner, source),
        sourceDateEpoch: options.sourceDateEpoch ?? -1,
        countContent: onProgress !== undefined,
        exclude: "directory" in tree && source.write === undefined ? await output.within(tree.directory) : [],
        trailer,
        trailerLengthAt: trailer === undefined || source.image !== undefined ? [] : lengthFields(trailer),
      },
      (bytes, total) => report(bytes, "squashfs" in tree ? tree.length : total),
    )
    report(written.inputBytes, written.inputBytes)
    if (progressError !== undefined) throw new Error("a listener failed")
    const { skippedXattrs = 0 } = written
    if (skippedXattrs > 0)
      options.onNotice?.(
        `${skippedXattrs} extended attributes of ${source.path} left out: a squashfs has user, trusted and security ones`,
      )
    return written
  } catch (cause) {
    signal?.throwIfAborted()
    if (progressError !== undefined) throw progressError.error
    const explained = source.explain?.(cause)
    if (explained !== undefined) throw explained
    const errno = cause instanceof Error && "errno" in cause ? -Number(cause.errno) : 0
    const { EBADMSG, EOVERFLOW } = constants.errno
    const message = cause instanceof Error ? cause.message : String(cause)
    const reading = cause instanceof Error && "syscall" in cause && readingCalls.has(String(cause.syscall))
    if (errno === EBADMSG || errno === EOVERFLOW || reading)
      throw new BuildError("ERR_BUILD_SOURCE", `cannot read the source ${source.path}: ${message}`, {
        path: source.path,
        cause,
      })
    throw asOutputError(output.target, cause)
  }
}

/** Says what of a source image is left out, and what anyone can read. */
function tellAbout(
  options: Options,
  { sif, opening, verify }: SourceImage,
  passengers: Passengers,
  encrypted: boolean,
): void {
  const { onNotice = () => undefined } = options
  const { kept, sealed, signatures } = passengers
  if (signatures.length > 0)
    onNotice(
      `${signatures.length === 1 ? "signature" : "signatures"} ${signatures.map(({ id }) => id).join(", ")} of ${sif.path} ` +
        "left out: a signature holds for the image that it was made for",
    )
  const names = (objects: readonly Passenger[]): string =>
    objects.map(({ object }) => objectText(object)).join(", ")
  if (!encrypted) {
    // In a plain image it is believed, and an overlay lies over the root file system.
    const outside =
      opening === undefined || verify !== undefined ? [] : kept.filter(({ image }) => image === sif)
    if (outside.length > 0)
      onNotice(
        `${sif.path} had it outside of its encryption, where anybody may have put it, and the plain image has it as its own: ${names(outside)}`,
      )
    return
  }
  if (sealed.length > 0) onNotice(`kept inside the encryption: ${names(sealed)}`)
  if (opening !== undefined && verify === undefined && sealed.some(({ image }) => image === sif))
    onNotice(`${sif.path} had it outside of its encryption, where anybody may have put it`)
  const readable = kept.filter(({ object }) => isReadable(object))
  if (readable.length > 0)
    onNotice(`readable without a key, beside the encrypted partition: ${names(readable)}`)
}

/** Copies objects in pieces, holes as holes. */
async function copyObject(
  passenger: Passenger,
  output: Destination,
  offset: Bytes,
  signal?: AbortSignal,
): Promise<void> {
  if (output.place !== undefined) {
    output.place(passenger, offset)
    return
  }
  const { image, object } = passenger
  for (let at = 0; at < object.size; at += COPY_PIECE) {
    signal?.throwIfAborted()
    await output.writeSparse(
      await image.read(object, at, Math.min(COPY_PIECE, object.size - at)),
      offset + at,
    )
  }
}

async function toSeal(passengers: Passengers, path: string): Promise<ObjectToSeal[]> {
  const total = passengers.sealed.reduce((sum, { object }) => sum + object.size, 0)
  if (total > MAX_SEALED_SIZE)
    throw SifError.at(
      path,
      "ERR_SIF_TOO_LARGE",
      `its metadata has ${total} bytes, more than the ${MAX_SEALED_SIZE} that fit inside the encryption`,
    )
  const objects: ObjectToSeal[] = []
  for (const { image, object, place } of passengers.sealed)
    objects.push({ object, place, data: await image.read(object, 0, object.size) })
  return objects
}

/** An image under construction. */
class ImageWriter {
  readonly #options: Options
  readonly #source: BuildSource
  readonly #output: Destination
  readonly #recipients: readonly Credential[]
  readonly #passengers: Passengers | undefined
  /** Metadata goes into the encryption. */
  readonly #seal: boolean
  readonly #layout: SifLayout
  readonly #architecture: string
  readonly #time: number

  constructor(options: Options, source: BuildSource, output: Destination, recipients: readonly Credential[]) {
    this.#options = options
    this.#source = source
    this.#output = output
    this.#recipients = recipients
    const encrypted = recipients.length > 0
    const { image } = source
    this.#seal = encrypted && options.publicMetadata !== true
    this.#passengers = image === undefined ? undefined : choosePassengers(image, this.#seal)
    const architecture =
      options.architecture === undefined
        ? (image?.primary.partition.arch ?? architectureDigits(source.architecture ?? process.arch))
        : architectureDigits(options.architecture)
    if (architecture === undefined)
      throw BuildError.at(
        source.path,
        "ERR_BUILD_SOURCE",
        `SIF has no code for the architecture ${options.architecture ?? process.arch}`,
      )
    this.#architecture = architecture
    this.#time = options.sourceDateEpoch ?? Math.floor(Date.now() / 1000)
    const id = options.sourceDateEpoch === undefined || encrypted ? undefined : NIL_UUID
    this.#layout = new SifLayout(this.#time, id, this.#tableOptions())
  }

  #tableOptions(): ConstructorParameters<typeof SifLayout>[2] {
    const { image, objects: added = [] } = this.#source
    if (image === undefined || this.#passengers === undefined)
      // Sealed objects come back before the partition one day.
      return { reserved: this.#seal ? added.map((_, slot) => ({ slot, id: slot + 1 })) : [] }
    const { kept, sealed } = this.#passengers
    const highest = Math.max(...[...kept, ...sealed, this.#passengers.primary].map(({ place }) => place.slot))
    const objects = kept.length + sealed.length + 1 + this.#recipients.length
    return {
      created: image.sif.header.created,
      launchScript: image.sif.header.launchScript,
      slots: Math.max(image.sif.header.total, highest + 1, objects),
      reserved: [...kept, ...sealed].map(({ place }) => place),
    }
  }

  /** That the partition and what belongs to it are in. */
  get #group(): number {
    return this.#passengers?.primary.object.group ?? 1
  }

  /** Puts the root file system where it belongs; returns its ID. */
  #addPartition(fileSystem: number, size: Bytes): number {
    const type = this.#options.data === true ? PartitionType.data : PartitionType.primarySystem
    const facts = { fileSystem, type, arch: this.#architecture }
    const extra = partitionExtra(facts)
    if (this.#passengers === undefined)
      return this.#layout.add({ type: DataType.partition, extra }, size, PARTITION_ALIGNMENT)
    const { object, place } = this.#passengers.primary
    // Whatever else stands there stays.
    const changed = Buffer.concat([
      extra.subarray(0, PARTITION_FACTS),
      object.extra.subarray(PARTITION_FACTS),
    ])
    const kept = { ...place, modified: this.#time, extra: changed }
    this.#layout.keep(object, kept, size, PARTITION_ALIGNMENT)
    return place.id
  }

  async #trailer(): Promise<Buffer | undefined> {
    const { image, path, objects = [] } = this.#source
    if (image === undefined || this.#passengers === undefined) {
      if (!this.#seal || objects.length === 0) return undefined
      const added = objects.map(({ type, name, data }) => ({ added: { type, name }, data }))
      return encodeTrailer(undefined, added, this.#time)
    }
    return encodeTrailer(image.length, await toSeal(this.#passengers, path), this.#time)
  }

  async #writePlain(): Promise<Written> {
    const output = this.#output
    const offset = this.#layout.next(PARTITION_ALIGNMENT)
    const target: TreeTarget = { output, offset, cipher: undefined, trailer: undefined }
    const written = await writeTree(this.#options, this.#source, target)
    this.#addPartition(FileSystem.squashfs, this.#source.image?.length ?? written.size)
    return written
  }

  async #writeEncrypted(): Promise<Written> {
    const layout = this.#layout
    const output = this.#output
    const trailer = await this.#trailer()
    const start = layout.next(PARTITION_ALIGNMENT)
    const { passphraseKdf, anonymous, format } = this.#options
    using encryption = await prepareEncryption(this.#recipients, passphraseKdf, anonymous, format)
    const { header, cipher, fileSystem } = encryption
    await output.writeSparse(header, start)
    const target: TreeTarget = { output, offset: start + header.length, cipher, trailer }
    const written = await writeTree(this.#options, this.#source, target)
    const partition = this.#addPartition(fileSystem, header.length + written.size)
    for (const { name, data, extra } of encryption.messages) {
      await output.write(data, layout.next())
      const link = { to: "object", id: partition } as const
      layout.add({ type: DataType.cryptoMessage, name, group: this.#group, link, extra }, data.length)
    }
    return written
  }

  async #copy(passengers: readonly Passenger[]): Promise<void> {
    for (const passenger of passengers) {
      const { object, place } = passenger
      const alignment = object.partition === undefined ? 1 : PARTITION_ALIGNMENT
      await copyObject(passenger, this.#output, this.#layout.next(alignment), this.#options.signal)
      this.#layout.keep(object, place, object.size, alignment)
    }
  }

  /** What is said of the tree where anyone can read it. */
  async #addObjects(): Promise<void> {
    const { objects = [] } = this.#source
    if (this.#seal || objects.length === 0) return
    for (const { type, name, data } of objects) {
      await this.#output.write(data, this.#layout.next())
      this.#layout.add({ type, name }, data.length)
    }
    if (this.#recipients.length > 0)
      this.#options.onNotice?.("readable without a key, beside the encrypted partition: the image's metadata")
  }

  async write(): Promise<Written> {
    const encrypted = this.#recipients.length > 0
    const { primary, kept } = this.#passengers ?? { primary: undefined, kept: [] }
    if (this.#passengers !== undefined && this.#source.image !== undefined)
      tellAbout(this.#options, this.#source.image, this.#passengers, encrypted)
    const before = kept.filter(({ place }) => primary !== undefined && place.slot < primary.place.slot)
    await this.#copy(before)
    await this.#addObjects()
    const written = encrypted ? await this.#writeEncrypted() : await this.#writePlain()
    await this.#copy(kept.filter((passenger) => !before.includes(passenger)))
    await this.#output.truncate(this.#layout.size)
    await this.#output.write(this.#layout.serialize(this.#architecture), 0)
    return { ...written, size: this.#layout.size }
  }
}

/** A plain image that nobody has written: header and table, and where the rest of it lies. */
export interface ImagePlan {
  readonly head: Buffer
  readonly size: Bytes
  /** In ascending order; between them are zeros. */
  readonly parts: readonly {
    readonly at: Bytes
    readonly size: Bytes
    /** What lies there; undefined: the root file system. */
    readonly passenger: Passenger | undefined
  }[]
}

/** How the plain image that is made of an image would look, to the byte: it is laid out by who writes them. */
export async function planPlainImage(
  options: Omit<Options, "output">,
  source: BuildSource & { readonly image: SourceImage },
): Promise<ImagePlan> {
  const { length } = source.image
  let head = Buffer.alloc(0)
  let size = 0
  const parts: ImagePlan["parts"][number][] = []
  const write = (bytes: Uint8Array): Promise<void> => {
    head = Buffer.from(bytes)
    return Promise.resolve()
  }
  const destination: Destination = {
    target: source.path,
    file: { fd: -1 },
    within: () => Promise.resolve([]),
    place: (passenger, at) => parts.push({ at, size: passenger.object.size, passenger }),
    write,
    writeSparse: write,
    truncate: (bytes) => {
      size = bytes
      return Promise.resolve()
    },
  }
  const writeTree: BuildSource["write"] = ({ offset }) => {
    parts.push({ at: offset, size: length, passenger: undefined })
    return Promise.resolve({ size: length, inputBytes: length, entries: 0 })
  }
  const planned = { ...options, output: source.path }
  await new ImageWriter(planned, { ...source, write: writeTree }, destination, []).write()
  return { head, size, parts }
}

/** A squashfs in an unnamed file, encrypted under a key that only this process has. Disposing forgets both. */
export interface SealedTree extends AsyncDisposable {
  readonly range: NativeRange
  readonly written: TreeWritten
}

/**
 * Writes the tree of a source so that no disk has any of it in plain.
 *
 * @param folder - Where it lies.
 * @param given - The source, or what makes one that is going to be written to a descriptor; disposed by the caller.
 */
export async function writeSealedTree(
  options: Omit<Options, "output">,
  folder: string,
  given: BuildSource | ((fd: number) => Promise<BuildSource>),
): Promise<SealedTree> {
  const temporary = await TemporaryFile.create(folder)
  const key = allocateSecret(VOLUME_KEY_SIZE)
  const held = {
    async [Symbol.asyncDispose](): Promise<void> {
      key.fill(0)
      await temporary[Symbol.asyncDispose]()
    },
  }
  return await madeOf(held, async () => {
    await temporary.unlink()
    randomFillSync(key)
    const { file } = temporary
    const cipher = { type: "xts", key, sectorSize: SEALED_SECTOR, ivTweak: 0 } as const
    const source = typeof given === "function" ? await given(file.fd) : given
    // In no folder that could be read.
    const output = { file, target: folder, within: () => Promise.resolve([]) }
    const target: TreeTarget = { output, offset: 0, cipher, trailer: undefined }
    const written = await writeTree({ ...options, output: folder }, source, target)
    const range = { fd: file.fd, offset: 0, size: written.size, cipher }
    return { range, written, ...held }
  })
}

/**
 * The same as {@link makeImage} in an unnamed file, which goes with the output.
 *
 * @param folder - Where it lies.
 */
export async function writeUnnamedImage(
  options: Omit<Options, "output">,
  recipients: readonly Credential[],
  source: BuildSource,
  folder: string,
): Promise<Output> {
  const target = path.join(folder, `.sifcrypt-${randomBytes(12).toString("hex")}`)
  const output = await Output.create(target, false)
  return await madeOf(output, async () => {
    await new ImageWriter({ ...options, output: target }, source, output, recipients).write()
    return output
  })
}

/**
 * Makes an image of a source; the output appears under its name when it is complete, and not at all otherwise.
 *
 * @param recipients - None: it stays plain.
 * @param given - The source, or what makes one for an output that is open.
 */
export async function makeImage(
  options: Options,
  recipients: readonly Credential[],
  given: BuildSource | ((output: Output) => Promise<BuildSource>),
): Promise<Omit<BuildResult, "milliseconds">> {
  const { signal, force = false } = options
  signal?.throwIfAborted()
  await using output = await Output.create(options.output, force)
  if (recipients.length > 0) loadEncryption(options.format)
  const source = typeof given === "function" ? await given(output) : given
  const { size, inputBytes, entries } = await new ImageWriter(options, source, output, recipients).write()
  source.image?.vouched?.checkRead()
  signal?.throwIfAborted()
  await output.publish(force)
  return { output: options.output, encrypted: recipients.length > 0, size, inputBytes, entries }
}
