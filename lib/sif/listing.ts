// Tables as the peers print them, and the same as JSON.
import { printable } from "../printable.ts"
import type { Bytes } from "../units.ts"
import { DataType, type SifLink, type SifObject } from "./format.ts"
import {
  architectureName,
  dataTypeName,
  fileSystemName,
  hashName,
  messageFormatName,
  messageTypeName,
  partitionTypeName,
  sbomFormatName,
} from "./names.ts"
import { sifImage, type SifImage } from "./open.ts"

/** Go's zero time, the year 1: what the reference library writes for a time that is not set. */
const UNSET_TIME = -62_135_596_800

const NIL_UUID = "00000000-0000-0000-0000-000000000000"

/** Go's way to write a time; undefined when it is unset. */
function time(seconds: number): string | undefined {
  if (seconds === UNSET_TIME) return undefined
  const date = new Date(seconds * 1000)
  if (Number.isNaN(date.getTime())) return `${seconds} s since 1970`
  return date
    .toISOString()
    .replace(/^\+0?/, "")
    .replace("T", " ")
    .replace(/\.\d+Z$/, " +0000 UTC")
}

function typeText(object: SifObject): string {
  const { extra, partition } = object
  const name = dataTypeName(object.type)
  switch (object.type) {
    case DataType.partition:
      return partition === undefined
        ? name
        : `${name} (${fileSystemName(partition.fileSystem)}/${partitionTypeName(partition.type)}/${architectureName(partition.arch)})`
    case DataType.signature:
      return `${name} (${hashName(extra.readInt32LE(0))})`
    case DataType.cryptoMessage:
      return `${name} (${messageFormatName(extra.readInt32LE(0))}/${messageTypeName(extra.readInt32LE(4))})`
    case DataType.sbom:
      return `${name} (${sbomFormatName(extra.readInt32LE(0))})`
    default:
      return name
  }
}

function linkText(link: SifLink): string {
  switch (link.to) {
    case "none":
      return "NONE"
    case "object":
      return String(link.id)
    case "group":
      return `${link.group} (G)`
  }
}

/** To the nearest integer, a half to the even one, as Go's %.0f does. */
function rounded(value: number): number {
  const below = Math.floor(value)
  return value - below === 0.5 ? below + (below % 2) : Math.round(value)
}

/** A size as the peers show it: `27 KiB`. */
function sizeText(bytes: Bytes): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
  let value = bytes
  let unit = 0
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024
  return `${rounded(value)} ${units[unit] ?? ""}`
}

/** The object table. */
export function listText(image: SifImage): string {
  sifImage(image, "image")
  const rule = "-".repeat(78)
  const lines = [rule, "ID   |GROUP   |LINK    |SIF POSITION (start-end)  |TYPE", rule]
  for (const object of image.objects) {
    const position = `${object.offset}-${object.offset + object.size}`
    lines.push(
      [
        String(object.id).padEnd(5),
        (object.group === 0 ? "NONE" : String(object.group)).padEnd(8),
        (object.link.to === "group"
          ? `${String(object.link.group).padEnd(3)} (G)`
          : linkText(object.link)
        ).padEnd(8),
        position.padEnd(26),
        typeText(object),
      ].join("|"),
    )
  }
  return `${lines.join("\n")}\n`
}

/** One object of {@link listJson}. */
export interface ObjectJson {
  readonly id: number
  readonly type: string
  /** 0: none. */
  readonly group: number
  readonly link: SifLink
  readonly offset: Bytes
  readonly size: Bytes
  readonly name: string
  /** ISO 8601, or undefined when it is none that can be written so. */
  readonly created: string | undefined
  readonly modified: string | undefined
  readonly partition?: { readonly fileSystem: string; readonly type: string; readonly architecture: string }
  readonly cryptoMessage?: { readonly format: string; readonly type: string }
  readonly signature?: { readonly hash: string; readonly entity: string }
  readonly sbom?: { readonly format: string }
  readonly digest?: string
}

function isoTime(seconds: number): string | undefined {
  const date = new Date(seconds * 1000)
  return Number.isNaN(date.getTime()) ? undefined : date.toISOString()
}

function objectJson(object: SifObject): ObjectJson {
  const { extra, partition } = object
  const base: ObjectJson = {
    id: object.id,
    type: dataTypeName(object.type),
    group: object.group,
    link: object.link,
    offset: object.offset,
    size: object.size,
    name: object.name,
    created: isoTime(object.created),
    modified: isoTime(object.modified),
  }
  switch (object.type) {
    case DataType.partition:
      return partition === undefined
        ? base
        : {
            ...base,
            partition: {
              fileSystem: fileSystemName(partition.fileSystem),
              type: partitionTypeName(partition.type).replace("*System", "Primary system"),
              architecture: architectureName(partition.arch),
            },
          }
    case DataType.cryptoMessage:
      return {
        ...base,
        cryptoMessage: {
          format: messageFormatName(extra.readInt32LE(0)),
          type: messageTypeName(extra.readInt32LE(4)),
        },
      }
    case DataType.signature:
      return {
        ...base,
        signature: { hash: hashName(extra.readInt32LE(0)), entity: extra.toString("hex", 4, 24) },
      }
    case DataType.sbom:
      return { ...base, sbom: { format: sbomFormatName(extra.readInt32LE(0)) } }
    case DataType.ociRootIndex:
    case DataType.ociBlob:
      return { ...base, digest: printable(extra.toString("latin1").replace(/\0.*$/s, "")) }
    default:
      return base
  }
}

/** {@link listText} as data. */
export function listJson(image: SifImage): readonly ObjectJson[] {
  sifImage(image, "image")
  return image.objects.map(objectJson)
}

type Row = readonly [label: string, value: string | number | undefined]

/** Labels and values, those that are not there left out. */
function table(rows: readonly Row[], indent: string, gap: number): string {
  const shown = rows.filter(([, value]) => value !== undefined && value !== "")
  const width = Math.max(...shown.map(([label]) => label.length)) + 1 + gap
  return shown
    .map(([label, value]) => `${indent}${`${label}:`.padEnd(width)}${printable(String(value))}\n`)
    .join("")
}

/** The global header. */
export function headerText(image: SifImage): string {
  sifImage(image, "image")
  const { header } = image
  const architecture = architectureName(header.arch)
  return table(
    [
      ["Launch Script", header.launchScript.trimEnd()],
      ["Version", header.version],
      ["Primary Architecture", architecture === "unknown" ? undefined : architecture],
      ["ID", header.id === NIL_UUID ? undefined : header.id],
      ["Created At", time(header.created)],
      ["Modified At", time(header.modified)],
      ["Descriptors Free", header.free],
      ["Descriptors Total", header.total],
      ["Descriptors Offset", header.tableOffset],
      ["Descriptors Size", sizeText(header.tableSize)],
      ["Data Offset", header.dataOffset],
      ["Data Size", sizeText(header.dataSize)],
    ],
    "",
    1,
  )
}

/** {@link headerText} as data. */
export function headerJson(image: SifImage): Readonly<Record<string, string | number | undefined>> {
  sifImage(image, "image")
  const { header } = image
  return {
    launchScript: header.launchScript,
    version: header.version,
    architecture: architectureName(header.arch),
    id: header.id,
    created: isoTime(header.created),
    modified: isoTime(header.modified),
    descriptorsFree: header.free,
    descriptorsTotal: header.total,
    descriptorsOffset: header.tableOffset,
    descriptorsSize: header.tableSize,
    dataOffset: header.dataOffset,
    dataSize: header.dataSize,
  }
}

/** One descriptor. */
export function infoText(image: SifImage, id: number): string {
  sifImage(image, "image")
  const object = image.object(id)
  const { partition, cryptoMessage, signature, sbom, digest, type } = objectJson(object)
  // A signature by a bare key names nobody: zeros.
  const entity = signature === undefined || /^0*$/.test(signature.entity) ? undefined : signature.entity
  return table(
    [
      ["Data Type", type],
      ["ID", object.id],
      ["Group ID", object.group === 0 ? "NONE" : object.group],
      ["Linked ID", linkText(object.link)],
      ["Offset", object.offset],
      ["Size", object.size],
      ["Created At", time(object.created)],
      ["Modified At", time(object.modified)],
      ["Name", object.name],
      ["Filesystem Type", partition?.fileSystem],
      ["Partition Type", object.partition && partitionTypeName(object.partition.type)],
      ["Architecture", partition?.architecture],
      ["Format Type", cryptoMessage?.format],
      ["Message Type", cryptoMessage?.type],
      ["Hash Type", signature?.hash],
      ["Entity", entity?.toUpperCase()],
      ["Format", sbom?.format],
      ["Digest", digest],
    ],
    "  ",
    2,
  )
}

/** {@link infoText} as data. */
export function infoJson(image: SifImage, id: number): ObjectJson {
  sifImage(image, "image")
  return objectJson(image.object(id))
}

/**
 * An object's data, piece by piece.
 *
 * @throws SifError `ERR_SIF_NO_OBJECT`, `ERR_SIF_TRUNCATED`.
 */
export async function* dump(image: SifImage, id: number): AsyncGenerator<Buffer, void, undefined> {
  sifImage(image, "image")
  const object = image.object(id)
  const piece = 1 << 20
  if (object.size === 0) return
  let done = 0
  // A size that no object has is refused by whoever reads it.
  do {
    yield await image.read(object, done, Math.min(piece, object.size - done))
    done += piece
  } while (done < object.size)
}
