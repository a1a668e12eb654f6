// Hash trees as the addon makes and uses them.
import { constants } from "node:os"
import { SignatureError } from "../errors.ts"
import type { NativeRange } from "../native/binding.ts"
import { loadAddon } from "../native/load.ts"
import type { Bytes } from "../units.ts"

/** Hears how many bytes were hashed; the work stops when it throws. */
export interface HashOptions {
  readonly signal?: AbortSignal | undefined
  readonly onProgress?: ((bytes: Bytes) => void) | undefined
}

/** A block that is not what its tree says, as an error of the image; undefined: something else went wrong. */
export function changedBlock(image: string, cause: unknown): SignatureError | undefined {
  const { errno, syscall } = cause as { readonly errno?: unknown; readonly syscall?: unknown }
  if (syscall !== "verity_read" || errno !== -constants.errno.EIO) return undefined
  return SignatureError.at(
    image,
    "ERR_SIGNATURE_INVALID",
    (cause as Error).message.replace(/^verity_read: /, ""),
    { cause },
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
 * Hashes a part of a file and writes its hash tree elsewhere into the same file, in one pass.
 *
 * @returns The root hash.
 */
export async function writeVerity(
  place: {
    readonly fd: number
    readonly offset: Bytes
    readonly size: Bytes
    readonly verityOffset: Bytes
    readonly salt: Uint8Array
  },
  options: HashOptions = {},
): Promise<Buffer> {
  return await hashing(options, (report) => loadAddon().writeVerity(place, report))
}

/** Does the hash tree of a range belong to it, every block of both? */
export async function checkVerity(range: NativeRange, options: HashOptions = {}): Promise<boolean> {
  return await hashing(options, (report) => loadAddon().checkVerity(range, report))
}

/**
 * Reads of a range as it lies in the file, verified where there is verity.
 *
 * @param image - What to call it in messages.
 * @throws SignatureError `ERR_SIGNATURE_INVALID`.
 */
export async function readStored(
  range: NativeRange,
  position: Bytes,
  length: Bytes,
  image: string,
): Promise<Buffer> {
  try {
    return await loadAddon().readStored(range, position, length)
  } catch (cause) {
    throw changedBlock(image, cause) ?? cause
  }
}
