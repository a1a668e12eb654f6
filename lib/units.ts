// Sizes. A leaf: imports nothing.

/** A count of bytes; a safe integer. */
export type Bytes = number

/** The largest multiple of `unit` that is not below `value`. */
export function alignUp(value: Bytes, unit: Bytes): Bytes {
  return Math.ceil(value / unit) * unit
}

/**
 * Hears how far something is: bytes that are done, of how many, which is undefined until it is known. The last call has both
 * alike.
 */
export type OnProgress = (done: Bytes, total?: Bytes) => void
