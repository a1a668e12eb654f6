// Hash trees as the addon makes and uses them.
import { constants } from "node:os"
import { SignatureError } from "../errors.ts"
import type { NativeRange, NativeVerity } from "../native/binding.ts"
import { loadAddon } from "../native/load.ts"
import type { Bytes } from "../units.ts"

export type { NativeVerity } from "../native/binding.ts"

/** Hears how many bytes were hashed; the work stops when it throws. */
export interface HashOptions {
  readonly signal?: AbortSignal | undefined
  readonly onProgress?: ((bytes: Bytes) => void) | undefined
}

/** A block that is not what its tree says, as an error of the image; undefined: something else went wrong. */
export function changedBlock(image: string, cause: unknown): SignatureError | undefined {
  const { errno, syscall } = cause as { readonly errno?: unknown; readonly syscall?: unknown }
  if (syscall !== "verity_read" || errno !== -constants.errno.EIO) return undefined
  return new SignatureError(
    "ERR_SIGNATURE_INVALID",
    `${image}: ${(cause as Error).message.replace(/^verity_read: /, "")}`,
    {
      path: image,
      cause,
    },
  )
}

/** Runs work of the addon that can be stopped. */
async function hashing<T>(
  { signal, onProgress }: HashOptions,
  work: (report: (bytes: Bytes) => boolean) => Promise<T>,
): Promise<T> {
  signal?.throwIfAborted()
  let failure: { readonly error: unknown } | undefined
  try {
    return await work((bytes) => {
      try {
        onProgress?.(bytes)
      } catch (error) {
        failure = { error }
        return false
      }
      return signal?.aborted !== true
    })
  } catch (error) {
    signal?.throwIfAborted()
    if (failure !== undefined) throw failure.error
    throw error
  }
}

/**
 * Hashes a part of a file and writes its tree elsewhere into the same file, in one pass.
 *
 * @returns The root hash.
 */
export async function writeVerityTree(
  place: {
    readonly fd: number
    readonly offset: Bytes
    readonly size: Bytes
    readonly treeOffset: Bytes
    readonly salt: Uint8Array
  },
  options: HashOptions = {},
): Promise<Buffer> {
  return await hashing(options, (report) => loadAddon().writeVerityTree(place, report))
}

/** Does the tree belong to the data, every block of both? */
export async function checkVerityTree(
  fd: number,
  verity: NativeVerity,
  options: HashOptions = {},
): Promise<boolean> {
  return await hashing(options, (report) => loadAddon().checkVerityTree({ fd, ...verity }, report))
}

/**
 * Reads a part of a file as it lies there, verified where there is a tree.
 *
 * @param image - What to call it in messages.
 * @throws SignatureError `ERR_SIGNATURE_INVALID`.
 */
export async function readStored(range: NativeRange, image: string): Promise<Buffer> {
  try {
    return await loadAddon().readStored(range)
  } catch (cause) {
    throw changedBlock(image, cause) ?? cause
  }
}
