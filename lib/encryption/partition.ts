// What the partitions of an image are: the root file system, and what lies beside it.
import { SifError } from "../errors.ts"
import { FileSystem, PartitionType, type SifObject, type SifPartition } from "../sif/format.ts"

/** `luks`: LUKS2 around squashfs, or around the file system of an overlay; `gocryptfs`: gocryptfs inside squashfs; `other`: nothing that can be opened here. */
export type PartitionKind = "squashfs" | "luks" | "gocryptfs" | "other"

/** Does a key open it? */
export function isEncrypted(kind: PartitionKind): boolean {
  return kind === "luks" || kind === "gocryptfs"
}

export function partitionKind(partition: SifPartition): PartitionKind {
  switch (partition.partition.fileSystem) {
    case FileSystem.squashfs:
      return "squashfs"
    case FileSystem.encryptedSquashfs:
      return "luks"
    case FileSystem.gocryptfsSquashfs:
      return "gocryptfs"
    case FileSystem.raw:
      // What `overlay create --encrypt` makes; SIF has no name of its own for it.
      return partition.partition.type === PartitionType.overlay ? "luks" : "other"
    default:
      return "other"
  }
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
  throw new SifError("ERR_SIF_AMBIGUOUS", `${file}: the partitions ${ids.join(", ")} are all ${what}`, {
    path: file,
  })
}
