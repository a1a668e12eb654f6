// Sizes. A leaf: imports nothing.

/** A count of bytes; a safe integer. */
export type Bytes = number

/** The largest multiple of `unit` that is not below `value`. */
export function alignUp(value: Bytes, unit: Bytes): Bytes {
  return Math.ceil(value / unit) * unit
}
