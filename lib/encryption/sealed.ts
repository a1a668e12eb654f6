// What lies behind the squashfs in the plaintext of an encrypted partition of ours: the objects that the peers leave
// readable beside it, and how long the partition was before it was encrypted.
//
//   0                     length     multiple of 4096       multiple of 4096      end of the plaintext
//   │ partition as it was │ zeros    │ a SIF of its own     │ zeros               │ footer, 4096 bytes │
//
// A squashfs says how long it is, so the kernel and the peers do not see what follows. A SIF, because the objects come
// with names, types, groups, links and times, and there is a strict reader for that. The footer stands at the very end,
// where it is found without knowing the squashfs. Who has no key sees neither.
//
// Footer, little endian:
//    0  16  "SIFCRYPT-SEALED\0"
//   16   4  version, 1
//   20   4  0
//   24   8  length of the partition
//   32   8  where the SIF starts, a multiple of 4096; 0: there is none
//   40   8  length of the SIF
//   48      zeros
import type { Tree } from "../device/tree.ts"
import { SifError } from "../errors.ts"
import { PARTITION_ALIGNMENT as BLOCK, SifLayout, type KeptObject, type NewObject } from "../sif/write.ts"
import { BufferReader, type ByteReader } from "../sif/source.ts"
import { readSif, type SifImage } from "../sif/open.ts"
import { DataType, type SifObject } from "../sif/format.ts"
import { alignUp, type Bytes } from "../units.ts"

const MAGIC = Buffer.from("SIFCRYPT-SEALED\0", "latin1")
const VERSION = 1
const VERSION_AT = 16
const LENGTH_AT = 24
const OFFSET_AT = 32
const SIZE_AT = 40
const USED = 48

/** All sealed objects together: they are read into memory. */
export const MAX_SEALED_SIZE: Bytes = 64 << 20

const PIECE: Bytes = 1 << 20

const sealedTypes: ReadonlySet<number> = new Set([
  DataType.definition,
  DataType.environment,
  DataType.labels,
  DataType.json,
  DataType.generic,
  DataType.sbom,
])

/** Does the object say something about the root file system that is encrypted? */
export function isMetadata(object: SifObject): boolean {
  return sealedTypes.has(object.type)
}

/** What a footer says. */
export interface Footer {
  /** Of the partition before it was encrypted. */
  readonly length: Bytes
  /** Where the sealed objects lie; undefined: there are none. */
  readonly sealed: { readonly offset: Bytes; readonly size: Bytes } | undefined
}

/** An object to seal, its data, and what it is in the image that it goes back to. */
export type ObjectToSeal =
  | { readonly object: SifObject; readonly data: Buffer; readonly place: KeptObject }
  | { readonly added: NewObject; readonly data: Buffer }

/** The small SIF that holds these objects, each in its slot and with its ID. */
function encodeObjects(objects: readonly ObjectToSeal[], time: number): Buffer {
  const slots = objects.reduce(
    (most, one) => Math.max(most, "place" in one ? one.place.slot + 1 : 0),
    objects.length,
  )
  const layout = new SifLayout(time, undefined, { slots })
  const offsets = objects.map((one) => {
    const offset = layout.next()
    if ("added" in one) layout.add(one.added, one.data.length)
    else layout.keep(one.object, one.place, one.data.length)
    return offset
  })
  const bytes = Buffer.alloc(layout.size)
  layout.serialize("00").copy(bytes)
  objects.forEach(({ data }, i) => data.copy(bytes, offsets[i]))
  return bytes
}

/** Where in a trailer the partition's length has to be put once it is known (a multiple of 4096): 8 bytes, little endian. */
export function lengthFields(trailer: Buffer): number[] {
  const footer = trailer.length - BLOCK
  const fields = trailer.readBigUInt64LE(footer + SIZE_AT) === 0n ? [LENGTH_AT] : [LENGTH_AT, OFFSET_AT]
  return fields.map((at) => footer + at)
}

/**
 * What to write behind a partition of `length` bytes, at the next multiple of 4096.
 *
 * @param length - undefined: not known yet, see {@link lengthFields}.
 * @throws SifError `ERR_SIF_TOO_LARGE`.
 */
export function encodeTrailer(
  length: Bytes | undefined,
  objects: readonly ObjectToSeal[],
  time: number,
): Buffer {
  const sif = objects.length === 0 ? Buffer.alloc(0) : encodeObjects(objects, time)
  if (sif.length > MAX_SEALED_SIZE)
    throw new SifError(
      "ERR_SIF_TOO_LARGE",
      `the metadata has ${sif.length} bytes, more than the ${MAX_SEALED_SIZE} that can be sealed`,
    )
  const trailer = Buffer.alloc(alignUp(sif.length, BLOCK) + BLOCK)
  sif.copy(trailer)
  const footer = trailer.subarray(trailer.length - BLOCK)
  MAGIC.copy(footer)
  footer.writeUInt32LE(VERSION, VERSION_AT)
  footer.writeBigUInt64LE(BigInt(sif.length), SIZE_AT)
  if (length === undefined) return trailer
  footer.writeBigUInt64LE(BigInt(length), LENGTH_AT)
  if (sif.length > 0) footer.writeBigUInt64LE(BigInt(alignUp(length, BLOCK)), OFFSET_AT)
  return trailer
}

/** A partition's plaintext, and where the squashfs in it ends, padded to 4096. */
export interface Plaintext {
  readonly reader: Pick<ByteReader, "size" | "read">
  readonly squashfsSize: Bytes
}

/** Borrows the tree. */
export function plaintextOf(tree: Tree): Plaintext {
  const { plainSize, squashfsSize } = tree
  return { reader: { size: plainSize, read: (at, length) => tree.readPlain(at, length) }, squashfsSize }
}

function malformed(path: string, what: string, cause?: unknown): SifError {
  return SifError.at(path, "ERR_SIF_SEALED", `what is sealed in the partition is malformed: ${what}`, {
    cause,
  })
}

/**
 * Reads the footer at the end of a plaintext; undefined: there is none, as in what the peers write.
 *
 * @param path - For messages.
 * @throws SifError `ERR_SIF_SEALED` when it starts as one and is none.
 */
export async function readFooter(plaintext: Plaintext, path: string): Promise<Footer | undefined> {
  const { reader, squashfsSize } = plaintext
  const end = reader.size - BLOCK
  // What belongs to the squashfs is no footer, whatever it says.
  if (!Number.isSafeInteger(squashfsSize) || end < squashfsSize) return undefined
  const footer = await reader.read(end, BLOCK)
  if (!footer.subarray(0, MAGIC.length).equals(MAGIC)) return undefined
  const version = footer.readUInt32LE(VERSION_AT)
  if (version !== VERSION) throw malformed(path, `version ${version} is not known (${VERSION} is)`)
  if (footer.readUInt32LE(VERSION_AT + 4) !== 0 || footer.subarray(USED).some((byte) => byte !== 0))
    throw malformed(path, "bytes that should be zero are not")
  const number = (at: number): number => Number(footer.readBigUInt64LE(at))
  const length = number(LENGTH_AT)
  const offset = number(OFFSET_AT)
  const size = number(SIZE_AT)
  // The squashfs may lack up to 4095 bytes of its padding.
  if (!(length > squashfsSize - BLOCK && length <= end))
    throw malformed(path, `a partition of ${length} bytes`)
  if (offset === 0 && size === 0) return { length, sealed: undefined }
  if (size > MAX_SEALED_SIZE)
    throw malformed(path, `${size} bytes are more than the ${MAX_SEALED_SIZE} that are read`)
  if (offset % BLOCK !== 0 || offset < length || !(offset + size <= end) || size === 0)
    throw malformed(path, `${size} bytes at ${offset}`)
  return { length, sealed: { offset, size } }
}

/**
 * The sealed objects, as an image in memory; undefined: there are none.
 *
 * @throws SifError `ERR_SIF_SEALED`.
 */
export async function readSealed(
  plaintext: Plaintext,
  footer: Footer | undefined,
  path: string,
): Promise<SifImage | undefined> {
  if (footer?.sealed === undefined) return undefined
  const { offset, size } = footer.sealed
  const bytes = Buffer.alloc(size)
  for (let at = 0; at < size; at += PIECE)
    (await plaintext.reader.read(offset + at, Math.min(PIECE, size - at))).copy(bytes, at)
  try {
    const image = await readSif(new BufferReader(bytes), path)
    const other = image.objects.find((object) => !isMetadata(object))
    if (other !== undefined) throw malformed(path, `object ${other.id} is no metadata`)
    return image
  } catch (cause) {
    if (!(cause instanceof SifError) || cause.code === "ERR_SIF_SEALED") throw cause
    throw malformed(path, cause.message, cause)
  }
}
