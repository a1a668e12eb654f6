// Changes of inputs by somebody who knows their form: what is outside of the change still fits, so that it gets past the first look.
import { mutate } from "../support/mutate.ts"

/** A whole number below a bound. */
export type Random = (bound: number) => number
export type Change = (original: Buffer, random: Random) => Buffer

export function pick<T>(from: readonly T[], random: Random): T {
  const picked = from[random(from.length)]
  if (picked === undefined) throw new RangeError("nothing to pick from")
  return picked
}

/** One of several ways, each time another. */
export function oneOf(...changes: readonly Change[]): Change {
  return (original, random) => pick(changes, random)(original, random)
}

/** Bytes, pieces and words, anywhere. */
export const anywhere: Change = (original, random) => {
  let bytes = original
  for (let more = random(3); more >= 0; more--) bytes = mutate(bytes, random)
  return bytes
}

const NUMBERS = [
  0,
  1,
  -1,
  2,
  7,
  255,
  256,
  4096,
  65535,
  65536,
  2 ** 31 - 1,
  2 ** 31,
  2 ** 32 - 1,
  2 ** 32,
  2 ** 53,
  1e21,
  0.5,
  -0,
]
const TEXTS = [
  "",
  " ",
  "0",
  "-1",
  "18446744073709551616",
  "../../etc/passwd",
  "/",
  ".",
  "a\0b",
  "\u001b[2J",
  "\ud800",
  "é".repeat(200),
  "A".repeat(5000),
  "__proto__",
  "constructor",
  "sha256:" + "0".repeat(64),
  "${X:-${Y}}",
  "%00",
  "null",
]

/** A value of a kind that may be wrong there. */
function anyValue(random: Random): unknown {
  switch (random(8)) {
    case 0:
      return null
    case 1:
      return random(2) === 0
    case 2:
      return []
    case 3:
      return {}
    case 4:
      return [pick(TEXTS, random), pick(NUMBERS, random)]
    case 5: {
      let nested: unknown = "deep"
      for (let depth = 1 + random(200); depth > 0; depth--) nested = random(2) === 0 ? [nested] : { nested }
      return nested
    }
    case 6:
      return pick(NUMBERS, random)
    default:
      return pick(TEXTS, random)
  }
}

type Container = unknown[] | Record<string, unknown>

/** All objects and lists in a value, itself too. */
function containers(value: unknown, found: Container[] = []): Container[] {
  if (typeof value !== "object" || value === null) return found
  const own = value as Container
  found.push(own)
  for (const one of Object.values(own)) containers(one, found)
  return found
}

function changeContainer(container: Container, all: readonly Container[], random: Random): void {
  const keys = Object.keys(container)
  const key = keys.length === 0 || random(8) === 0 ? pick(TEXTS, random) : pick(keys, random)
  const set = (name: string, value: unknown): void => {
    // Also what an assignment would not make: `__proto__`.
    Object.defineProperty(container, name, { value, enumerable: true, configurable: true, writable: true })
  }
  if (Array.isArray(container)) {
    const at = random(container.length + 1)
    switch (random(4)) {
      case 0:
        container.splice(at, 1)
        return
      case 1:
        container.splice(at, 0, anyValue(random))
        return
      case 2:
        if (container.length > 0 && container.length < 300)
          container.push(...Array.from({ length: random(50) }, () => structuredClone(container[0])))
        return
      default:
        if (at < container.length) container[at] = anyValue(random)
        return
    }
  }
  const value = Object.hasOwn(container, key) ? container[key] : pick(TEXTS, random)
  switch (random(7)) {
    case 0:
      Reflect.deleteProperty(container, key)
      return
    case 1:
      set(pick(TEXTS, random), structuredClone(value))
      return
    case 2:
      // What stands elsewhere.
      set(key, structuredClone(pick(all, random)))
      return
    case 3:
      if (typeof value === "string") {
        set(key, mutate(Buffer.from(value), random).toString("utf8"))
        return
      }
      if (typeof value === "number") {
        set(key, value + pick(NUMBERS, random))
        return
      }
      set(key, anyValue(random))
      return
    default:
      set(key, anyValue(random))
  }
}

/** What JSON says, otherwise; `depth` of values within stays what it is where they are not changed. */
export const json: Change = (original, random) => {
  let root: unknown
  try {
    root = JSON.parse(original.toString("utf8"))
  } catch {
    return anywhere(original, random)
  }
  for (let more = random(3); more >= 0; more--) {
    // A value that has grown too large is not changed again.
    const all = containers(root)
    if (all.length === 0 || all.length > 5000) break
    changeContainer(pick(all, random), all, random)
  }
  const text = JSON.stringify(root, null, random(3) === 0 ? 2 : undefined)
  return Buffer.from(text)
}

/** Lines, words in them, how far they are indented. */
export const lines: Change = (original, random) => {
  const all = original.toString("utf8").split("\n")
  for (let more = random(3); more >= 0; more--) {
    const at = random(all.length)
    const line = all[at] ?? ""
    switch (random(7)) {
      case 0:
        all.splice(at, 1)
        break
      case 1:
        all.splice(random(all.length), 0, line)
        break
      case 2: {
        const other = random(all.length)
        const there = all[other] ?? ""
        all[other] = line
        all[at] = there
        break
      }
      case 3:
        all[at] = " ".repeat(random(6)) + line.trimStart()
        break
      case 4: {
        const words = line.split(" ")
        words[random(words.length)] = pick(TEXTS, random)
        all[at] = words.join(" ")
        break
      }
      case 5:
        all[at] = line.replace(/\d+/, String(pick(NUMBERS, random)))
        break
      default:
        all[at] = mutate(Buffer.from(line), random).toString("utf8")
    }
    if (all.length === 0) all.push("")
  }
  return Buffer.from(all.join("\n"))
}

interface Tlv {
  tag: number
  /** Of a constructed value, or of an octet string that holds one. */
  parts: Tlv[] | undefined
  content: Buffer
}

/** Undefined: it is no DER. */
function readTlvs(bytes: Buffer, depth: number): Tlv[] | undefined {
  const found: Tlv[] = []
  for (let at = 0; at < bytes.length;) {
    const tag = bytes[at] ?? 0
    let length = bytes[at + 1] ?? 0
    let from = at + 2
    if (length > 0x80 && length <= 0x84) {
      const count = length & 0x7f
      if (from + count > bytes.length) return undefined
      length = bytes.readUIntBE(from, count)
      from += count
    } else if (length >= 0x80) return undefined
    if (from + length > bytes.length || at + 2 > bytes.length) return undefined
    const content = bytes.subarray(from, from + length)
    const may = depth < 40 && length > 0 && ((tag & 0x20) !== 0 || tag === 0x04)
    found.push({ tag, parts: may ? readTlvs(content, depth + 1) : undefined, content })
    at = from + length
  }
  return found
}

function writeTlv({ tag, parts, content }: Tlv): Buffer {
  const body = parts === undefined ? content : Buffer.concat(parts.map(writeTlv))
  const { length } = body
  const head =
    length < 0x80
      ? [tag, length]
      : length < 0x100
        ? [tag, 0x81, length]
        : length < 0x10000
          ? [tag, 0x82, length >> 8, length & 0xff]
          : [tag, 0x83, length >> 16, (length >> 8) & 0xff, length & 0xff]
  return Buffer.concat([Buffer.from(head), body])
}

const lists = (tlvs: Tlv[]): Tlv[][] => [
  tlvs,
  ...tlvs.flatMap(({ parts }) => (parts === undefined ? [] : lists(parts))),
]

/** ASN.1 in DER, with lengths that fit: values are left out, twice, elsewhere, of another type, longer or shorter. */
export const der: Change = (original, random) => {
  const root = readTlvs(original, 0)
  if (root === undefined || root.length === 0) return anywhere(original, random)
  for (let more = random(2); more >= 0; more--) {
    const all = lists(root)
    const list = pick(all, random)
    const at = random(list.length + 1)
    const one = list[at]
    switch (random(8)) {
      case 0:
        list.splice(at, 1)
        break
      case 1:
        if (one !== undefined) list.splice(random(list.length), 0, copyOf(one))
        break
      case 2: {
        const [other] = pick(all, random)
        if (other !== undefined) list.splice(at, 0, copyOf(other))
        break
      }
      case 3:
        if (one !== undefined)
          one.tag = pick([0x02, 0x03, 0x04, 0x05, 0x06, 0x0c, 0x24, 0x30, 0x31, 0x80, 0xa0, 0xa3], random)
        break
      case 4:
        if (one !== undefined) {
          let inside: Tlv[] = [{ ...one }]
          for (let depth = random(60); depth > 0; depth--)
            inside = [{ tag: 0x30, parts: inside, content: one.content }]
          one.parts = inside
        }
        break
      default:
        if (one?.parts === undefined && one !== undefined) {
          one.content = random(3) === 0 ? Buffer.alloc(random(20), random(256)) : mutate(one.content, random)
        }
    }
  }
  return Buffer.concat(root.map(writeTlv))
}

function copyOf({ tag, parts, content }: Tlv): Tlv {
  return { tag, parts: parts?.map(copyOf), content }
}

/** What has its length before it, four bytes each, as SSH writes it; `head` comes before and stays. */
export function wire(head: number): Change {
  return (original, random) => {
    const fields: Buffer[] = []
    let at = head
    while (at + 4 <= original.length) {
      const length = original.readUInt32BE(at)
      if (length > original.length - at - 4) break
      fields.push(original.subarray(at + 4, at + 4 + length))
      at += 4 + length
    }
    if (fields.length === 0) return anywhere(original, random)
    const index = random(fields.length)
    const field = fields[index] ?? Buffer.alloc(0)
    switch (random(5)) {
      case 0:
        fields.splice(index, 1)
        break
      case 1:
        fields.splice(index, 0, pick(fields, random))
        break
      case 2:
        fields[index] = Buffer.alloc(random(40), random(256))
        break
      case 3:
        // Fields within a field.
        fields[index] = wire(random(2) * 4)(field, random)
        break
      default:
        fields[index] = mutate(field, random)
    }
    const framed = fields.flatMap((bytes) => {
      const length = Buffer.alloc(4)
      length.writeUInt32BE(bytes.length)
      return [length, bytes]
    })
    return Buffer.concat([original.subarray(0, head), ...framed, original.subarray(at)])
  }
}

/** Protobuf: fields of bytes are left out, there twice, of another number or kind, and longer than numbers are. */
export const protobuf: Change = (original, random) => {
  const varint = (value: number): Buffer => {
    const bytes: number[] = []
    for (let left = value; ; left = Math.floor(left / 0x80)) {
      if (left < 0x80) {
        bytes.push(left)
        return Buffer.from(bytes)
      }
      bytes.push((left % 0x80) | 0x80)
    }
  }
  const fields: { tag: number; bytes: Buffer }[] = []
  for (let at = 0; at + 2 <= original.length;) {
    const tag = original[at] ?? 0
    let size = 0
    let shift = 1
    at++
    for (let byte = 0x80; byte >= 0x80 && at < original.length; at++, shift *= 0x80) {
      byte = original[at] ?? 0
      size += (byte & 0x7f) * shift
    }
    fields.push({ tag, bytes: original.subarray(at, at + size) })
    at += size
  }
  const field = fields[random(fields.length)]
  switch (random(6)) {
    case 0:
      fields.splice(random(fields.length), 1)
      break
    case 1:
      if (field !== undefined) fields.push({ ...field })
      break
    case 2:
      if (field !== undefined) field.tag = random(2 ** 16)
      break
    case 3:
      if (field !== undefined) field.bytes = mutate(field.bytes, random)
      break
    case 4:
      fields.push({ tag: 8 * (1 + random(5)) + random(8), bytes: Buffer.alloc(random(300), 0xff) })
      break
    default:
      if (field !== undefined) field.bytes = protobuf(field.bytes, random)
  }
  const size = (length: number): Buffer =>
    random(20) === 0 ? Buffer.alloc(11, 0xff) : varint(length + (random(20) === 0 ? 1 : 0))
  return Buffer.concat(fields.flatMap(({ tag, bytes }) => [varint(tag), size(bytes.length), bytes]))
}

/** CRC-24 of RFC 9580, 6.1.1. */
function crc24(bytes: Buffer): Buffer {
  let crc = 0xb704ce
  for (const byte of bytes) {
    crc ^= byte << 16
    for (let bit = 0; bit < 8; bit++) {
      crc <<= 1
      if ((crc & 0x1000000) !== 0) crc ^= 0x1864cfb
    }
  }
  return Buffer.from([(crc >> 16) & 0xff, (crc >> 8) & 0xff, crc & 0xff])
}

/** What is inside of PEM or of OpenPGP's armor is changed, and put inside again; sometimes the lines around it. */
export function armored(inside: Change): Change {
  return (original, random) => {
    if (random(6) === 0) return lines(original, random)
    const text = original.toString("latin1")
    const [whole = "", begin = "", headers = "", body = "", end = ""] =
      /(-----BEGIN [^\n]*-----\n)((?:[^\n:]+: [^\n]*\n)*\n?)([A-Za-z0-9+/=\n]*?)(?:\n=[A-Za-z0-9+/]{4})?\n?(-----END [^\n]*-----)/.exec(
        text,
      ) ?? []
    if (whole === "") return anywhere(original, random)
    const changed = inside(Buffer.from(body, "base64"), random)
    const encoded = changed.toString("base64").replaceAll(/.{64}/g, "$&\n")
    const sum = begin.includes("PGP") ? `\n=${crc24(changed).toString("base64")}` : ""
    return Buffer.from(
      text.replace(whole, () => `${begin}${headers}${encoded}${sum}\n${end}`),
      "latin1",
    )
  }
}

/** Numbers at places that are known: each becomes one that is at an edge. */
export function numbersAt(
  places: readonly (readonly [at: number, size: 1 | 2 | 4 | 8])[],
  bigEndian = false,
): Change {
  return (original, random) => {
    const bytes = Buffer.from(original)
    for (let more = random(3); more >= 0; more--) {
      const [at, size] = pick(places, random)
      if (at + size > bytes.length) continue
      const old = bytes.subarray(at, at + size).reduceRight((sum, byte) => (sum << 8n) | BigInt(byte), 0n)
      const edges = [
        0n,
        1n,
        2n ** 31n - 1n,
        2n ** 31n,
        2n ** 63n - 1n,
        2n ** 63n,
        2n ** 64n - 1n,
        BigInt(bytes.length),
      ]
      const nearby = [old + 1n, old - 1n, old * 2n, old + 4096n, BigInt(bytes.length) - old]
      const value = BigInt.asUintN(8 * size, pick([...edges, ...nearby], random))
      const written = Buffer.alloc(8)
      written.writeBigUInt64LE(value)
      const own = written.subarray(0, size)
      ;(bigEndian ? own.reverse() : own).copy(bytes, at)
    }
    return bytes
  }
}
