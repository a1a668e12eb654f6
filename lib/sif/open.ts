// Reads the table of an image, strictly: what breaks a rule is an error before anything uses it.
import type { Stats } from "node:fs"
import { setImmediate } from "node:timers/promises"
import * as is from "../arguments.ts"
import { SifError } from "../errors.ts"
import type { Bytes } from "../units.ts"
import {
  checkHeader,
  checkMasks,
  DESCRIPTOR_SIZE,
  HEADER_SIZE,
  parseDescriptor,
  parseHeader,
  PartitionType,
  type SifHeader,
  type SifObject,
  type SifPartition,
} from "./format.ts"
import { BufferReader, FileReader, type ByteReader } from "./source.ts"

/** How {@link openSif} reads. */
export interface OpenSifOptions {
  /** Lists what can be read of a malformed table; such an image cannot be opened otherwise. */
  readonly lenient?: boolean | undefined
}

const checkOptions: is.Check<OpenSifOptions> = is.shape<OpenSifOptions>({ lenient: is.flag })

type SifParts = [
  path: string,
  header: SifHeader,
  objects: readonly SifObject[],
  reader: ByteReader,
  raw: { readonly header: Buffer; readonly table: Buffer },
]

/** The table of an image; its file stays open until this is disposed. */
export class SifImage implements AsyncDisposable {
  /** What the caller named it; for messages. */
  readonly path: string
  readonly header: SifHeader
  /** Used descriptors in slot order. */
  readonly objects: readonly SifObject[]
  readonly reader: ByteReader
  /** Header and table as they were read. */
  readonly #raw: { readonly header: Buffer; readonly table: Buffer }
  // A table has thousands of objects: who goes through all of them to find one, for each of them, takes minutes.
  #byId: ReadonlyMap<number, readonly SifObject[]> | undefined
  #byGroup: ReadonlyMap<number, readonly SifObject[]> | undefined
  #closed = false

  private constructor(...[path, header, objects, reader, raw]: SifParts) {
    this.path = path
    this.header = header
    this.objects = objects
    this.reader = reader
    this.#raw = raw
  }

  /** @internal Use {@link openSif}. */
  static of(...parts: SifParts): SifImage {
    return new SifImage(...parts)
  }

  /** The bytes that {@link SifImage.header} was parsed from. */
  get headerBytes(): Buffer {
    return this.#raw.header
  }

  /** @throws SifError `ERR_SIF_CLOSED`. */
  #needsOpen(): void {
    if (this.#closed) throw SifError.at(this.path, "ERR_SIF_CLOSED", "the image is closed")
  }

  /** The bytes that an object was parsed from: its descriptor. */
  descriptorBytes(object: SifObject): Buffer {
    return this.#raw.table.subarray(object.slot * DESCRIPTOR_SIZE, (object.slot + 1) * DESCRIPTOR_SIZE)
  }

  /** The open file. */
  get fd(): number {
    this.#needsOpen()
    if (this.reader.fd === undefined) throw new TypeError("an image in memory has no descriptor")
    return this.reader.fd
  }

  /** @throws SifError `ERR_SIF_NO_OBJECT`, or `ERR_SIF_AMBIGUOUS` in an image listed leniently. */
  object(id: number): SifObject {
    is.count(id, "id")
    this.#byId ??= grouped(this.objects, (object) => object.id)
    const [found, second] = this.#byId.get(id) ?? []
    if (found === undefined) throw SifError.at(this.path, "ERR_SIF_NO_OBJECT", `there is no object ${id}`)
    if (second !== undefined)
      throw SifError.at(this.path, "ERR_SIF_AMBIGUOUS", `several objects have the ID ${id}`)
    return found
  }

  /** What is in a group, in slot order; nothing where there is no such group. 0: what is in none. */
  group(number: number): readonly SifObject[] {
    this.#byGroup ??= grouped(this.objects, ({ group }) => group)
    return this.#byGroup.get(number) ?? []
  }

  /**
   * The one partition that holds the root file system.
   *
   * @throws SifError `ERR_SIF_NO_OBJECT` when there is none.
   */
  primary(): SifPartition {
    const found = this.objects.filter(isPrimary)
    if (found[0] === undefined)
      throw SifError.at(this.path, "ERR_SIF_NO_OBJECT", "there is no primary system partition")
    if (found.length > 1)
      throw SifError.at(this.path, "ERR_SIF_AMBIGUOUS", `there are ${found.length} primary system partitions`)
    return found[0]
  }

  /**
   * An object's data.
   *
   * @param limit - Bytes above which nothing is read.
   * @throws SifError `ERR_SIF_TOO_LARGE`, `ERR_SIF_TRUNCATED`.
   */
  async data(object: SifObject, limit: Bytes): Promise<Buffer> {
    is.number(0, Infinity)(limit, "limit")
    if (object.size > limit)
      throw SifError.at(
        this.path,
        "ERR_SIF_TOO_LARGE",
        `object ${object.id} has ${object.size} bytes, more than the ${limit} it may have`,
        { offset: object.offset },
      )
    return await this.read(object, 0, object.size)
  }

  /**
   * A piece of an object's data, which lies in the file even where the table was read leniently.
   *
   * @throws SifError `ERR_SIF_TRUNCATED`.
   */
  async read(object: SifObject, position: Bytes, length: Bytes): Promise<Buffer> {
    this.#needsOpen()
    const { offset, size } = object
    const inside = offset >= 0 && size >= 0 && offset + size <= this.reader.size
    const bytes = inside ? await this.reader.read(offset + position, length) : undefined
    if (bytes === undefined || bytes.length < length) throw truncated(this.path, object, this.reader.size)
    return bytes
  }

  /** Closes the file. Idempotent; what was listed stays, and reading is `ERR_SIF_CLOSED` from then on. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true
    await this.reader[Symbol.asyncDispose]()
  }
}

/** The objects by what `keyOf` says of each. */
export function grouped<K>(
  objects: readonly SifObject[],
  keyOf: (object: SifObject) => K,
): ReadonlyMap<K, readonly SifObject[]> {
  const groups = new Map<K, SifObject[]>()
  for (const object of objects) {
    const key = keyOf(object)
    const group = groups.get(key)
    if (group === undefined) groups.set(key, [object])
    else group.push(object)
  }
  return groups
}

/** What a listing is made of. */
export const sifImage: is.Check<SifImage> = is.instance(SifImage, "an image that openSif gave")

function isPrimary(object: SifObject): object is SifPartition {
  return object.partition?.type === PartitionType.primarySystem
}

function truncated(path: string, object: SifObject, fileSize: Bytes): SifError {
  return SifError.at(
    path,
    "ERR_SIF_TRUNCATED",
    `truncated: object ${object.id} ends at ${object.offset + object.size}, the file has ${fileSize} bytes`,
    { offset: object.offset },
  )
}

function checkObjects(path: string, header: SifHeader, objects: readonly SifObject[], fileSize: Bytes): void {
  const wrong = (object: SifObject, what: string): never => {
    throw SifError.at(path, "ERR_SIF_DESCRIPTOR", `descriptor ${object.slot + 1}: ${what}`)
  }
  const ids = new Set<number>()
  for (const object of objects) {
    if (object.id === 0) wrong(object, "ID 0")
    if (ids.has(object.id)) wrong(object, `ID ${object.id} is used twice`)
    ids.add(object.id)
    const { offset, size } = object
    if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(size) || offset < 0 || size < 0)
      wrong(object, `${size} bytes at ${offset}`)
    if (!Number.isSafeInteger(offset + size)) wrong(object, `${size} bytes at ${offset}`)
    if (offset + size > fileSize) throw truncated(path, object, fileSize)
  }
  const overlap = (a: string, b: string, offset: Bytes): never => {
    throw SifError.at(path, "ERR_SIF_OVERLAP", `${a} overlaps ${b}`, { offset })
  }
  const tableEnd = header.tableOffset + header.total * DESCRIPTOR_SIZE
  const byOffset = objects.filter(({ size }) => size > 0).sort((a, b) => a.offset - b.offset)
  let previous: SifObject | undefined
  for (const object of byOffset) {
    const end = object.offset + object.size
    if (object.offset < HEADER_SIZE) overlap(`object ${object.id}`, "the header", object.offset)
    if (object.offset < tableEnd && end > header.tableOffset)
      overlap(`object ${object.id}`, "the descriptor table", object.offset)
    if (previous !== undefined && object.offset < previous.offset + previous.size)
      overlap(`object ${object.id}`, `object ${previous.id}`, object.offset)
    previous = object
  }
  const primaries = objects.filter(isPrimary).length
  if (primaries > 1)
    throw SifError.at(path, "ERR_SIF_AMBIGUOUS", `there are ${primaries} primary system partitions`)
}

const SLOTS_AT_ONCE = 2048

/** Reads and checks the table through `reader`, which the image then owns. */
export async function readSif(
  reader: ByteReader,
  path: string,
  options: OpenSifOptions = {},
): Promise<SifImage> {
  const { head } = reader
  const read = async (offset: Bytes, size: Bytes): Promise<Buffer> =>
    head !== undefined && offset + size <= head.length
      ? head.subarray(offset, offset + size)
      : await reader.read(offset, size)
  const headerBytes = await read(0, HEADER_SIZE)
  const header = parseHeader(headerBytes)
  checkHeader(header, reader.size)
  const table = await read(header.tableOffset, header.total * DESCRIPTOR_SIZE)
  if (table.length < header.total * DESCRIPTOR_SIZE)
    throw SifError.at(path, "ERR_SIF_TRUNCATED", "truncated inside the descriptor table")
  const objects: SifObject[] = []
  for (let slot = 0; slot < header.total; slot++) {
    // A table may have 65,535 of them: who wants it to end is heard meanwhile.
    if (slot % SLOTS_AT_ONCE === SLOTS_AT_ONCE - 1) await setImmediate()
    const record = table.subarray(slot * DESCRIPTOR_SIZE, (slot + 1) * DESCRIPTOR_SIZE)
    const object = parseDescriptor(record, slot)
    if (object === undefined) continue
    if (options.lenient !== true) checkMasks(record, slot)
    objects.push(object)
  }
  if (options.lenient !== true) checkObjects(path, header, objects, reader.size)
  return SifImage.of(path, header, objects, reader, { header: headerBytes, table })
}

/**
 * Opens an image and reads its table.
 *
 * @param image - A path, or the image's bytes.
 * @throws SifError that names the first rule it breaks; a system error when the file cannot be read.
 */
export async function openSif(image: string | Uint8Array, given: OpenSifOptions = {}): Promise<SifImage> {
  const options = checkOptions(given, "options")
  if (typeof image === "string") is.path(image, "image")
  else is.bytes(image, "image")
  const path = typeof image === "string" ? image : "image"
  return await openReader(
    typeof image === "string" ? await openFile(image, image) : new BufferReader(image),
    path,
    options,
  )
}

/** The same of a file that is called something else than its path. */
export async function openSifAs(name: string, file: string): Promise<SifImage> {
  return await openReader(await openFile(file, name), name)
}

/** Reads and checks the table through `reader`, which is closed where that fails. */
export async function openReader(
  reader: ByteReader,
  path: string,
  options: OpenSifOptions = {},
): Promise<SifImage> {
  try {
    return await readSif(reader, path, options)
  } catch (error) {
    await reader[Symbol.asyncDispose]()
    throw named(error, path)
  }
}

/**
 * Opens a file that may be an image.
 *
 * @param before - What stat(2) says of it, where that is known.
 * @throws SifError where it is no regular file.
 */
export async function openFile(path: string, name: string, before?: Stats): Promise<FileReader> {
  try {
    return await FileReader.open(path, before)
  } catch (error) {
    throw named(error, name)
  }
}

/** The header's own errors know no path yet. */
export function named(error: unknown, path: string): unknown {
  if (!(error instanceof SifError) || error.path !== undefined) return error
  return SifError.at(path, error.code, error.message, { offset: error.offset })
}
