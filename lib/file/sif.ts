/**
 * The table of a SIF image: read, listed and changed. Needs no key, and the native addon only to change it.
 *
 * @packageDocumentation
 */
export { openSif, SifImage } from "../sif/open.ts"
export type { OpenSifOptions } from "../sif/open.ts"
export { addObject, deleteObject } from "./image-change.ts"
export type { ChangeOptions, ObjectChangeOptions } from "./image-change.ts"
export { addFile, createSif, setPrimary } from "./sif-objects.ts"
export type { AddFileOptions, NewFileObject } from "./sif-objects.ts"
export type { NewObject } from "../sif/write.ts"
export { dump, headerJson, headerText, infoJson, infoText, listJson, listText } from "../sif/listing.ts"
export type { ObjectJson } from "../sif/listing.ts"
export { DataType, FileSystem, MessageFormat, MessageType, PartitionType } from "../sif/format.ts"
export type { PartitionFacts, SifHeader, SifLink, SifObject, SifPartition } from "../sif/format.ts"
export type { ByteReader } from "../sif/source.ts"
