// Changes a finished image in place. Whoever changes holds a lock; each step is one write that either happened or did not,
// so that a change which is killed leaves the image as it was before or after a step, and never in between: an object's data
// and record are on the disk before the one byte is written that makes it an object, and that byte goes before they do.
import * as is from "../arguments.ts"
import { open, stat, type FileHandle } from "node:fs/promises"
import { lockOpenFile, type HeldFile } from "../native/lock.ts"
import { SifError } from "../errors.ts"
import { alignUp, type Bytes } from "../units.ts"
import {
  changeHeader,
  DataType,
  DESCRIPTOR_SIZE,
  HEADER_SIZE,
  parseDescriptor,
  PARTITION_TYPE_AT,
  PartitionType,
  serializeDescriptor,
  USED_AT,
  type SifLink,
  type SifObject,
  type SifPartition,
} from "../sif/format.ts"
import { named, readSif, type SifImage } from "../sif/open.ts"
import { PARTITION_ALIGNMENT, writeFully, type NewObject } from "../sif/write.ts"

/** The file of an image that is changed. */
export interface ChangeableFile {
  readonly fd: number
  size(): Promise<Bytes>
  read(position: Bytes, length: Bytes): Promise<Buffer>
  write(bytes: Uint8Array, position: Bytes): Promise<void>
  truncate(size: Bytes): Promise<void>
  sync(): Promise<void>
}

/** How a change stamps the image, and how long it waits for its turn. */
export interface ChangeOptions {
  /** Seconds since 1970; default now. */
  readonly time?: number | undefined
  /** How long to wait for somebody else who changes the same image; default 5000. */
  readonly patienceMs?: number | undefined
  readonly signal?: AbortSignal | undefined
}

/** How objects come, go, and become something else. */
export interface ObjectChangeOptions extends ChangeOptions {
  /** Also where signatures speak of it, which do not hold any more then. */
  readonly breakSignatures?: boolean | undefined
}

export const objectChangeRows: is.Rows<ObjectChangeOptions> = {
  time: is.count,
  patienceMs: is.milliseconds,
  signal: is.abortSignal,
  breakSignatures: is.flag,
}
export const checkObjectChange: is.Check<ObjectChangeOptions> = is.shape(objectChangeRows)
type LinkTo<K extends string> = Extract<SifLink, { readonly to: K }>
const link = is.variants<SifLink>({
  id: is.shape<LinkTo<"object">>({ to: is.required(is.oneOf("object")), id: is.required(is.count) }),
  group: is.shape<LinkTo<"group">>({ to: is.required(is.oneOf("group")), group: is.required(is.count) }),
  to: is.shape<LinkTo<"none">>({ to: is.required(is.oneOf("none")) }),
})
export const objectRows: is.Rows<NewObject> = {
  type: is.required(is.count),
  group: is.count,
  link,
  name: is.text,
  extra: is.buffer,
}
const checkObject = is.shape(objectRows)

/** Data that is made in place, in the file that is changed. */
export interface DataWriter {
  readonly size: Bytes
  /** Its place is a multiple of this. */
  readonly alignment: Bytes
  /** Writes all of it, and returns what belongs into the object's extra area. */
  write(position: Bytes): Promise<Buffer>
}

/** A new object and its data. */
export interface ObjectWithData extends NewObject {
  readonly data: Uint8Array | DataWriter
}

function sizeOf({ data }: ObjectWithData): Bytes {
  return data instanceof Uint8Array ? data.length : data.size
}

function alignmentOf({ type, data }: ObjectWithData): Bytes {
  if (!(data instanceof Uint8Array)) return data.alignment
  return type === DataType.partition ? PARTITION_ALIGNMENT : 1
}

const now = (): number => Math.floor(Date.now() / 1000)
const ZEROS: Buffer = Buffer.alloc(1 << 16)

function endOfTable({ header }: SifImage): Bytes {
  return header.tableOffset + header.total * DESCRIPTOR_SIZE
}

/** Where the data section starts: as the header says, if that makes sense. */
function startOfData(image: SifImage): Bytes {
  const { dataOffset } = image.header
  return dataOffset >= endOfTable(image) && dataOffset <= image.reader.size ? dataOffset : endOfTable(image)
}

/** Where the data of the last object ends. */
function endOfData(image: SifImage): Bytes {
  return image.objects.reduce((last, { offset, size }) => Math.max(last, offset + size), startOfData(image))
}

/** Tells whether a range has bytes in common with one of these. */
function overlapsAny(
  ranges: readonly { readonly offset: Bytes; readonly size: Bytes }[],
): (start: Bytes, end: Bytes) => boolean {
  const sorted = ranges.filter(({ size }) => size > 0).sort((a, b) => a.offset - b.offset)
  // Of each and all before it.
  let last = 0
  const ends = sorted.map(({ offset, size }) => (last = Math.max(last, offset + size)))
  return (start, end) => {
    let [low, high] = [0, sorted.length]
    while (low < high) {
      const middle = (low + high) >> 1
      if ((sorted[middle]?.offset ?? 0) < end) low = middle + 1
      else high = middle
    }
    return (ends[low - 1] ?? 0) > start
  }
}

/** An image while it is changed; {@link changeSif} makes and finishes it. */
export class SifChange {
  readonly #file: ChangeableFile
  readonly #time: number
  #image: SifImage
  #end: Bytes
  #tidy = false
  #removed = false
  #committed = false
  /** Slots that go again if the change fails. */
  readonly #added: number[] = []
  readonly #sizeBefore: Bytes

  private constructor(file: ChangeableFile, image: SifImage, time: number) {
    this.#file = file
    this.#image = image
    this.#time = time
    this.#end = endOfData(image)
    this.#sizeBefore = image.reader.size
  }

  /** @internal */
  static async begin(file: ChangeableFile, path: string, time: number): Promise<SifChange> {
    return new SifChange(file, await SifChange.#readTable(file, path), time)
  }

  /** @param used - Where zeros are read as the byte that makes an object. */
  static async #readTable(
    file: ChangeableFile,
    path: string,
    used: readonly Bytes[] = [],
  ): Promise<SifImage> {
    const size = await file.size()
    return await readSif(
      {
        size,
        fd: file.fd,
        read: async (position, length) => {
          const bytes = await file.read(position, Math.max(0, Math.min(length, size - position)))
          for (const at of used) if (at >= position && at < position + bytes.length) bytes[at - position] = 1
          return bytes
        },
        async [Symbol.asyncDispose](): Promise<void> {
          // The file is not ours.
        },
      },
      path,
    )
  }

  /** The image as it is now. */
  get image(): SifImage {
    return this.#image
  }

  async #reread(): Promise<void> {
    this.#image = await SifChange.#readTable(this.#file, this.#image.path)
  }

  #recordAt(slot: number): Bytes {
    return this.#image.header.tableOffset + slot * DESCRIPTOR_SIZE
  }

  async #zero(position: Bytes, length: Bytes): Promise<void> {
    for (let done = 0; done < length; done += ZEROS.length)
      await this.#file.write(ZEROS.subarray(0, Math.min(ZEROS.length, length - done)), position + done)
  }

  /** Clears up what killed changes left: records that are no objects, and the data they name if it is nobody else's. */
  async #tidyUp(): Promise<void> {
    if (this.#tidy) return
    this.#tidy = true
    const { header, objects, reader } = this.#image
    const table = await this.#file.read(header.tableOffset, header.total * DESCRIPTOR_SIZE)
    const used = new Set(objects.map(({ slot }) => slot))
    const isTaken = overlapsAny([
      { offset: 0, size: HEADER_SIZE },
      { offset: header.tableOffset, size: table.length },
      ...objects,
    ])
    for (let slot = 0; slot < header.total; slot++) {
      const record = table.subarray(slot * DESCRIPTOR_SIZE, (slot + 1) * DESCRIPTOR_SIZE)
      if (used.has(slot) || record.every((byte) => byte === 0)) continue
      record[USED_AT] = 1
      const left = parseDescriptor(record, slot)
      if (left === undefined) continue
      const { offset, size } = left
      const end = offset + size
      const sane = offset >= 0 && size > 0 && end <= reader.size
      if (sane && !isTaken(offset, end)) await this.#zero(offset, size)
      await this.#zero(this.#recordAt(slot), DESCRIPTOR_SIZE)
      this.#removed = true
    }
  }

  /**
   * Writes objects that nobody sees before {@link switchOn}: data, then records, in free slots that ascend in this order.
   *
   * @param after - Only slots behind this one.
   * @param together - Slots that are switched on by one write, if there are such.
   * @param room - That many free slots behind them shall be of that kind, too.
   * @returns Their slots.
   * @throws SifError `ERR_SIF_FULL`, `ERR_SIF_DESCRIPTOR`.
   */
  async append(
    objects: readonly ObjectWithData[],
    after: number = -1,
    together: boolean = false,
    room: number = 0,
  ): Promise<readonly number[]> {
    const { path, header } = this.#image
    const used = new Set([...this.#image.objects.map(({ slot }) => slot), ...this.#added])
    const free = Array.from({ length: header.total }, (_, slot) => slot).filter((slot) => !used.has(slot))
    const behind = free.filter((slot) => slot > after)
    const page = behind.map((slot) => this.#pageOf(slot))
    const start = together
      ? behind.findIndex((_, index) => page[index] === page[index + objects.length + room - 1])
      : 0
    const slots = behind.slice(Math.max(0, start), Math.max(0, start) + objects.length)
    if (slots.length < objects.length)
      throw new SifError(
        "ERR_SIF_FULL",
        free.length === 0
          ? `${path}: all ${header.total} descriptors are used`
          : `${path}: ${objects.length} free descriptors are needed, and of ${header.total} there are ${slots.length}`,
        { path },
      )
    const ids = new Set(this.#image.objects.map(({ id }) => id))
    let end = this.#end
    const planned = objects.map((object, index) => {
      const slot = slots[index] ?? 0
      const id = slot + 1
      if (ids.has(id))
        throw SifError.at(path, "ERR_SIF_DESCRIPTOR", `the ID ${id} of the free descriptor is taken`)
      const offset = alignUp(end, alignmentOf(object))
      const size = sizeOf(object)
      const descriptor = {
        type: object.type,
        id,
        group: object.group ?? 0,
        link: object.link ?? { to: "none" as const },
        offset,
        size,
        paddedSize: offset - end + size,
        time: this.#time,
        name: object.name ?? "",
        extra: object.extra ?? Buffer.alloc(0),
      }
      end = offset + size
      return { slot, descriptor, record: serializeDescriptor(descriptor), data: object.data }
    })
    await this.#tidyUp()
    const records = new Map<number, Buffer>()
    for (const { slot, descriptor, record, data } of planned) {
      const { offset } = descriptor
      records.set(slot, record)
      if (data instanceof Uint8Array) await this.#file.write(data, offset)
      else records.set(slot, serializeDescriptor({ ...descriptor, extra: await data.write(offset) }))
    }
    for (const record of records.values()) record[USED_AT] = 0
    this.#end = end
    await this.#file.sync()
    this.#added.push(...slots)
    for (const [slot, record] of records) await this.#file.write(record, this.#recordAt(slot))
    await this.#file.sync()
    return slots
  }

  /** Where the kernel keeps the byte that makes an object of a slot. */
  #pageOf(slot: number): number {
    return Math.floor((this.#recordAt(slot) + USED_AT) / PAGE_SIZE)
  }

  /** Makes objects of what was appended; those in one page of the file by one write, which no kill cuts in two. */
  async switchOn(slots: readonly number[]): Promise<void> {
    const pages = new Map<number, Bytes[]>()
    for (const slot of slots) {
      const page = this.#pageOf(slot)
      const places = pages.get(page) ?? []
      pages.set(page, places)
      places.push(this.#recordAt(slot) + USED_AT)
    }
    for (const places of pages.values()) {
      const [first, last] = [Math.min(...places), Math.max(...places)]
      const bytes = await this.#file.read(first, last - first + 1)
      for (const place of places) bytes[place - first] = 1
      await this.#file.write(bytes, first)
    }
    await this.#file.sync()
    await this.#reread()
  }

  /** The image as it will be when these slots are switched on. */
  async preview(slots: readonly number[]): Promise<SifImage> {
    const used = slots.map((slot) => this.#recordAt(slot) + USED_AT)
    return await SifChange.#readTable(this.#file, this.#image.path, used)
  }

  /** From here on, what was added stays even if the change fails. */
  commit(): void {
    this.#committed = true
  }

  /** Takes objects away: first from sight, then their data and records. */
  async remove(objects: readonly SifObject[]): Promise<void> {
    await this.#tidyUp()
    for (const { slot } of objects) await this.#file.write(Buffer.alloc(1), this.#recordAt(slot) + USED_AT)
    await this.#file.sync()
    for (const { offset, size } of objects) await this.#zero(offset, size)
    await this.#file.sync()
    for (const { slot } of objects) await this.#zero(this.#recordAt(slot), DESCRIPTOR_SIZE)
    this.#removed ||= objects.length > 0
    await this.#reread()
  }

  /**
   * Makes another system partition the primary one. Where both records lie in one page of the file that is one write, which no
   * kill cuts in two; otherwise there is none between the two writes, and it can be done again.
   */
  async setPrimary(next: SifPartition): Promise<void> {
    const former = this.#image.objects.filter(
      ({ partition }) => partition?.type === PartitionType.primarySystem,
    )
    const types = [
      ...former.map(({ slot }) => ({ slot, type: PartitionType.system })),
      { slot: next.slot, type: PartitionType.primarySystem },
    ].map(({ slot, type }) => ({ at: this.#recordAt(slot) + PARTITION_TYPE_AT, type }))
    const page = ({ at }: { readonly at: Bytes }): number => Math.floor((at + 3) / PAGE_SIZE)
    const together = new Set(types.map(page)).size === 1 ? [types] : types.map((one) => [one])
    for (const some of together) {
      const first = Math.min(...some.map(({ at }) => at))
      const last = Math.max(...some.map(({ at }) => at))
      const bytes = await this.#file.read(first, last - first + 4)
      for (const { at, type } of some) bytes.writeInt32LE(type, at - first)
      await this.#file.write(bytes, first)
      await this.#file.sync()
    }
    await this.#reread()
  }

  /** Counts in the header; readers do not rely on them. Cuts the file where something was taken from its end. */
  async finish(): Promise<void> {
    const { header, objects, reader } = this.#image
    const end = endOfData(this.#image)
    const primary = objects.find(({ partition }) => partition?.type === PartitionType.primarySystem)
    const bytes = Buffer.from(await reader.read(0, HEADER_SIZE))
    changeHeader(bytes, {
      arch: primary?.partition?.arch ?? "00",
      modified: this.#time,
      free: header.total - objects.length,
      dataSize: end - startOfData(this.#image),
    })
    await this.#file.write(bytes, 0)
    await this.#file.sync()
    if (!this.#removed || end >= reader.size) return
    await this.#file.truncate(end)
    await this.#file.sync()
  }

  /** Takes back what was added, after a failure. */
  async undo(): Promise<void> {
    if (this.#committed) return
    for (const slot of this.#added) await this.#file.write(Buffer.alloc(1), this.#recordAt(slot) + USED_AT)
    for (const slot of this.#added) await this.#zero(this.#recordAt(slot), DESCRIPTOR_SIZE)
    if ((await this.#file.size()) > this.#sizeBefore) await this.#file.truncate(this.#sizeBefore)
    await this.#file.sync()
  }
}

/** Runs `change` on a file that is locked already. */
export async function changeFile<T>(
  file: ChangeableFile,
  path: string,
  change: (image: SifChange) => Promise<T>,
  options: ChangeOptions = {},
): Promise<T> {
  const changing = await SifChange.begin(file, path, options.time ?? now())
  try {
    const result = await change(changing)
    await changing.finish()
    return result
  } catch (error) {
    try {
      await changing.undo()
    } catch (second) {
      throw new AggregateError([error, second], (error as Error).message, { cause: error })
    }
    throw error
  }
}

const PAGE_SIZE: Bytes = 4096

function changeable(file: FileHandle): ChangeableFile {
  return {
    fd: file.fd,
    size: async () => (await file.stat()).size,
    read: async (position, length) => {
      const buffer = Buffer.alloc(length)
      let done = 0
      while (done < length) {
        const { bytesRead } = await file.read(buffer, done, length - done, position + done)
        if (bytesRead === 0) break
        done += bytesRead
      }
      return buffer.subarray(0, done)
    },
    write: async (bytes, position) => {
      await writeFully(file, bytes, position)
    },
    truncate: async (size) => {
      await file.truncate(size)
    },
    sync: async () => {
      await file.sync()
    },
  }
}

interface LockedFile {
  readonly file: FileHandle
  readonly lock: HeldFile
}

/** The file under its lock; undefined: it is another one by now. */
async function openLocked(path: string, options: ChangeOptions): Promise<LockedFile | undefined> {
  const file = await open(path, "r+")
  let lock: HeldFile | undefined
  try {
    if (!(await file.stat()).isFile())
      throw SifError.at(path, "ERR_SIF_MAGIC", "not a SIF image: not a regular file")
    lock = await lockOpenFile(file.fd, true, options.patienceMs, options.signal)
    if (lock === undefined) throw SifError.at(path, "ERR_SIF_BUSY", "somebody else is changing it")
    const [ours, theirs] = [await file.stat(), await stat(path)]
    if (ours.dev === theirs.dev && ours.ino === theirs.ino) return { file, lock }
  } catch (error) {
    await file.close()
    await lock?.[Symbol.asyncDispose]()
    throw error
  }
  await file.close()
  await lock[Symbol.asyncDispose]()
  return undefined
}

/**
 * Changes an image in place, alone: others who want to change it wait. What `change` writes into the data of objects by
 * itself, it also syncs.
 *
 * @throws SifError `ERR_SIF_BUSY` when that takes too long, or what {@link openSif} finds; system errors.
 */
export async function changeSif<T>(
  path: string,
  change: (image: SifChange, file: FileHandle) => Promise<T>,
  options: ChangeOptions = {},
): Promise<T> {
  let locked: LockedFile | undefined
  while (locked === undefined) locked = await openLocked(path, options)
  const { file, lock } = locked
  try {
    return await changeFile(changeable(file), path, async (image) => await change(image, file), options)
  } catch (error) {
    throw named(error, path)
  } finally {
    await file.close()
    await lock[Symbol.asyncDispose]()
  }
}

/**
 * Is there a signature that speaks of one of these?
 *
 * @param objects - With their groups; a new one has no ID yet.
 * @throws SifError `ERR_SIF_SIGNED`.
 */
export function checkSignatures(
  { path, objects: all }: SifImage,
  objects: readonly { readonly id?: number; readonly group: number }[],
  { breakSignatures = false }: ObjectChangeOptions,
): void {
  if (breakSignatures) return
  const broken = all
    .filter(
      ({ type, link }) =>
        type === DataType.signature &&
        objects.some(({ id, group }) =>
          link.to === "group" ? group === link.group : link.to === "object" && link.id === id,
        ),
    )
    .map(({ id }) => id)
  if (broken.length > 0)
    throw SifError.at(
      path,
      "ERR_SIF_SIGNED",
      `${broken.length === 1 ? "the signature" : "the signatures"} ${broken.join(", ")} would not hold any more`,
    )
}

/** There is one primary partition, or none. */
export function checkPrimary({ path, objects }: SifImage, { type, extra }: NewObject): void {
  const primary =
    type === DataType.partition &&
    (extra?.length ?? 0) >= 8 &&
    extra?.readInt32LE(4) === PartitionType.primarySystem
  if (primary && objects.some(({ partition }) => partition?.type === PartitionType.primarySystem))
    throw SifError.at(path, "ERR_SIF_AMBIGUOUS", "there is a primary system partition already")
}

/**
 * Appends an object to a finished image, in place: a reader sees the image before or after.
 *
 * @returns The new object's ID.
 * @throws SifError `ERR_SIF_FULL`, `ERR_SIF_BUSY`, `ERR_SIF_SIGNED`, `ERR_SIF_AMBIGUOUS` for a second primary partition, or
 * what {@link openSif} finds.
 */
export async function addObject(
  path: string,
  given: NewObject,
  data: Uint8Array,
  asked: ObjectChangeOptions = {},
): Promise<number> {
  is.path(path, "path")
  const object = checkObject(given, "object")
  is.bytes(data, "data")
  const options = checkObjectChange(asked, "options")
  return await changeSif(
    path,
    async (change) => {
      checkPrimary(change.image, object)
      checkSignatures(change.image, [{ group: object.group ?? 0 }], options)
      const [slot = 0] = await change.append([{ ...object, data }])
      await change.switchOn([slot])
      return slot + 1
    },
    options,
  )
}

/**
 * Takes an object out of an image, in place. Its data is overwritten with zeros, since a deleted object stays readable
 * otherwise, and the file is cut after the last object that remains.
 *
 * @throws SifError `ERR_SIF_NO_OBJECT`, `ERR_SIF_BUSY`, `ERR_SIF_SIGNED`, or what {@link openSif} finds.
 */
export async function deleteObject(path: string, id: number, asked: ObjectChangeOptions = {}): Promise<void> {
  await changeObject(path, id, asked, async (change, object, options) => {
    checkSignatures(change.image, [object], options)
    await change.remove([object])
  })
}

/** Changes an object that is there already. */
export async function changeObject(
  path: string,
  id: number,
  asked: ObjectChangeOptions,
  body: (change: SifChange, object: SifObject, options: ObjectChangeOptions) => Promise<void>,
): Promise<void> {
  is.path(path, "path")
  is.count(id, "id")
  const options = checkObjectChange(asked, "options")
  await changeSif(path, (change) => body(change, change.image.object(id), options), options)
}
