// DER as far as telling key files apart and writing an RSA key takes; the keys themselves are read by node:crypto.
import { allocateSecret } from "./secret.ts"

/** One DER value: single-byte tag, definite length. */
export interface DerValue {
  readonly tag: number
  /** Within the bytes that were read, not a copy. */
  readonly content: Buffer
  /** Of tag, length and content. */
  readonly size: number
}

export const DerTag = {
  integer: 0x02,
  bitString: 0x03,
  octetString: 0x04,
  oid: 0x06,
  sequence: 0x30,
} as const

/** Tag, size of what stands before the content, and size of the content; undefined when that is no DER. */
function readStart(bytes: Buffer): { tag: number; start: number; length: number } | undefined {
  const tag = bytes[0]
  const first = bytes[1]
  if (tag === undefined || first === undefined || (tag & 0x1f) === 0x1f) return undefined
  if (first < 0x80) return { tag, start: 2, length: first }
  const count = first & 0x7f
  if (count === 0 || count > 4 || bytes.length < 2 + count) return undefined
  return { tag, start: 2 + count, length: bytes.readUIntBE(2, count) }
}

/** The value at the beginning of `bytes`; undefined when there is none, or not all of it. */
export function readDer(bytes: Buffer): DerValue | undefined {
  const found = readStart(bytes)
  if (found === undefined) return undefined
  const size = found.start + found.length
  return size > bytes.length
    ? undefined
    : { tag: found.tag, content: bytes.subarray(found.start, size), size }
}

/** Does a long sequence begin here of which the end is missing? */
export function isCutShort(bytes: Buffer): boolean {
  const found = readStart(bytes)
  return found?.tag === DerTag.sequence && found.start > 2 && found.start + found.length > bytes.length
}

/** No structure of a key has more. */
const MAX_CHILDREN = 64

/** What a sequence holds; undefined when that is not DER throughout. */
export function derChildren(content: Buffer): readonly DerValue[] | undefined {
  const children: DerValue[] = []
  for (let at = 0; at < content.length;) {
    const child = readDer(content.subarray(at))
    if (child === undefined || children.length === MAX_CHILDREN) return undefined
    children.push(child)
    at += child.size
  }
  return children
}

/** An object identifier in dots; undefined when it is none. */
export function oidOf(value: DerValue | undefined): string | undefined {
  if (value?.tag !== DerTag.oid || value.content.length === 0 || value.content.length > 32) return undefined
  const arcs: bigint[] = []
  let arc = 0n
  for (const byte of value.content) {
    arc = (arc << 7n) | BigInt(byte & 0x7f)
    if ((byte & 0x80) !== 0) continue
    arcs.push(arc)
    arc = 0n
  }
  const [first = 0n, ...rest] = arcs
  const root = first < 80n ? first / 40n : 2n
  return [root, first - root * 40n, ...rest].join(".")
}

function encode(tag: number, parts: readonly Buffer[]): Buffer {
  const length = parts.reduce((sum, part) => sum + part.length, 0)
  const size = length < 0x80 ? 0 : Math.ceil((32 - Math.clz32(length)) / 8)
  const value = allocateSecret(2 + size + length)
  value[0] = tag
  if (size === 0) value[1] = length
  else {
    value[1] = 0x80 | size
    value.writeUIntBE(length, 2, size)
  }
  let at = 2 + size
  for (const part of parts) at += part.copy(value, at)
  return value
}

/** A sequence of unsigned integers, given big-endian: PKCS#1. The caller wipes it. */
export function encodeIntegers(numbers: readonly Buffer[]): Buffer {
  const encoded = numbers.map((number) => {
    let start = 0
    while (start < number.length - 1 && number[start] === 0) start++
    const digits = number.subarray(start)
    return encode(DerTag.integer, (digits[0] ?? 0x80) >= 0x80 ? [Buffer.alloc(1), digits] : [digits])
  })
  try {
    return encode(DerTag.sequence, encoded)
  } finally {
    for (const number of encoded) number.fill(0)
  }
}
