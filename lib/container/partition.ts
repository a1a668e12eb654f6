// What the primary partition of an image is.
import { FileSystem, type SifPartition } from "../sif/format.ts"

/** `luks`: LUKS2 around squashfs; `gocryptfs`: gocryptfs inside squashfs; `other`: nothing that can be opened here. */
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
    default:
      return "other"
  }
}
