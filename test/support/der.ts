// DER for tests, also such as no library would write: every value is bytes, and can be put anywhere.

/** One value. `minimal: false` writes a length as BER may. */
export function tlv(
  tag: number,
  content: Uint8Array,
  { minimal = true }: { readonly minimal?: boolean } = {},
): Buffer {
  const { length } = content
  const digits = Buffer.from(
    length.toString(16).padStart(length > 0xffff ? 6 : length > 0xff ? 4 : 2, "0"),
    "hex",
  )
  const header =
    minimal && length < 0x80
      ? [tag, length]
      : minimal
        ? [tag, 0x80 | digits.length, ...digits]
        : [tag, 0x83, length >> 16, (length >> 8) & 0xff, length & 0xff]
  return Buffer.concat([Buffer.from(header), content])
}

export const sequence = (...parts: readonly Uint8Array[]): Buffer => tlv(0x30, Buffer.concat(parts))
export const set = (...parts: readonly Uint8Array[]): Buffer => tlv(0x31, Buffer.concat(parts))
/** `[number] EXPLICIT` or a constructed `[number] IMPLICIT`. */
export const tagged = (number: number, ...parts: readonly Uint8Array[]): Buffer =>
  tlv(0xa0 | number, Buffer.concat(parts))
/** `[number] IMPLICIT` of a primitive type. */
export const implicit = (number: number, content: Uint8Array): Buffer => tlv(0x80 | number, content)
export const octets = (content: Uint8Array): Buffer => tlv(0x04, content)
export const bits = (content: Uint8Array, unused = 0): Buffer =>
  tlv(0x03, Buffer.concat([Buffer.of(unused), content]))
export const nothing: Buffer = tlv(0x05, Buffer.alloc(0))
export const truth: Buffer = tlv(0x01, Buffer.of(0xff))
export const text = (tag: number, value: string): Buffer =>
  tlv(tag, Buffer.from(value, tag === 0x0c ? "utf8" : "latin1"))

/** Not negative. */
export function integer(value: bigint | number): Buffer {
  const hex = value.toString(16)
  const digits = Buffer.from(hex.padStart(hex.length + (hex.length % 2), "0"), "hex")
  return tlv(0x02, (digits[0] ?? 0) >= 0x80 ? Buffer.concat([Buffer.of(0), digits]) : digits)
}

export function oid(dotted: string): Buffer {
  const [first = 0n, second = 0n, ...rest] = dotted.split(".").map(BigInt)
  const bytes = [first * 40n + second, ...rest].flatMap((arc) => {
    const septets = [Number(arc & 0x7fn)]
    for (let left = arc >> 7n; left > 0n; left >>= 7n) septets.unshift(Number(left & 0x7fn) | 0x80)
    return septets
  })
  return tlv(0x06, Buffer.from(bytes))
}
