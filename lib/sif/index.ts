/**
 * The table of a SIF image: read, listed and changed. Needs no key and no native addon.
 *
 * @packageDocumentation
 */
export { openSif, SifImage } from "./open.ts"
export type { OpenSifOptions } from "./open.ts"
export { addObject, deleteObject } from "./write.ts"
export type { ChangeOptions, NewObject } from "./write.ts"
export { dump, headerJson, headerText, infoJson, infoText, listJson, listText } from "./listing.ts"
export type { ObjectJson } from "./listing.ts"
export { DataType, FileSystem, MessageFormat, MessageType, PartitionType } from "./format.ts"
export type { PartitionFacts, SifHeader, SifLink, SifObject, SifPartition } from "./format.ts"
export type { ByteReader } from "./source.ts"
