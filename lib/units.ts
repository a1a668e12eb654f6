// Sizes. A leaf: imports nothing.

/** A count of bytes; a safe integer. */
export type Bytes = number

/** A time span. */
export type Milliseconds = number

/** Limits on what deriving a key may cost: of memory, and of work, which is time. */
export interface KdfLimits {
  /** KiB that Argon2 or scrypt may take. */
  readonly memory: number
  /** KiB times passes, all keyslots that would be tried together. */
  readonly work: number
  /** Threads. */
  readonly parallel: number
  /** PBKDF2 iterations, all keyslots and the digest together. */
  readonly iterations: number
}

/** The largest multiple of `unit` that is not below `value`. */
export function alignUp(value: Bytes, unit: Bytes): Bytes {
  return Math.ceil(value / unit) * unit
}

/**
 * Hears how far something is: bytes that are done, of how many, which is undefined until it is known. The last call has both
 * alike.
 */
export type OnProgress = (done: Bytes, total?: Bytes) => void

/** What counts from nothing again for each of several pieces of work is told as one that only grows. */
export function accumulated(onProgress: OnProgress): OnProgress {
  let before: Bytes = 0
  let last: Bytes = 0
  return (done, total) => {
    if (done < last) before += last
    last = done
    onProgress(before + done, total === undefined ? undefined : before + total)
  }
}
