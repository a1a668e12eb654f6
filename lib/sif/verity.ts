// The hash tree of a partition as an image carries it: dm-verity's, and a statement about it in the extra area of its object.
// docs/format.md has the layout and the reasons.
import type { Bytes } from "../units.ts"
import { DataType, type SifObject } from "./format.ts"

/** What a tree's object is called; it is recognised by its statement. */
export const VERITY_NAME = "sifcrypt-verity"
/** Of data and of hashes. */
export const VERITY_BLOCK: Bytes = 4096
const DIGEST_SIZE: Bytes = 32
const DIGESTS_PER_BLOCK = VERITY_BLOCK / DIGEST_SIZE
/** Of the salt. */
export const VERITY_SALT_SIZE: Bytes = 32

const MAGIC: Buffer = Buffer.from("SIFCRYPT-VERITY\0", "latin1")
const VERSION = 1
const VERSION_AT = 16
const PARTITION_AT = 20
const PARTITION_SIZE_AT = 24
const FORMAT_AT = 32
const DATA_BLOCK_AT = 36
const HASH_BLOCK_AT = 40
const SALT_SIZE_AT = 44
const ALGORITHM_AT = 48
const ALGORITHM: Buffer = Buffer.from("sha256".padEnd(16, "\0"), "latin1")
const SALT_AT = 64
const ROOT_AT = 96
const STATEMENT_SIZE: Bytes = 128
const EXTRA_SIZE: Bytes = 384
/** dm-verity's on-disk format. */
const FORMAT = 1

/** What the object of a hash tree states. */
export interface VerityStatement {
  /** The partition's ID less the lowest of its group. */
  readonly relativeId: number
  readonly partitionSize: Bytes
  /** 32 bytes. */
  readonly salt: Buffer
  /** 32 bytes. */
  readonly root: Buffer
}

/** Is the object a hash tree of ours, right or wrong? */
export function isVerity({ type, extra }: SifObject): boolean {
  return type === DataType.generic && extra.subarray(0, MAGIC.length).equals(MAGIC)
}

/** Bytes of the tree of a partition; undefined for one that has none: not whole blocks, or only one. */
export function veritySize(partitionSize: Bytes): Bytes | undefined {
  let count = partitionSize / VERITY_BLOCK
  if (!Number.isSafeInteger(partitionSize) || !Number.isInteger(count) || count < 2) return undefined
  let blocks = 0
  do {
    count = Math.ceil(count / DIGESTS_PER_BLOCK)
    blocks += count
  } while (count > 1)
  return blocks * VERITY_BLOCK
}

/** The extra area of a tree's object. */
export function verityExtra({ relativeId, partitionSize, salt, root }: VerityStatement): Buffer {
  const extra = Buffer.alloc(EXTRA_SIZE)
  MAGIC.copy(extra)
  extra.writeUInt32LE(VERSION, VERSION_AT)
  extra.writeUInt32LE(relativeId, PARTITION_AT)
  extra.writeBigUInt64LE(BigInt(partitionSize), PARTITION_SIZE_AT)
  extra.writeUInt32LE(FORMAT, FORMAT_AT)
  extra.writeUInt32LE(VERITY_BLOCK, DATA_BLOCK_AT)
  extra.writeUInt32LE(VERITY_BLOCK, HASH_BLOCK_AT)
  extra.writeUInt32LE(VERITY_SALT_SIZE, SALT_SIZE_AT)
  ALGORITHM.copy(extra, ALGORITHM_AT)
  salt.copy(extra, SALT_AT, 0, VERITY_SALT_SIZE)
  root.copy(extra, ROOT_AT, 0, DIGEST_SIZE)
  return extra
}

/** What the extra area of a tree's object says, or why that cannot be used. */
export function parseVerityStatement(extra: Buffer): VerityStatement | string {
  const version = extra.readUInt32LE(VERSION_AT)
  if (version !== VERSION) return `its statement has version ${version}, which is not known`
  const numbers = [FORMAT_AT, DATA_BLOCK_AT, HASH_BLOCK_AT, SALT_SIZE_AT].map((at) => extra.readUInt32LE(at))
  const wanted = [FORMAT, VERITY_BLOCK, VERITY_BLOCK, VERITY_SALT_SIZE]
  if (numbers.some((number, index) => number !== wanted[index]))
    return "its format, its block sizes or its salt's size are not those that are known"
  if (!extra.subarray(ALGORITHM_AT, SALT_AT).equals(ALGORITHM)) return "its algorithm is not sha256"
  if (extra.subarray(STATEMENT_SIZE).some((byte) => byte !== 0)) return "its statement has more than is known"
  return {
    relativeId: extra.readUInt32LE(PARTITION_AT),
    partitionSize: Number(extra.readBigUInt64LE(PARTITION_SIZE_AT)),
    salt: Buffer.from(extra.subarray(SALT_AT, ROOT_AT)),
    root: Buffer.from(extra.subarray(ROOT_AT, STATEMENT_SIZE)),
  }
}
