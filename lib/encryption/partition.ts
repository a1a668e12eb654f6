// What the partitions of an image are: the root file system, and what lies beside it.
import { SifError } from "../errors.ts"
import { FileSystem, PartitionType, type SifObject, type SifPartition } from "../sif/format.ts"
import type { EncryptionFormat, Format } from "./encryption-format.ts"
import { gocryptfs } from "./gocryptfs-format.ts"
import { luks } from "./luks-format.ts"

/** All that there are. */
export const formats: Readonly<Record<EncryptionFormat, Format>> = { luks, gocryptfs }

/** `luks`: LUKS2 around squashfs, or around the file system of an overlay; `gocryptfs`: gocryptfs inside squashfs; `other`: nothing that can be opened here. */
export type PartitionKind = "squashfs" | EncryptionFormat | "other"

function kindOf(partition: SifPartition): EncryptionFormat | undefined {
  return (Object.keys(formats) as EncryptionFormat[]).find((name) => formats[name].isIn(partition))
}

/** How the partition is encrypted; undefined: not, or in no way that is known here. */
export function encryptionOf(partition: SifPartition): Format | undefined {
  const name = kindOf(partition)
  return name && formats[name]
}

/** @throws SifError `ERR_SIF_PLAIN`: it is not encrypted, and has to be. */
export function refusePlain(path: string, what: string): never {
  throw SifError.at(path, "ERR_SIF_PLAIN", `${what} is not encrypted`)
}

export function partitionKind(partition: SifPartition): PartitionKind {
  if (partition.partition.fileSystem === FileSystem.squashfs) return "squashfs"
  return kindOf(partition) ?? "other"
}

/** The plain overlays of a root file system: of its group, as the peers take them. */
export function overlaysOf(objects: readonly SifObject[], root: SifPartition): SifPartition[] {
  return objects.filter(
    (object): object is SifPartition =>
      object.partition?.type === PartitionType.overlay &&
      object.partition.fileSystem === FileSystem.ext3 &&
      object.group === root.group,
  )
}

export function isPartition(object: SifObject): object is SifPartition {
  return object.partition !== undefined
}

/**
 * The one partition beside a root file system that is meant.
 *
 * @returns undefined where there is none.
 * @throws SifError `ERR_SIF_AMBIGUOUS` when there are several: which one is not for whoever put them there to choose.
 */
export function onlyPartition(
  file: string,
  what: string,
  found: readonly SifPartition[],
): SifPartition | undefined {
  if (found.length <= 1) return found[0]
  const ids = found.map(({ id }) => id)
  throw SifError.at(file, "ERR_SIF_AMBIGUOUS", `the partitions ${ids.join(", ")} are all ${what}`)
}
