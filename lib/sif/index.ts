/**
 * The table of a SIF image: read, listed and changed. Needs no key, and the native addon only to change it.
 *
 * @packageDocumentation
 */
export { openSif, SifImage } from "./open.ts"
export type { OpenSifOptions } from "./open.ts"
export { addObject, deleteObject } from "./change.ts"
export type { ChangeOptions } from "./change.ts"
export type { NewObject } from "./write.ts"
export { dump, headerJson, headerText, infoJson, infoText, listJson, listText } from "./listing.ts"
export type { ObjectJson } from "./listing.ts"
export { DataType, FileSystem, MessageFormat, MessageType, PartitionType } from "./format.ts"
export type { PartitionFacts, SifHeader, SifLink, SifObject, SifPartition } from "./format.ts"
export type { ByteReader } from "./source.ts"
