// Writes images: a new one around data that lies in place already, and single objects added to or taken from a finished one.
import { randomUUID } from "node:crypto"
import { open, type FileHandle } from "node:fs/promises"
import { SifError } from "../errors.ts"
import { alignUp, type Bytes } from "../units.ts"
import {
  changeHeader,
  DEFAULT_SLOTS,
  DEFAULT_TABLE_OFFSET,
  DESCRIPTOR_SIZE,
  HEADER_SIZE,
  LAUNCH_SCRIPT,
  PartitionType,
  serializeDescriptor,
  serializeHeader,
  type HeaderChange,
  type NewDescriptor,
  type SifLink,
  type SifObject,
} from "./format.ts"
import { named, readSif, type SifImage } from "./open.ts"
import type { ByteReader } from "./source.ts"

/** Where data starts in an image that we write. */
export const DATA_OFFSET: Bytes = DEFAULT_TABLE_OFFSET + DEFAULT_SLOTS * DESCRIPTOR_SIZE
/** Partitions start at multiples of this, as a loop device and direct I/O want it. */
export const PARTITION_ALIGNMENT: Bytes = 4096

/** What belongs into an object besides its place. */
export interface NewObject {
  readonly type: number
  /** Default: none for {@link addObject}, 1 in an image that is built. */
  readonly group?: number
  readonly link?: SifLink
  readonly name?: string
  readonly extra?: Buffer
}

/** The plan of a new image: objects get their places one after the other, header and table are made last. */
export class SifLayout {
  readonly #descriptors: NewDescriptor[] = []
  readonly #time: number
  readonly #id: string
  #end: Bytes = DATA_OFFSET

  /**
   * @param time - Seconds since 1970, for every object and the image.
   * @param id - A UUID; random by default.
   */
  constructor(time: number, id: string = randomUUID()) {
    this.#time = time
    this.#id = id
  }

  /** Where the next object's data goes. */
  next(alignment: Bytes = 1): Bytes {
    return alignUp(this.#end, alignment)
  }

  /** Records an object whose `size` bytes lie at {@link next}(alignment). Returns its ID. */
  add(object: NewObject, size: Bytes, alignment: Bytes = 1): number {
    const offset = this.next(alignment)
    const id = this.#descriptors.length + 1
    if (id > DEFAULT_SLOTS)
      throw new SifError("ERR_SIF_FULL", `an image holds at most ${DEFAULT_SLOTS} objects`)
    this.#descriptors.push({
      type: object.type,
      id,
      group: object.group ?? 1,
      link: object.link ?? { to: "none" },
      offset,
      size,
      paddedSize: offset - this.#end + size,
      time: this.#time,
      name: object.name ?? "",
      extra: object.extra ?? Buffer.alloc(0),
    })
    this.#end = offset + size
    return id
  }

  /** The image's size so far. */
  get size(): Bytes {
    return this.#end
  }

  /** Everything before the data: header, gap and table. */
  serialize(arch: string): Buffer {
    const bytes = Buffer.alloc(DATA_OFFSET)
    serializeHeader({
      launchScript: LAUNCH_SCRIPT,
      version: "01",
      arch,
      id: this.#id,
      created: this.#time,
      modified: this.#time,
      free: DEFAULT_SLOTS - this.#descriptors.length,
      total: DEFAULT_SLOTS,
      tableOffset: DEFAULT_TABLE_OFFSET,
      tableSize: DEFAULT_SLOTS * DESCRIPTOR_SIZE,
      dataOffset: DATA_OFFSET,
      dataSize: this.#end - DATA_OFFSET,
    }).copy(bytes)
    this.#descriptors.forEach((descriptor, slot) => {
      serializeDescriptor(descriptor).copy(bytes, DEFAULT_TABLE_OFFSET + slot * DESCRIPTOR_SIZE)
    })
    return bytes
  }
}

/** Writes all of `bytes`. */
export async function writeFully(file: FileHandle, bytes: Uint8Array, position: Bytes): Promise<void> {
  let done = 0
  while (done < bytes.length) {
    const { bytesWritten } = await file.write(bytes, done, bytes.length - done, position + done)
    done += bytesWritten
  }
}

/** A file handle as a reader; closing is the caller's. */
function readerOf(file: FileHandle, size: Bytes): ByteReader {
  return {
    size,
    read: async (position, length) => {
      const buffer = Buffer.alloc(Math.max(0, Math.min(length, size - position)))
      const { bytesRead } = await file.read(buffer, 0, buffer.length, position)
      return buffer.subarray(0, bytesRead)
    },
    async [Symbol.asyncDispose](): Promise<void> {
      // The handle is not ours.
    },
  }
}

async function withImage<T>(
  path: string,
  change: (image: SifImage, file: FileHandle) => Promise<T>,
): Promise<T> {
  const file = await open(path, "r+")
  try {
    const image = await readSif(readerOf(file, (await file.stat()).size), path)
    const result = await change(image, file)
    await file.sync()
    return result
  } catch (error) {
    throw named(error, path)
  } finally {
    await file.close()
  }
}

function freeSlot(image: SifImage): number {
  const used = new Set(image.objects.map(({ slot }) => slot))
  for (let slot = 0; slot < image.header.total; slot++) if (!used.has(slot)) return slot
  throw new SifError("ERR_SIF_FULL", `${image.path}: all ${image.header.total} descriptors are used`, {
    path: image.path,
  })
}

async function updateHeader(image: SifImage, file: FileHandle, change: HeaderChange): Promise<void> {
  const bytes = Buffer.from(await image.reader.read(0, HEADER_SIZE))
  changeHeader(bytes, change)
  await writeFully(file, bytes, 0)
}

function endOfTable(image: SifImage): Bytes {
  return image.header.tableOffset + image.header.total * DESCRIPTOR_SIZE
}

/** Where the data section starts: as the header says, if that makes sense. */
function startOfData(image: SifImage): Bytes {
  const { dataOffset } = image.header
  return dataOffset >= endOfTable(image) && dataOffset <= image.reader.size ? dataOffset : endOfTable(image)
}

/** How {@link addObject} and {@link deleteObject} stamp the image. */
export interface ChangeOptions {
  /** Seconds since 1970; default now. */
  readonly time?: number
}

const now = (): number => Math.floor(Date.now() / 1000)

/**
 * Appends an object to a finished image, in place: data first, then the table, then the header, so that a reader sees
 * the image before or after.
 *
 * @returns The new object's ID.
 * @throws SifError `ERR_SIF_FULL`, `ERR_SIF_AMBIGUOUS` for a second primary partition, or what {@link openSif} finds.
 */
export async function addObject(
  path: string,
  object: NewObject,
  data: Uint8Array,
  options: ChangeOptions = {},
): Promise<number> {
  return await withImage(path, async (image, file) => {
    const { header } = image
    const slot = freeSlot(image)
    const extra = object.extra ?? Buffer.alloc(0)
    const primary = extra.length >= 8 && extra.readInt32LE(4) === PartitionType.primarySystem
    if (
      object.type === 0x4004 &&
      primary &&
      image.objects.some((o) => o.partition?.type === PartitionType.primarySystem)
    )
      throw new SifError("ERR_SIF_AMBIGUOUS", `${path}: there is a primary system partition already`, {
        path,
      })
    const start = startOfData(image)
    const end = image.objects.reduce((last, { offset, size }) => Math.max(last, offset + size), start)
    const offset = alignUp(end, object.type === 0x4004 ? PARTITION_ALIGNMENT : 1)
    const time = options.time ?? now()
    const id = slot + 1
    if (image.objects.some((other) => other.id === id))
      throw new SifError("ERR_SIF_DESCRIPTOR", `${path}: the ID ${id} of the free descriptor is taken`, {
        path,
      })
    const descriptor = serializeDescriptor({
      type: object.type,
      id,
      group: object.group ?? 0,
      link: object.link ?? { to: "none" },
      offset,
      size: data.length,
      paddedSize: offset - end + data.length,
      time,
      name: object.name ?? "",
      extra,
    })
    await writeFully(file, data, offset)
    await file.sync()
    await writeFully(file, descriptor, header.tableOffset + slot * DESCRIPTOR_SIZE)
    await updateHeader(image, file, {
      arch: primary && object.type === 0x4004 ? extra.toString("latin1", 8, 10) : header.arch,
      modified: time,
      free: header.total - image.objects.length - 1,
      dataSize: offset + data.length - start,
    })
    return id
  })
}

async function zero(file: FileHandle, object: SifObject): Promise<void> {
  const chunk = Buffer.alloc(1 << 20)
  for (let done = 0; done < object.size; done += chunk.length)
    await writeFully(
      file,
      chunk.subarray(0, Math.min(chunk.length, object.size - done)),
      object.offset + done,
    )
}

/**
 * Takes an object out of an image, in place. Its data is overwritten with zeros, since a deleted object stays readable
 * otherwise, and the file is cut after the last object that remains.
 *
 * @throws SifError `ERR_SIF_NO_OBJECT`, or what {@link openSif} finds.
 */
export async function deleteObject(path: string, id: number, options: ChangeOptions = {}): Promise<void> {
  await withImage(path, async (image, file) => {
    const { header } = image
    const object = image.object(id)
    const rest = image.objects.filter((other) => other !== object)
    await zero(file, object)
    await writeFully(file, Buffer.alloc(DESCRIPTOR_SIZE), header.tableOffset + object.slot * DESCRIPTOR_SIZE)
    const start = startOfData(image)
    const end = rest.reduce((last, { offset, size }) => Math.max(last, offset + size), start)
    await updateHeader(image, file, {
      arch: object.partition?.type === PartitionType.primarySystem ? "00" : header.arch,
      modified: options.time ?? now(),
      free: header.total - rest.length,
      dataSize: end - start,
    })
    await file.truncate(end)
  })
}
