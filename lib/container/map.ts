// An image as a map: what lies where in the file, down to keyslots and tables, as far as anyone can tell who has no key.
import { fstatSync, read } from "node:fs"
import { promisify } from "node:util"
import * as is from "../arguments.ts"
import { findConfig } from "../device/gocryptfs.ts"
import { parseLuksHeader, UNLIMITED } from "../device/luks-header.ts"
import { squashfsParts } from "../device/squashfs-layout.ts"
import { ContainerError, SifError } from "../errors.ts"
import { plainRange } from "../encryption/encryption-format.ts"
import { partitionKind } from "../encryption/partition.ts"
import { Output } from "../file/output.ts"
import { DataType, DESCRIPTOR_SIZE, HEADER_SIZE, type SifObject, type SifPartition } from "../sif/format.ts"
import { listJson, type ObjectJson } from "../sif/listing.ts"
import { SifImage } from "../sif/open.ts"
import type { ByteReader } from "../sif/source.ts"
import { isVerity } from "../sif/verity.ts"
import { alignUp, type Bytes } from "../units.ts"
import { openImagePath, type BareRoot } from "./image-root.ts"
import { svgOf, textOf } from "./map-picture.ts"

/**
 * What a part is to somebody without a key: `structure` says where things are, `readable` is content that anyone reads,
 * `encrypted` is content that nobody does, `key` leads to the key, `signature` says who made it, `unused` is none of these.
 */
export type MapKind = "structure" | "readable" | "encrypted" | "key" | "signature" | "unused"

/** A part of an image. */
export interface MapPart {
  readonly kind: MapKind
  readonly name: string
  /** What else there is to say; may be empty. */
  readonly detail: string
  /** In the file. */
  readonly offset: Bytes
  readonly size: Bytes
  /** Of an object of a SIF. */
  readonly id?: number
  /** Why nothing is known of what is in it, where something should be. */
  readonly problem?: string
  /** What it is made of, in the order of the file and without gaps; empty: it is one piece. */
  readonly parts: readonly MapPart[]
}

/** How {@link ImageMap.text} writes. */
export interface MapTextOptions {
  /** Of the terminal: there are bars then, and a picture of the whole file. Without it lines are as long as they are. */
  readonly columns?: number | undefined
  /** Colours of the terminal. */
  readonly colors?: boolean | undefined
}

const checkText: is.Check<MapTextOptions> = is.shape<MapTextOptions>({
  columns: is.whole(20, 10_000),
  colors: is.flag,
})

/** How {@link ImageMap.save} writes. */
export interface SaveMapOptions {
  /** Replace a file that is there. */
  readonly force?: boolean | undefined
}

const checkSave: is.Check<SaveMapOptions> = is.shape<SaveMapOptions>({ force: is.flag })

/** Where everything in an image lies. */
export class ImageMap {
  readonly path: string
  readonly size: Bytes
  /** What of it takes place on the disk: holes do not. */
  readonly stored: Bytes
  /** In the order of the file and without gaps. */
  readonly parts: readonly MapPart[]

  /** @internal Use {@link mapImage}. */
  constructor(image: string, size: Bytes, stored: Bytes, parts: readonly MapPart[]) {
    this.path = image
    this.size = size
    this.stored = stored
    this.parts = parts
  }

  /** For a terminal, or for whoever reads lines: a part each. Widths grow with the cube root of sizes. */
  text(options: MapTextOptions = {}): string {
    return textOf(this, checkText(options, "options"))
  }

  /** As a picture: SVG that needs nothing else. */
  svg(): string {
    return svgOf(this)
  }

  /**
   * Writes {@link ImageMap.svg} into a file, which appears whole or not at all.
   *
   * @throws BuildError `ERR_BUILD_EXISTS`, `ERR_BUILD_OUTPUT`.
   */
  async save(output: string, options: SaveMapOptions = {}): Promise<void> {
    is.path(output, "output")
    const { force = false } = checkSave(options, "options")
    await using file = await Output.create(output, force, 0o666)
    await file.write(Buffer.from(this.svg()), 0)
    await file.publish(force)
  }
}

/** Partitions of an image whose inside is looked at: a table may have thousands that all want to be read. */
const MAX_INSIDES = 32
/** Images and squashfs end at a multiple of it. */
const BLOCK: Bytes = 4096

type Piece = Omit<MapPart, "parts"> & Partial<Pick<MapPart, "parts">>

/** The pieces, and what is between them; none overlaps another. */
function filled(
  pieces: readonly Piece[],
  start: Bytes,
  end: Bytes,
  gapName: (offset: Bytes, size: Bytes) => string,
): readonly MapPart[] {
  const found: MapPart[] = []
  let at = start
  const fill = (until: Bytes): void => {
    if (until <= at) return
    const size = until - at
    found.push({ kind: "unused", name: gapName(at, size), detail: "", offset: at, size, parts: [] })
  }
  for (const piece of pieces.filter(({ size }) => size > 0).toSorted((a, b) => a.offset - b.offset)) {
    fill(piece.offset)
    found.push({ parts: [], ...piece })
    at = piece.offset + piece.size
  }
  fill(end)
  return found
}

/** What is less than a block and ends with one is there for what follows. */
function betweenObjects(offset: Bytes, size: Bytes): string {
  return size < BLOCK && (offset + size) % BLOCK === 0 ? "padding" : "unused"
}

interface Place {
  readonly offset: Bytes
  readonly size: Bytes
}

async function insideLuks(reader: ByteReader, partition: Place): Promise<readonly MapPart[]> {
  const { offset: start, size } = partition
  // Nothing is derived of it, so it may ask for anything.
  const header = await parseLuksHeader(reader, partition, { limits: UNLIMITED })
  const { stored, segment } = header
  const copy = (name: string, number: 0 | 1): Piece => ({
    kind: "structure",
    name,
    detail: (number === 0) === (stored.current === "primary") ? "in force" : "",
    offset: start + number * stored.headerSize,
    size: stored.headerSize,
  })
  const keyslots = header.keyslots.flatMap(({ id, kdf, cost }): Piece[] => {
    const area = stored.areas.get(id)
    if (area === undefined) return []
    const { offset, size } = area
    return [
      { kind: "key", name: `keyslot ${id}`, detail: `${kdf.type}, ${cost}`, offset: start + offset, size },
    ]
  })
  const payload: Piece = {
    kind: "encrypted",
    name: "payload",
    detail: `${segment.cipher}, ${segment.keySize * 8} bit`,
    offset: start + segment.offset,
    size: segment.size,
  }
  const { keyslotsArea } = stored
  const slotsEnd = start + keyslotsArea.offset + keyslotsArea.size
  return filled(
    [copy("LUKS2 metadata", 0), copy("LUKS2 metadata, second copy", 1), ...keyslots, payload],
    start,
    start + size,
    (offset) => (offset < slotsEnd ? "room for keyslots" : "unused"),
  )
}

async function insideSquashfs(
  reader: Pick<ByteReader, "read">,
  { offset: start, size }: Place,
  image: string,
): Promise<readonly Piece[]> {
  const parts = await squashfsParts(
    (position, length) => reader.read(start + position, Math.min(length, size - position)),
    size,
    image,
  )
  return parts.map(({ name, offset, size: bytes }) => ({
    kind: name === "data" ? "readable" : "structure",
    name: name === "superblock" ? "squashfs superblock" : name,
    detail: name === "data" ? "files" : "",
    offset: start + offset,
    size: bytes,
  }))
}

function endOfSquashfs(offset: Bytes, size: Bytes): string {
  return alignUp(offset, BLOCK) === offset + size ? "padding" : "behind the squashfs"
}

async function insideGocryptfs(image: SifImage, partition: SifPartition): Promise<readonly MapPart[]> {
  const { offset: start, size } = partition
  const pieces = await insideSquashfs(image.reader, partition, image.path)
  const config = await findConfig(plainRange(image, partition), image.path)
  const split = pieces.flatMap((piece): Piece[] => {
    if (piece.kind !== "readable") return [piece]
    const data: Piece = { ...piece, kind: "encrypted", name: "payload", detail: "gocryptfs, aes-256-gcm" }
    const end = piece.offset + piece.size
    const at = start + (config?.offset ?? 0)
    if (config === undefined || at < piece.offset || at + config.size > end) return [data]
    const behind = at + config.size
    return [
      { ...data, size: at - data.offset },
      { kind: "key", name: "gocryptfs.conf", detail: "the wrapped key", offset: at, size: config.size },
      { ...data, offset: behind, size: end - behind },
    ]
  })
  return filled(split, start, start + size, endOfSquashfs)
}

async function inside(image: SifImage, partition: SifPartition): Promise<readonly MapPart[]> {
  switch (partitionKind(partition)) {
    case "luks":
      return await insideLuks(image.reader, partition)
    case "gocryptfs":
      return await insideGocryptfs(image, partition)
    case "squashfs": {
      const { offset, size } = partition
      const pieces = await insideSquashfs(image.reader, partition, image.path)
      return filled(pieces, offset, offset + size, endOfSquashfs)
    }
    case "other":
      return []
  }
}

function kindOf(object: SifObject): MapKind {
  switch (object.type) {
    case DataType.cryptoMessage:
      return "key"
    case DataType.signature:
      return "signature"
    case DataType.partition: {
      const { partition } = object
      const encrypted =
        partition !== undefined && ["luks", "gocryptfs"].includes(partitionKind({ ...object, partition }))
      return encrypted ? "encrypted" : "readable"
    }
    default:
      return isVerity(object) ? "signature" : "readable"
  }
}

function detailOf(json: ObjectJson, object: SifObject): string {
  const { link, group } = object
  const known = json.partition ?? json.cryptoMessage ?? json.sbom ?? {}
  const says = [
    ...Object.values(known).filter((word) => word !== "unknown"),
    json.signature?.hash ?? "",
    isVerity(object) ? "hash tree" : json.name,
    json.digest ?? "",
    link.to === "object" ? `of object ${link.id}` : link.to === "group" ? `of group ${link.group}` : "",
    // What a signature is about says it already.
    link.to !== "none" || group === 0 ? "" : `group ${group}`,
  ]
  return says.filter((word) => word !== "").join(", ")
}

async function objectParts(image: SifImage): Promise<readonly Piece[]> {
  const facts = listJson(image)
  const pieces: Piece[] = []
  let insides = 0
  for (const [i, object] of image.objects.entries()) {
    const { id, offset, size, partition } = object
    const json = facts[i]
    if (json === undefined) continue
    const piece: Piece = {
      kind: kindOf(object),
      name: json.type,
      detail: detailOf(json, object),
      offset,
      size,
      id,
    }
    if (partition === undefined || insides++ >= MAX_INSIDES) {
      pieces.push(piece)
      continue
    }
    try {
      pieces.push({ ...piece, parts: await inside(image, { ...object, partition }) })
    } catch (error) {
      // The map is also for those who want to know what is wrong with an image.
      if (!(error instanceof ContainerError)) throw error
      const { message } = error
      const prefix = `${image.path}: `
      const problem = message.startsWith(prefix) ? message.slice(prefix.length) : message
      pieces.push({ ...piece, problem })
    }
  }
  return pieces
}

async function sifParts(image: SifImage): Promise<readonly MapPart[]> {
  const { header, reader, objects } = image
  const table = header.total * DESCRIPTOR_SIZE
  const pieces: Piece[] = [
    {
      ...{ kind: "structure", name: "SIF header", detail: `version ${header.version}` },
      ...{ offset: 0, size: HEADER_SIZE },
    },
    {
      ...{ kind: "structure", name: "descriptors", detail: `${objects.length} of ${header.total} used` },
      ...{ offset: header.tableOffset, size: table },
    },
    ...(await objectParts(image)),
  ]
  return filled(pieces, 0, reader.size, betweenObjects)
}

async function bareParts({ path: image, fd, offset, size }: BareRoot): Promise<readonly MapPart[]> {
  const reader = {
    async read(position: Bytes, length: Bytes): Promise<Buffer> {
      const { bytesRead, buffer } = await promisify(read)(fd, Buffer.alloc(length), 0, length, position)
      return buffer.subarray(0, bytesRead)
    },
  }
  const launch: Piece = { kind: "structure", name: "launch line", detail: "", offset: 0, size: offset }
  const pieces = await insideSquashfs(reader, { offset, size }, image)
  return filled([launch, ...pieces], 0, offset + size, endOfSquashfs)
}

/**
 * Reads where everything in an image lies. No key is needed. A partition whose inside is malformed is one piece, with the reason;
 * of more than 32 partitions the others are, too.
 *
 * @throws SifError when it is not a well-formed SIF, or a folder; TreeError of a malformed squashfs file.
 */
export async function mapImage(image: string): Promise<ImageMap> {
  is.path(image, "image")
  await using opened = await openImagePath(image)
  if (!(opened instanceof SifImage) && opened.folder !== undefined)
    throw SifError.at(image, "ERR_SIF_MAGIC", "a folder has no layout")
  // As it was when it was opened: it may grow meanwhile.
  const size = opened instanceof SifImage ? opened.reader.size : opened.offset + opened.size
  const stored = Math.min(size, fstatSync(opened.fd).blocks * 512)
  const parts = opened instanceof SifImage ? await sifParts(opened) : await bareParts(opened)
  return new ImageMap(image, size, stored, parts)
}
