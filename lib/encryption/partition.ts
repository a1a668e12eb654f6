// What the primary partition of an image is.
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

/** The plain overlay that lies over a root file system: of its group, as the peers take it. */
export function overlayOf(objects: readonly SifObject[], root: SifPartition): SifPartition | undefined {
  return objects.find(
    (object): object is SifPartition =>
      object.partition?.type === PartitionType.overlay &&
      object.partition.fileSystem === FileSystem.ext3 &&
      object.group === root.group,
  )
}
