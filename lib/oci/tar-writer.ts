// Tar archives of files by name, written front to back. The same files make the same bytes.
import type { Bytes } from "../units.ts"

const BLOCK: Bytes = 512
/** What eleven octal digits hold. */
const MAX_SIZE: Bytes = 8 ** 11 - 1
const MAX_NAME: Bytes = 100
/** Two blocks of zeros, up to what tar(1) calls a record. */
export const TAR_END: Buffer = Buffer.alloc(20 * BLOCK)

/** Of an entry: permission bits, and `5` for a folder, whose name ends in a slash. */
export interface TarEntry {
  readonly mode?: number
  readonly type?: "0" | "5"
}

function ustar(name: string, size: Bytes, type: "0" | "5" | "x", mode = 0o644): Buffer {
  const header = Buffer.alloc(BLOCK)
  const octal = (value: number, digits: number): string => `${value.toString(8).padStart(digits, "0")}\0`
  header.write(name, 0, MAX_NAME)
  header.write(octal(mode, 7), 100)
  header.write(octal(0, 7), 108)
  header.write(octal(0, 7), 116)
  header.write(octal(size, 11), 124)
  header.write(octal(0, 11), 136)
  header.write(" ".repeat(8), 148)
  header.write(type, 156)
  header.write("ustar\x0000", 257)
  const sum = header.reduce((all, byte) => all + byte, 0)
  header.write(`${octal(sum, 6)} `, 148)
  return header
}

/** A record of an extended header: its length counts itself. */
function paxRecord(key: string, value: string): string {
  const rest = ` ${key}=${value}\n`
  const bytes = Buffer.byteLength(rest)
  let length = bytes
  while (String(length).length + bytes !== length) length = String(length).length + bytes
  return `${length}${rest}`
}

/**
 * What stands before a file's bytes.
 *
 * @param name - Relative.
 */
export function tarHeader(name: string, size: Bytes, { mode, type = "0" }: TarEntry = {}): Buffer {
  const isShort = name.length <= MAX_NAME && /^[\x20-\x7e]*$/.test(name)
  const records = [
    ...(isShort ? [] : [paxRecord("path", name)]),
    ...(size > MAX_SIZE ? [paxRecord("size", String(size))] : []),
  ].join("")
  const header = ustar(name, Math.min(size, MAX_SIZE), type, mode)
  if (records === "") return header
  const extended = Buffer.from(records)
  return Buffer.concat([ustar("pax", extended.length, "x"), extended, tarPadding(extended.length), header])
}

/** What stands behind them. */
export function tarPadding(size: Bytes): Buffer {
  return Buffer.alloc((BLOCK - (size % BLOCK)) % BLOCK)
}
