// What the primary partition of an image is.
import { FileSystem, PartitionType, type SifPartition } from "../sif/format.ts"

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
