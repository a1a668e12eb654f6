// DER (X.690), strictly: what keys and certificates are read with before node:crypto sees them, and RSA keys written.
import { allocateSecret } from "./secret.ts"

/** One DER value: single-byte tag, definite length. */
export interface DerValue {
  readonly tag: number
  /** Within the bytes that were read, not a copy. */
  readonly content: Buffer
  /** Tag, length and content. */
  readonly bytes: Buffer
}

export const DerTag = {
  boolean: 0x01,
  integer: 0x02,
  bitString: 0x03,
  octetString: 0x04,
  null: 0x05,
  oid: 0x06,
  utcTime: 0x17,
  generalizedTime: 0x18,
  sequence: 0x30,
  set: 0x31,
} as const

/** Tag, size of what stands before the content, and size of the content; undefined when that is no DER. */
function readStart(bytes: Buffer): { tag: number; start: number; length: number } | undefined {
  const tag = bytes[0]
  const first = bytes[1]
  if (tag === undefined || first === undefined || (tag & 0x1f) === 0x1f) return undefined
  if (first < 0x80) return { tag, start: 2, length: first }
  const count = first & 0x7f
  if (count === 0 || count > 4 || bytes.length < 2 + count) return undefined
  const length = bytes.readUIntBE(2, count)
  // X.690, 10.1: a length in the fewest bytes possible. Others are BER.
  if (length < (count === 1 ? 0x80 : 2 ** (8 * (count - 1)))) return undefined
  return { tag, start: 2 + count, length }
}

/** The value at the beginning of `bytes`; undefined when there is none, or not all of it. */
export function readDer(bytes: Buffer): DerValue | undefined {
  const found = readStart(bytes)
  if (found === undefined) return undefined
  const size = found.start + found.length
  return size > bytes.length
    ? undefined
    : { tag: found.tag, content: bytes.subarray(found.start, size), bytes: bytes.subarray(0, size) }
}

/** Does a long sequence begin here of which the end is missing? */
export function isCutShort(bytes: Buffer): boolean {
  const found = readStart(bytes)
  return found?.tag === DerTag.sequence && found.start > 2 && found.start + found.length > bytes.length
}

/** What a sequence holds; undefined when that is not DER throughout. */
export function derChildren(content: Buffer): readonly DerValue[] | undefined {
  const children: DerValue[] = []
  for (let at = 0; at < content.length;) {
    const child = readDer(content.subarray(at))
    if (child === undefined) return undefined
    children.push(child)
    at += child.bytes.length
  }
  return children
}

/** An object identifier in dots; undefined when it is none. */
export function oidOf(value: DerValue | undefined): string | undefined {
  if (value?.tag !== DerTag.oid || value.content.length === 0 || value.content.length > 32) return undefined
  if (((value.content.at(-1) ?? 0) & 0x80) !== 0) return undefined
  const arcs: bigint[] = []
  let arc = 0n
  let begins = true
  for (const byte of value.content) {
    // X.690, 8.19.2: no arc begins with a byte that adds nothing.
    if (begins && byte === 0x80) return undefined
    begins = (byte & 0x80) === 0
    arc = (arc << 7n) | BigInt(byte & 0x7f)
    if (!begins) continue
    arcs.push(arc)
    arc = 0n
  }
  const [first = 0n, ...rest] = arcs
  const root = first < 80n ? first / 40n : 2n
  return [root, first - root * 40n, ...rest].join(".")
}

/** Something is no DER, or not what stands in its place. */
export class DerError extends Error {}

/** Values one behind the other. Every method throws a {@link DerError} for what is not DER, or is another value. */
export class DerReader {
  readonly #values: readonly DerValue[]
  #at = 0

  /** @param content - What a sequence or set holds. */
  constructor(content: Buffer) {
    const values = derChildren(content)
    if (values === undefined) throw new DerError("it is not DER throughout")
    this.#values = values
  }

  /** Of bytes that are one sequence and nothing else. */
  static sequence(bytes: Buffer): DerReader {
    const all = new DerReader(bytes)
    const inside = all.sequence()
    all.end()
    return inside
  }

  get isAtEnd(): boolean {
    return this.#at === this.#values.length
  }

  /** The next value, of whatever tag. */
  any(): DerValue {
    const value = this.#values[this.#at++]
    if (value === undefined) throw new DerError("something is missing in it")
    return value
  }

  /** The next value if it has this tag. */
  optional(tag: number): DerValue | undefined {
    return this.#values[this.#at]?.tag === tag ? this.#values[this.#at++] : undefined
  }

  /** What `[number] EXPLICIT` holds, if it comes next. */
  explicit(number: number): DerReader | undefined {
    const value = this.optional(0xa0 | number)
    return value === undefined ? undefined : new DerReader(value.content)
  }

  value(tag: number): DerValue {
    return this.optional(tag) ?? this.#unexpected()
  }

  sequence(): DerReader {
    return new DerReader(this.value(DerTag.sequence).content)
  }

  oid(): string {
    return oidOf(this.any()) ?? this.#unexpected()
  }

  /** An INTEGER's bytes, two's complement. */
  integer(tag: number = DerTag.integer): Buffer {
    return integerBytes(this.value(tag))
  }

  /** An integer that is not negative; those from 2^32 on are Infinity. */
  number(tag: number = DerTag.integer): number {
    const bytes = this.integer(tag)
    if ((bytes[0] ?? 0) >= 0x80) throw new DerError("a number in it is negative")
    return bytes.length > 5 || (bytes.length === 5 && bytes[0] !== 0)
      ? Infinity
      : bytes.readUIntBE(0, bytes.length)
  }

  /** A BOOLEAN DEFAULT FALSE, which DER leaves out where it is that. */
  flag(): boolean {
    const value = this.optional(DerTag.boolean)
    if (value === undefined) return false
    if (value.content.length !== 1 || value.content[0] !== 0xff)
      throw new DerError("a truth value in it is no DER")
    return true
  }

  /** What a BIT STRING of whole bytes holds. */
  octetsOfBits(): Buffer {
    const { content } = this.value(DerTag.bitString)
    if (content[0] !== 0) throw new DerError("a bit string in it is not of whole bytes")
    return content.subarray(1)
  }

  /** What a BIT STRING holds: its bits, the first one highest; those behind them are 0. */
  bits(): Buffer {
    const { content } = this.value(DerTag.bitString)
    const unused = content[0]
    const last = content.at(-1) ?? 0
    if (unused === undefined || unused > 7 || (content.length === 1 && unused > 0))
      throw new DerError("a bit string in it is no DER")
    if (content.length > 1 && (last & ((1 << unused) - 1)) !== 0)
      throw new DerError("a bit string in it is no DER")
    return content.subarray(1)
  }

  end(): void {
    if (!this.isAtEnd) throw new DerError("something stands behind it")
  }

  #unexpected(): never {
    throw new DerError("something else stands in it than belongs there")
  }
}

/** The bytes of an INTEGER, in the fewest possible (X.690, 8.3.2). */
function integerBytes({ content }: DerValue): Buffer {
  const [first, second] = content
  if (first === undefined) throw new DerError("a number in it is empty")
  if (second !== undefined && (first === 0 || first === 0xff) && first >> 7 === second >> 7)
    throw new DerError("a number in it is no DER")
  return content
}

/** A value of whatever tag, around what stands in it. The caller wipes it where that is a secret. */
export function encodeDer(tag: number, parts: readonly Buffer[]): Buffer {
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
    return encodeDer(DerTag.integer, (digits[0] ?? 0x80) >= 0x80 ? [Buffer.alloc(1), digits] : [digits])
  })
  try {
    return encodeDer(DerTag.sequence, encoded)
  } finally {
    for (const number of encoded) number.fill(0)
  }
}
