// The bytes of SIF: global header and descriptors, parsed and serialised. No files, no devices.
// Source of the numbers: the SIF specification; all integers little endian, structures packed.
import { SifError } from "../errors.ts"
import type { Bytes } from "../units.ts"

export const HEADER_SIZE: Bytes = 128
export const DESCRIPTOR_SIZE: Bytes = 585
/** What writers choose; readers take both from the header. */
export const DEFAULT_TABLE_OFFSET: Bytes = 4096
export const DEFAULT_SLOTS = 48
export const MAX_SLOTS = 65536
export const LAUNCH_SCRIPT = "#!/usr/bin/env run-singularity\n"

const MAGIC_AT = 32
const MAGIC: Buffer = Buffer.from("SIF_MAGIC\0", "latin1")
const VERSION_AT = 42
const VERSION: Buffer = Buffer.from("01\0", "latin1")
const ARCH_AT = 45
const ID_AT = 48
const CREATED_AT = 64
const MODIFIED_AT = 72
const FREE_AT = 80
const TOTAL_AT = 88
const TABLE_OFFSET_AT = 96
const TABLE_SIZE_AT = 104
const DATA_OFFSET_AT = 112
const DATA_SIZE_AT = 120

/** In a descriptor: the byte that makes an object of it. */
export const USED_AT: Bytes = 4
const NAME_AT = 73
const NAME_SIZE = 128
const EXTRA_AT = 201
const EXTRA_SIZE = 384
const MASK = 0xf0000000
const NUMBER = 0x0fffffff

/** What an object is (SIF specification, data types). */
export const DataType = {
  definition: 0x4001,
  environment: 0x4002,
  labels: 0x4003,
  partition: 0x4004,
  signature: 0x4005,
  json: 0x4006,
  generic: 0x4007,
  cryptoMessage: 0x4008,
  sbom: 0x4009,
  ociRootIndex: 0x400a,
  ociBlob: 0x400b,
} as const

/** What a partition holds; 5 is LUKS2 around squashfs, 6 gocryptfs inside squashfs (Apptainer). */
export const FileSystem = {
  squashfs: 1,
  ext3: 2,
  archive: 3,
  raw: 4,
  encryptedSquashfs: 5,
  gocryptfsSquashfs: 6,
} as const

/** What a partition is for. */
export const PartitionType = { system: 1, primarySystem: 2, data: 3, overlay: 4 } as const

/** How a crypto message is written. */
export const MessageFormat = { openPgp: 1, pem: 2 } as const
/** What a crypto message is. */
export const MessageType = { clearSignature: 0x100, rsaOaep: 0x200 } as const

/** The global header. Counts and offsets as written; {@link SifHeader.free} is not to be relied on. */
export interface SifHeader {
  readonly launchScript: string
  readonly version: string
  /** Two digits, as in a partition. */
  readonly arch: string
  /** 16 bytes as a UUID. */
  readonly id: string
  /** Seconds since 1970; -62135596800 (year 1) means unset. */
  readonly created: number
  readonly modified: number
  readonly free: number
  readonly total: number
  readonly tableOffset: Bytes
  readonly tableSize: Bytes
  readonly dataOffset: Bytes
  readonly dataSize: Bytes
}

/** What the extra area of a partition says. */
export interface PartitionFacts {
  readonly fileSystem: number
  readonly type: number
  /** Two digits. */
  readonly arch: string
}

/** Where an object points. */
export type SifLink =
  | { readonly to: "none" }
  | { readonly to: "object"; readonly id: number }
  | { readonly to: "group"; readonly group: number }

/** One used descriptor. */
export interface SifObject {
  readonly slot: number
  readonly type: number
  readonly id: number
  /** 0: in no group. */
  readonly group: number
  readonly link: SifLink
  /** From the start of the file. */
  readonly offset: Bytes
  readonly size: Bytes
  readonly paddedSize: number
  readonly created: number
  readonly modified: number
  readonly uid: number
  readonly gid: number
  /** Untrusted: for display, never a path. */
  readonly name: string
  /** 384 bytes whose meaning depends on the type. */
  readonly extra: Buffer
  /** For a partition. */
  readonly partition: PartitionFacts | undefined
  /** The whole descriptor, as it stands in the table. */
  readonly record: Buffer
}

/** The hash tree of a partition, from a statement that is signed. */
export interface Verity {
  /** Of its object. */
  readonly id: number
  /** From the start of the file. */
  readonly offset: Bytes
  readonly size: Bytes
  /** 32 bytes each. */
  readonly salt: Buffer
  readonly root: Buffer
}

/** A partition among the objects. */
export type SifPartition = SifObject & {
  readonly partition: PartitionFacts
  /** With this every block of it is verified when it is read; undefined: it is read as it is. */
  readonly verity?: Verity
}

function int64(bytes: Buffer, at: number): number {
  return Number(bytes.readBigInt64LE(at))
}

function text(bytes: Buffer): string {
  let end = bytes.length
  while (end > 0 && bytes[end - 1] === 0) end--
  return bytes.toString("utf8", 0, end)
}

function upToNul(bytes: Buffer): string {
  const nul = bytes.indexOf(0)
  return bytes.toString("latin1", 0, nul < 0 ? bytes.length : nul)
}

function uuid(bytes: Buffer): string {
  const hex = bytes.toString("hex")
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-")
}

/**
 * Parses the global header. Magic and version must fit; whether the offsets make sense is for {@link checkHeader}.
 *
 * @throws SifError `ERR_SIF_TRUNCATED`, `ERR_SIF_MAGIC`, `ERR_SIF_VERSION`.
 */
export function parseHeader(bytes: Buffer): SifHeader {
  const magicSeen = bytes.length >= MAGIC_AT + MAGIC.length
  if (magicSeen && !bytes.subarray(MAGIC_AT, MAGIC_AT + MAGIC.length).equals(MAGIC))
    throw new SifError("ERR_SIF_MAGIC", "not a SIF image: the magic number is missing", { offset: MAGIC_AT })
  if (bytes.length < HEADER_SIZE)
    throw magicSeen
      ? new SifError(
          "ERR_SIF_TRUNCATED",
          `the SIF header needs ${HEADER_SIZE} bytes, the file has ${bytes.length}`,
        )
      : new SifError("ERR_SIF_MAGIC", `not a SIF image: only ${bytes.length} bytes`)
  if (!bytes.subarray(VERSION_AT, VERSION_AT + VERSION.length).equals(VERSION))
    throw new SifError(
      "ERR_SIF_VERSION",
      `SIF version ${JSON.stringify(upToNul(bytes.subarray(VERSION_AT, VERSION_AT + 3)))} is not known (01 is)`,
      { offset: VERSION_AT },
    )
  return {
    launchScript: text(bytes.subarray(0, MAGIC_AT)),
    version: "01",
    arch: upToNul(bytes.subarray(ARCH_AT, ARCH_AT + 3)),
    id: uuid(bytes.subarray(ID_AT, ID_AT + 16)),
    created: int64(bytes, CREATED_AT),
    modified: int64(bytes, MODIFIED_AT),
    free: int64(bytes, FREE_AT),
    total: int64(bytes, TOTAL_AT),
    tableOffset: int64(bytes, TABLE_OFFSET_AT),
    tableSize: int64(bytes, TABLE_SIZE_AT),
    dataOffset: int64(bytes, DATA_OFFSET_AT),
    dataSize: int64(bytes, DATA_SIZE_AT),
  }
}

/**
 * Does the descriptor table lie in the file, and is it of a size that can be read into memory?
 *
 * @throws SifError `ERR_SIF_HEADER` when a number is senseless, `ERR_SIF_TRUNCATED` when the file ends before the table.
 */
export function checkHeader(header: SifHeader, fileSize: Bytes): void {
  const { total, tableOffset, tableSize } = header
  const wrong = (what: string): never => {
    throw new SifError("ERR_SIF_HEADER", `the SIF header is malformed: ${what}`)
  }
  if (!(total >= 0 && total <= MAX_SLOTS)) wrong(`${total} descriptors (at most ${MAX_SLOTS})`)
  if (!Number.isSafeInteger(tableOffset) || tableOffset < HEADER_SIZE)
    wrong(`the descriptor table starts at ${tableOffset}`)
  if (!(tableSize >= total * DESCRIPTOR_SIZE))
    wrong(`a descriptor table of ${tableSize} bytes does not hold ${total} descriptors`)
  const end = tableOffset + total * DESCRIPTOR_SIZE
  if (end > fileSize)
    throw new SifError(
      "ERR_SIF_TRUNCATED",
      `truncated: the descriptor table ends at ${end}, the file has ${fileSize} bytes`,
      { offset: tableOffset },
    )
}

/** The header's 128 bytes. */
export function serializeHeader(header: SifHeader): Buffer {
  const bytes = Buffer.alloc(HEADER_SIZE)
  bytes.write(header.launchScript.slice(0, 31), 0, "latin1")
  MAGIC.copy(bytes, MAGIC_AT)
  VERSION.copy(bytes, VERSION_AT)
  bytes.write(header.arch, ARCH_AT, 2, "latin1")
  Buffer.from(header.id.replaceAll("-", ""), "hex").copy(bytes, ID_AT, 0, 16)
  for (const [at, value] of [
    [CREATED_AT, header.created],
    [MODIFIED_AT, header.modified],
    [FREE_AT, header.free],
    [TOTAL_AT, header.total],
    [TABLE_OFFSET_AT, header.tableOffset],
    [TABLE_SIZE_AT, header.tableSize],
    [DATA_OFFSET_AT, header.dataOffset],
    [DATA_SIZE_AT, header.dataSize],
  ] as const)
    bytes.writeBigInt64LE(BigInt(value), at)
  return bytes
}

/** What changes in a header when objects come and go. */
export type HeaderChange = Pick<SifHeader, "arch" | "modified" | "free" | "dataSize">

/** Writes the changed fields into a header's bytes. All others stay as they are, even those that cannot be understood. */
export function changeHeader(bytes: Buffer, change: HeaderChange): void {
  bytes.write(change.arch, ARCH_AT, 2, "latin1")
  bytes.writeBigInt64LE(BigInt(change.modified), MODIFIED_AT)
  bytes.writeBigInt64LE(BigInt(change.free), FREE_AT)
  bytes.writeBigInt64LE(BigInt(change.dataSize), DATA_SIZE_AT)
}

/** What an object gets that comes from another image; the rest of its descriptor stays. */
export interface DescriptorChange extends Pick<SifObject, "id" | "link" | "offset" | "size" | "paddedSize"> {
  /** Default: as it was. */
  readonly modified?: number
  readonly extra?: Buffer
}

/** Writes the changed fields into a descriptor's bytes; all others stay as they are. */
export function changeDescriptor(bytes: Buffer, change: DescriptorChange): void {
  bytes.writeUInt32LE(change.id, 5)
  bytes.writeUInt32LE(serializeLink(change.link), 13)
  bytes.writeBigInt64LE(BigInt(change.offset), 17)
  bytes.writeBigInt64LE(BigInt(change.size), 25)
  bytes.writeBigInt64LE(BigInt(change.paddedSize), 33)
  if (change.modified !== undefined) bytes.writeBigInt64LE(BigInt(change.modified), 49)
  change.extra?.copy(bytes, EXTRA_AT)
}

function serializeLink(link: SifLink): number {
  return link.to === "none" ? 0 : link.to === "object" ? link.id : (MASK | link.group) >>> 0
}

function parseLink(raw: number): SifLink {
  if (raw === 0) return { to: "none" }
  return raw >>> 28 === 0xf ? { to: "group", group: raw & NUMBER } : { to: "object", id: raw }
}

/** One slot of the table; undefined when it is free. */
export function parseDescriptor(bytes: Buffer, slot: number): SifObject | undefined {
  if (bytes[USED_AT] === 0) return undefined
  const type = bytes.readInt32LE(0)
  const extra = Buffer.from(bytes.subarray(EXTRA_AT, EXTRA_AT + EXTRA_SIZE))
  return {
    slot,
    type,
    id: bytes.readUInt32LE(5),
    group: bytes.readUInt32LE(9) & NUMBER,
    link: parseLink(bytes.readUInt32LE(13)),
    offset: int64(bytes, 17),
    size: int64(bytes, 25),
    paddedSize: int64(bytes, 33),
    created: int64(bytes, 41),
    modified: int64(bytes, 49),
    uid: int64(bytes, 57),
    gid: int64(bytes, 65),
    name: text(bytes.subarray(NAME_AT, NAME_AT + NAME_SIZE)),
    extra,
    partition:
      type === DataType.partition
        ? {
            fileSystem: extra.readInt32LE(0),
            type: extra.readInt32LE(4),
            arch: upToNul(extra.subarray(8, 11)),
          }
        : undefined,
    record: Buffer.from(bytes.subarray(0, DESCRIPTOR_SIZE)),
  }
}

/** The nibbles that say what a group and a link are; anything else comes from no writer. */
export function checkMasks(bytes: Buffer, slot: number): void {
  const nibble = bytes.readUInt32LE(9) >>> 28
  const link = bytes.readUInt32LE(13) >>> 28
  if (nibble !== 0xf || (link !== 0 && link !== 0xf))
    throw new SifError("ERR_SIF_DESCRIPTOR", `descriptor ${slot + 1}: group or link is not marked as such`)
}

/** What a writer gives for a new descriptor. */
export interface NewDescriptor extends Pick<SifObject, "type" | "group" | "name">, DescriptorChange {
  /** Seconds since 1970. */
  readonly time: number
  readonly extra: Buffer
}

/** A descriptor's 585 bytes. */
export function serializeDescriptor(object: NewDescriptor): Buffer {
  const bytes = Buffer.alloc(DESCRIPTOR_SIZE)
  bytes.writeInt32LE(object.type, 0)
  bytes[USED_AT] = 1
  bytes.writeUInt32LE((MASK | object.group) >>> 0, 9)
  bytes.writeBigInt64LE(BigInt(object.time), 41)
  const name = Buffer.from(object.name, "utf8")
  if (name.length > NAME_SIZE) throw new RangeError(`an object name has at most ${NAME_SIZE} bytes`)
  name.copy(bytes, NAME_AT)
  if (object.extra.length > EXTRA_SIZE) throw new RangeError(`the extra area has ${EXTRA_SIZE} bytes`)
  changeDescriptor(bytes, { ...object, modified: object.time })
  return bytes
}

/** In a record: what a partition is for. */
export const PARTITION_TYPE_AT: Bytes = EXTRA_AT + 4

/** Bytes of the extra area that say what a partition is. */
export const PARTITION_FACTS: Bytes = 11

/** The extra area of a partition. */
export function partitionExtra(facts: PartitionFacts): Buffer {
  const extra = Buffer.alloc(EXTRA_SIZE)
  extra.writeInt32LE(facts.fileSystem, 0)
  extra.writeInt32LE(facts.type, 4)
  extra.write(facts.arch, 8, 2, "latin1")
  return extra
}

const ENTITY_AT = 4

/**
 * The extra area of a signature.
 *
 * @param hash - Its number.
 * @param entity - The signer's fingerprint.
 */
export function signatureExtra(hash: number, entity: Buffer): Buffer {
  const extra = Buffer.alloc(ENTITY_AT + entity.length)
  extra.writeInt32LE(hash, 0)
  entity.copy(extra, ENTITY_AT)
  return extra
}

/** The extra area of an SBOM, by the number of its format. */
export function sbomExtra(format: number): Buffer {
  const extra = Buffer.alloc(4)
  extra.writeInt32LE(format, 0)
  return extra
}

/** Where a crypto message of ours says what it is for; the peers look at the eight bytes before. */
const MARK_AT = 8
const MARK_SIZE: Bytes = 16

/**
 * The extra area of a crypto message.
 *
 * @param mark - 32 hex digits that name the lock that the secret opens; none in the peers' messages.
 */
export function cryptoMessageExtra(mark: string = ""): Buffer {
  const extra = Buffer.alloc(EXTRA_SIZE)
  extra.writeInt32LE(MessageFormat.pem, 0)
  extra.writeInt32LE(MessageType.rsaOaep, 4)
  extra.write(mark, MARK_AT, MARK_SIZE, "hex")
  return extra
}

/** What names the lock that a crypto message's secret opens; undefined in the peers' messages. */
export function messageMark(extra: Buffer): string | undefined {
  const mark = extra.subarray(MARK_AT, MARK_AT + MARK_SIZE)
  return mark.some((byte) => byte !== 0) ? mark.toString("hex") : undefined
}
