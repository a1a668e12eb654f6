// Writes new images, around data that lies in place already. (change.ts changes finished ones.)
import { randomUUID } from "node:crypto"
import type { FileHandle } from "node:fs/promises"
import { SifError } from "../errors.ts"
import { alignUp, type Bytes } from "../units.ts"
import {
  DEFAULT_SLOTS,
  DEFAULT_TABLE_OFFSET,
  DESCRIPTOR_SIZE,
  LAUNCH_SCRIPT,
  serializeDescriptor,
  serializeHeader,
  type NewDescriptor,
  type SifLink,
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
