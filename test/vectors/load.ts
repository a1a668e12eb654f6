// Files made by other programs: what README.md here lists.
import { readFileSync } from "node:fs"
import path from "node:path"
import { gunzipSync } from "node:zlib"

/** Every image, by the name it is loaded with. */
export const images = [
  "sif/empty-launch-script.sif",
  "sif/one-object-crypt-message.sif",
  "sif/one-object-oci-blob.sif",
  "sif/one-group-signed-pgp.sif",
  "sif/one-group-signed-dsse.sif",
  "sif/two-groups-signed-legacy-all.sif",
  "sif/two-groups-signed-legacy-group.sif",
  "peer/plain.sif",
  "peer/luks-rsa2048.sif",
  "peer/gocryptfs-rsa2048.sif",
] as const

/** Where a file of this folder is. */
export function vectorPath(name: string): string {
  return path.join(import.meta.dirname, name)
}

const loaded = new Map<string, Buffer>()

/** A file's bytes, unpacked, in a buffer of the caller's own. */
export function vector(name: string): Buffer {
  let bytes = loaded.get(name)
  if (bytes === undefined) {
    bytes =
      name.startsWith("peer/") && name.endsWith(".sif")
        ? gunzipSync(readFileSync(vectorPath(`${name}.gz`)))
        : readFileSync(vectorPath(name))
    loaded.set(name, bytes)
  }
  return Buffer.from(bytes)
}

/** Repeatable pseudo-random numbers below `bound` (xorshift32), for mutations. */
export function generator(seed: number): (bound: number) => number {
  let state = seed >>> 0 || 1
  return (bound) => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    state >>>= 0
    return state % bound
  }
}
