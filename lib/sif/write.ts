// Writes new images, around data that lies in place already. (change.ts changes finished ones.)
import { randomUUID } from "node:crypto"
import type { FileHandle } from "node:fs/promises"
import { SifError } from "../errors.ts"
import { alignUp, type Bytes } from "../units.ts"
import {
  changeDescriptor,
  DEFAULT_SLOTS,
  DEFAULT_TABLE_OFFSET,
  DESCRIPTOR_SIZE,
  LAUNCH_SCRIPT,
  serializeDescriptor,
  serializeHeader,
  type SifLink,
  type SifObject,
} from "./format.ts"

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

/** What an image takes over from the one that it is made of. */
export interface LayoutOptions {
  /** Seconds since 1970; default the time of everything else. */
  readonly created?: number | undefined
  /** Default: what peers write. */
  readonly launchScript?: string | undefined
  /** Of the table, at least; default what peers write. */
  readonly slots?: number | undefined
  /** Places that {@link SifLayout.add} leaves free: whoever was there comes, or comes back one day. */
  readonly reserved?: readonly { readonly slot: number; readonly id: number }[] | undefined
}

/** What changes when an object of another image is kept: where it stands, and what that does to links. */
export interface KeptObject {
  readonly slot: number
  readonly id: number
  readonly link: SifLink
  /** Default: as they were. */
  readonly modified?: number
  readonly extra?: Buffer
}

/** The plan of a new image: objects get their places one after the other, header and table are made last. */
export class SifLayout {
  readonly #records = new Map<number, Buffer>()
  readonly #ids = new Set<number>()
  readonly #time: number
  readonly #id: string
  readonly #options: LayoutOptions
  readonly #reservedSlots: ReadonlySet<number>
  readonly #reservedIds: ReadonlySet<number>
  readonly #slots: number
  #end: Bytes

  /**
   * @param time - Seconds since 1970, for every new object and the image.
   * @param id - A UUID; random by default.
   */
  constructor(time: number, id: string = randomUUID(), options: LayoutOptions = {}) {
    this.#time = time
    this.#id = id
    this.#options = options
    this.#reservedSlots = new Set(options.reserved?.map(({ slot }) => slot))
    this.#reservedIds = new Set(options.reserved?.map(({ id }) => id))
    this.#slots = Math.max(DEFAULT_SLOTS, options.slots ?? 0)
    this.#end = this.#dataOffset
  }

  get #dataOffset(): Bytes {
    return DEFAULT_TABLE_OFFSET + this.#slots * DESCRIPTOR_SIZE
  }

  /** Where the next object's data goes. */
  next(alignment: Bytes = 1): Bytes {
    return alignUp(this.#end, alignment)
  }

  #place(size: Bytes, alignment: Bytes): { offset: Bytes; size: Bytes; paddedSize: Bytes } {
    const offset = this.next(alignment)
    const paddedSize = offset - this.#end + size
    this.#end = offset + size
    return { offset, size, paddedSize }
  }

  #isTaken(slot: number, id: number): boolean {
    const slots = [this.#records, this.#reservedSlots]
    return slots.some((some) => some.has(slot)) || [this.#ids, this.#reservedIds].some((some) => some.has(id))
  }

  /** Records an object whose `size` bytes lie at {@link next}(alignment). Returns its ID. */
  add(object: NewObject, size: Bytes, alignment: Bytes = 1): number {
    let slot = 0
    while (this.#isTaken(slot, slot + 1)) slot++
    if (slot >= this.#slots)
      throw new SifError("ERR_SIF_FULL", `an image holds at most ${this.#slots} objects`)
    const id = slot + 1
    const record = serializeDescriptor({
      type: object.type,
      id,
      group: object.group ?? 1,
      link: object.link ?? { to: "none" },
      ...this.#place(size, alignment),
      time: this.#time,
      name: object.name ?? "",
      extra: object.extra ?? Buffer.alloc(0),
    })
    this.#put(slot, id, record)
    return id
  }

  /** Records an object of another image, whose `size` bytes lie at {@link next}(alignment). */
  keep(object: SifObject, kept: KeptObject, size: Bytes, alignment: Bytes = 1): void {
    const { slot, ...change } = kept
    const record = Buffer.from(object.record)
    changeDescriptor(record, { ...change, ...this.#place(size, alignment) })
    this.#put(slot, kept.id, record)
  }

  #put(slot: number, id: number, record: Buffer): void {
    if (slot >= this.#slots || this.#records.has(slot) || this.#ids.has(id))
      throw new RangeError(`slot ${slot} or ID ${id} is taken`)
    this.#records.set(slot, record)
    this.#ids.add(id)
  }

  /** The image's size so far. */
  get size(): Bytes {
    return this.#end
  }

  /** Everything before the data: header, gap and table. */
  serialize(arch: string): Buffer {
    const { created = this.#time, launchScript = LAUNCH_SCRIPT } = this.#options
    const bytes = Buffer.alloc(this.#dataOffset)
    serializeHeader({
      launchScript,
      version: "01",
      arch,
      id: this.#id,
      created,
      modified: this.#time,
      free: this.#slots - this.#records.size,
      total: this.#slots,
      tableOffset: DEFAULT_TABLE_OFFSET,
      tableSize: this.#slots * DESCRIPTOR_SIZE,
      dataOffset: this.#dataOffset,
      dataSize: this.#end - this.#dataOffset,
    }).copy(bytes)
    for (const [slot, record] of this.#records)
      record.copy(bytes, DEFAULT_TABLE_OFFSET + slot * DESCRIPTOR_SIZE)
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
