// The little of Protocol Buffers that is spoken here: messages whose fields are bytes.

/** What is no message. */
export class ProtobufError extends Error {}

function encodeVarint(value: number): Buffer {
  const bytes: number[] = []
  let rest = value
  for (; rest >= 0x80; rest = Math.floor(rest / 0x80)) bytes.push((rest % 0x80) | 0x80)
  return Buffer.from([...bytes, rest])
}

const BYTES = 2

/** What goes before the bytes of a field. */
export function fieldHead(number: number, size: number): Buffer {
  return Buffer.concat([encodeVarint(number * 8 + BYTES), encodeVarint(size)])
}

/** How many bytes a field of another kind has, which is passed over. */
const sizes: Readonly<Record<number, number>> = { 1: 8, 5: 4 }

/**
 * The fields of a message that are bytes; of the same number the last one counts. They are parts of it, no copies.
 *
 * @throws ProtobufError.
 */
export function readFields(message: Buffer): ReadonlyMap<number, Buffer> {
  const fields = new Map<number, Buffer>()
  let at = 0
  const varint = (): number => {
    let value = 0
    for (let shift = 1; ; shift *= 0x80) {
      const byte = message[at++]
      if (byte === undefined || shift > 2 ** 63) throw new ProtobufError("a number in it does not end")
      value += (byte & 0x7f) * shift
      if (byte < 0x80) return value
    }
  }
  while (at < message.length) {
    const tag = varint()
    const kind = tag % 8
    if (kind === 0) {
      varint()
      continue
    }
    const size = kind === BYTES ? varint() : sizes[kind]
    if (size === undefined) throw new ProtobufError(`it has a field of kind ${kind}`)
    if (size > message.length - at) throw new ProtobufError("it ends in the middle of a field")
    if (kind === BYTES) fields.set(Math.floor(tag / 8), message.subarray(at, at + size))
    at += size
  }
  return fields
}
