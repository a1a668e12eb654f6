// Where the parts of a squashfs lie, as far as its superblock says: for whoever draws it. What reads files is native.
// Source of the numbers: the kernel's fs/squashfs/squashfs_fs.h, version 4.0; all integers little endian.
import { TreeError } from "../errors.ts"
import type { Bytes } from "../units.ts"

const SUPERBLOCK_SIZE: Bytes = 96
const MAGIC = Buffer.from("hsqs", "latin1")
const FRAGMENTS_AT = 16
const BYTES_USED_AT = 40
const ID_TABLE_AT = 48
const XATTR_TABLE_AT = 56
const INODE_TABLE_AT = 64
const DIRECTORY_TABLE_AT = 72
const FRAGMENT_TABLE_AT = 80
const EXPORT_TABLE_AT = 88
const ABSENT = 0xffff_ffff_ffff_ffffn

/** A part of a squashfs, by offsets in it. */
export interface SquashfsPart {
  readonly name:
    | "superblock"
    | "data"
    | "inodes"
    | "directories"
    | "fragment table"
    | "export table"
    | "owners"
    | "extended attributes"
  readonly offset: Bytes
  readonly size: Bytes
}

/** Tables that are found through a list of their blocks, which stands behind them: its first entry is where they begin. */
const listed = [
  ["fragment table", FRAGMENT_TABLE_AT],
  ["export table", EXPORT_TABLE_AT],
  ["owners", ID_TABLE_AT],
  ["extended attributes", XATTR_TABLE_AT],
] as const

/**
 * The parts of a squashfs, in their order, without gaps.
 *
 * @param read - By offsets in it.
 * @param size - Of where it lies.
 * @param image - What to call it.
 * @throws TreeError `ERR_TREE_FORMAT`.
 */
export async function squashfsParts(
  read: (position: Bytes, length: Bytes) => Promise<Buffer>,
  size: Bytes,
  image: string,
): Promise<readonly SquashfsPart[]> {
  const malformed = (what: string): never => {
    throw TreeError.at(image, "ERR_TREE_FORMAT", `malformed squashfs: ${what}`)
  }
  const superblock = await read(0, SUPERBLOCK_SIZE)
  if (superblock.length < SUPERBLOCK_SIZE) malformed("it ends in its superblock")
  if (!superblock.subarray(0, MAGIC.length).equals(MAGIC)) malformed("it does not begin as one")
  const used = Number(superblock.readBigUInt64LE(BYTES_USED_AT))
  if (used < SUPERBLOCK_SIZE || used > size) malformed(`it claims ${used} bytes of ${size}`)
  const place = (bytes: Buffer, at: number, name: string): Bytes => {
    const offset = Number(bytes.readBigUInt64LE(at))
    return offset >= SUPERBLOCK_SIZE && offset < used ? offset : malformed(`its ${name} lie at ${offset}`)
  }
  const starts: { readonly name: SquashfsPart["name"]; readonly offset: Bytes }[] = [
    { name: "inodes", offset: place(superblock, INODE_TABLE_AT, "inodes") },
    { name: "directories", offset: place(superblock, DIRECTORY_TABLE_AT, "directories") },
  ]
  for (const [name, at] of listed) {
    if (superblock.readBigUInt64LE(at) === ABSENT) continue
    // Its list is empty, and what would be its first entry is something else.
    if (name === "fragment table" && superblock.readUInt32LE(FRAGMENTS_AT) === 0) continue
    const entry = await read(place(superblock, at, name), 8)
    if (entry.length < 8) malformed(`it ends in its ${name}`)
    starts.push({ name, offset: place(entry, 0, name) })
  }
  starts.sort((a, b) => a.offset - b.offset)
  return [
    { name: "superblock" as const, offset: 0 },
    { name: "data" as const, offset: SUPERBLOCK_SIZE },
    ...starts,
  ]
    .map(({ name, offset }, i, all) => ({
      name,
      offset,
      size: ([...all.slice(i + 1), { offset: used }][0]?.offset ?? used) - offset,
    }))
    .filter((part) => part.size > 0)
}
