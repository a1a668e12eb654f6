// Hash trees of partitions: found, checked against what they are of, and made. docs/format.md says why one may be believed.
import { createHash, randomBytes } from "node:crypto"
import { checkVerity, writeVerity, type HashOptions } from "../device/verity.ts"
import { SignatureError } from "../errors.ts"
import type { SifChange } from "../file/image-change.ts"
import { DataType, type SifObject, type SifPartition, type Verity } from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import {
  isVerity,
  parseVerityStatement,
  VERITY_BLOCK,
  VERITY_NAME,
  VERITY_SALT_SIZE,
  verityExtra,
  veritySize,
} from "../sif/verity.ts"
import type { Bytes } from "../units.ts"
import { groupOf, lowestId } from "./groups.ts"

/** How {@link appendVerity} makes a hash tree. */
export interface VerityOptions extends HashOptions {
  /** 32 bytes; default: random ones. */
  readonly salt?: Uint8Array | undefined
}

/** The objects of a partition's group that say they are its hash tree; more than one is an error. */
export function veritiesOf(image: SifImage, { id, group }: SifObject): readonly SifObject[] {
  return image.objects.filter(
    (object) =>
      isVerity(object) && object.group === group && object.link.to === "object" && object.link.id === id,
  )
}

/** How signatures name the partition. */
function relativeIdOf(image: SifImage, { id, group }: SifObject): number {
  return id - lowestId(groupOf(image, group))
}

/**
 * What reading needs of a hash tree, its statement checked against the image.
 *
 * @returns A reason why it cannot be used, instead.
 */
export function readVerity(image: SifImage, partition: SifObject, object: SifObject): Verity | string {
  if (veritiesOf(image, partition).length > 1) return `partition ${partition.id} has two hash trees`
  const statement = parseVerityStatement(object.extra)
  if (typeof statement === "string") return statement
  const { relativeId, partitionSize, salt, root } = statement
  if (object.group !== partition.group || relativeId !== relativeIdOf(image, partition))
    return "it is the hash tree of another partition"
  if (partitionSize !== partition.size)
    return `it is the hash tree of ${partitionSize} bytes, the partition has ${partition.size}`
  const size = veritySize(partition.size)
  if (size !== object.size)
    return `it has ${object.size} bytes, the hash tree of the partition has ${size ?? "none"}`
  return { id: object.id, offset: object.offset, size, salt, root }
}

/** Does the first block of the hash tree have the root hash that is stated? Nothing else of it is read. */
export async function hasStatedRoot(image: SifImage, verity: Verity): Promise<boolean> {
  const first = await image.read(image.object(verity.id), 0, VERITY_BLOCK)
  return createHash("sha256").update(verity.salt).update(first).digest().equals(verity.root)
}

/** What a signature leaves to reading, or why it cannot. */
export interface LeftToReading {
  /** IDs of objects whose data is not hashed now. */
  readonly objects: readonly number[]
  readonly failures: readonly { readonly object: number; readonly reason: string }[]
}

/** Everything is hashed now. */
export const NOTHING_LATER: LeftToReading = { objects: [], failures: [] }

/** A partition that is about to be read: its data need not be hashed before where its hash tree is signed as well. */
export class VerifyWhenRead {
  readonly #partition: SifPartition
  readonly #object: SifObject | undefined
  readonly #checked: Verity | string
  #verity: Verity | undefined

  private constructor(partition: SifPartition, object: SifObject | undefined, checked: Verity | string) {
    this.#partition = partition
    this.#object = object
    this.#checked = checked
  }

  /** Looks for a hash tree and at its first block; it counts for nothing before a signature states its descriptor. */
  static async of(image: SifImage, partition: SifPartition): Promise<VerifyWhenRead> {
    const [object] = veritiesOf(image, partition)
    if (object === undefined) return new VerifyWhenRead(partition, undefined, "there is none")
    const verity = readVerity(image, partition, object)
    const good = typeof verity === "string" || (await hasStatedRoot(image, verity))
    return new VerifyWhenRead(partition, object, good ? verity : "it is not the hash tree that was signed")
  }

  /** What the partition has to be read with, if a signature was taken for good because of it. */
  get verity(): Verity | undefined {
    return this.#verity
  }

  /** @param intact - IDs of objects whose descriptors are as a signature states. */
  take(intact: ReadonlySet<number>): LeftToReading {
    const { id } = this.#partition
    const object = this.#object
    if (object === undefined || !intact.has(id) || !intact.has(object.id)) return NOTHING_LATER
    const verity = this.#checked
    if (typeof verity === "string") return { objects: [], failures: [{ object: object.id, reason: verity }] }
    this.#verity = verity
    return { objects: [id, object.id], failures: [] }
  }
}

/**
 * Hashes a partition and compares all of its hash tree.
 *
 * @returns Why the hash tree cannot be used; undefined: it is right.
 */
export async function compareVerity(
  image: SifImage,
  object: SifObject,
  options: HashOptions = {},
): Promise<string | undefined> {
  const { link } = object
  const partition = link.to === "object" ? image.objects.find(({ id }) => id === link.id) : undefined
  if (partition === undefined) return "it is the hash tree of no object"
  const verity = readVerity(image, partition, object)
  if (typeof verity === "string") return verity
  const { offset, size } = partition
  const good = await checkVerity({ fd: image.fd, offset, size, verity, cipher: undefined }, options)
  return good ? undefined : `it is not the hash tree of partition ${partition.id}`
}

/**
 * Sees to it that a partition has a hash tree, and that this is right: one that is there and right stays, so that signatures
 * which cover it stay good; any other is replaced. It counts for nothing before its group is signed.
 *
 * @param room - Descriptors that are to be free in the same page of the file as that of a new hash tree.
 * @returns The slot of a new hash tree, which is still to be switched on; undefined: the right one is there.
 * @throws SignatureError `ERR_SIGNATURE_TREE` for a partition that cannot have one; SifError `ERR_SIF_FULL`; the signal's
 * reason.
 */
export async function appendVerity(
  change: SifChange,
  partition: SifPartition,
  room: number,
  options: VerityOptions = {},
): Promise<number | undefined> {
  const { path, fd } = change.image
  const size = veritySize(partition.size)
  if (size === undefined || partition.group === 0)
    throw new SignatureError(
      "ERR_SIGNATURE_TREE",
      partition.group === 0
        ? `${path}: partition ${partition.id} is in no group, so nothing could sign its hash tree`
        : `${path}: partition ${partition.id} has ${partition.size} bytes, and a hash tree is of two or more blocks of ${VERITY_BLOCK}`,
      { path },
    )
  const old = veritiesOf(change.image, partition)
  const [only] = old
  if (only !== undefined && (await compareVerity(change.image, only, options)) === undefined) return undefined
  if (old.length > 0) await change.remove(old)
  const salt = Buffer.from(options.salt ?? randomBytes(VERITY_SALT_SIZE))
  const relativeId = relativeIdOf(change.image, partition)
  const data = {
    size,
    alignment: VERITY_BLOCK,
    write: async (position: Bytes): Promise<Buffer> => {
      const place = { fd, offset: partition.offset, size: partition.size, verityOffset: position, salt }
      const root = await writeVerity(place, options)
      return verityExtra({ relativeId, partitionSize: partition.size, salt, root })
    },
  }
  const verity = {
    type: DataType.generic,
    name: VERITY_NAME,
    group: partition.group,
    link: { to: "object", id: partition.id } as const,
    data,
  }
  // In front of the partition it could become the group's lowest, from which signatures count.
  const [slot] = await change.append([verity], partition.slot, true, room)
  return slot
}
