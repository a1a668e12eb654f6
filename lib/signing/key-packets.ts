// OpenPGP keys as they lie in files: packet streams, armored or not, cut into single keys without looking inside.
// A ring is rewritten in these pieces, so that a key which this library cannot read stays as it is.
import { SignatureError } from "../errors.ts"

// Packet types: RFC 9580, 5.
const SECRET_KEY = 5
const PUBLIC_KEY = 6
const MARKER = 10
const TRUST = 12
const PADDING = 21

interface Packet {
  readonly tag: number
  readonly start: number
  readonly end: number
}

/** A length in the new or the old format, and where the body starts; undefined: none that a key may have. */
function lengthAt(bytes: Buffer, at: number): { readonly body: number; readonly length: number } | undefined {
  const first = bytes[at] ?? 0
  const octet = bytes[at + 1] ?? 0
  if ((first & 0x40) !== 0) {
    if (octet < 192) return { body: at + 2, length: octet }
    if (octet < 224) return { body: at + 3, length: ((octet - 192) << 8) + (bytes[at + 2] ?? 0) + 192 }
    if (octet === 255 && at + 6 <= bytes.length) return { body: at + 6, length: bytes.readUInt32BE(at + 2) }
    return undefined
  }
  switch (first & 3) {
    case 0:
      return { body: at + 2, length: octet }
    case 1:
      return at + 3 <= bytes.length ? { body: at + 3, length: bytes.readUInt16BE(at + 1) } : undefined
    case 2:
      return at + 5 <= bytes.length ? { body: at + 5, length: bytes.readUInt32BE(at + 1) } : undefined
    default:
      return undefined
  }
}

function packetAt(bytes: Buffer, start: number): Packet | undefined {
  const first = bytes[start] ?? 0
  if ((first & 0x80) === 0) return undefined
  const found = lengthAt(bytes, start)
  if (found === undefined) return undefined
  const end = found.body + found.length
  if (end > bytes.length) return undefined
  return { tag: (first & 0x40) !== 0 ? first & 0x3f : (first >> 2) & 0x0f, start, end }
}

function malformed(origin: string): SignatureError {
  return new SignatureError("ERR_SIGNATURE_KEYRING", `${origin} holds no OpenPGP keys that can be read`, {
    path: origin,
  })
}

/**
 * Cuts a packet stream into keys, each with its user IDs, subkeys and signatures.
 *
 * @throws SignatureError `ERR_SIGNATURE_KEYRING`.
 */
export function splitKeys(bytes: Buffer, origin: string): Buffer[] {
  const keys: Buffer[][] = []
  for (let at = 0; at < bytes.length;) {
    const packet = packetAt(bytes, at)
    if (packet === undefined) throw malformed(origin)
    const { tag, start, end } = packet
    at = end
    // What a keyring of GnuPG has of its own, and what means nothing.
    if (tag === TRUST || tag === MARKER || tag === PADDING) continue
    if (tag === SECRET_KEY || tag === PUBLIC_KEY) keys.push([])
    const key = keys.at(-1)
    if (key === undefined) throw malformed(origin)
    key.push(bytes.subarray(start, end))
  }
  return keys.map((packets) => Buffer.concat(packets))
}

// No block has the start of another one in it: without that, many starts and no end would take quadratic time.
const block =
  /-----BEGIN PGP (?:PUBLIC|PRIVATE) KEY BLOCK-----\r?\n((?:(?!-----BEGIN )[^])*?)-----END PGP (?:PUBLIC|PRIVATE) KEY BLOCK-----/g

function unarmor(text: string, origin: string): Buffer {
  const lines = text.split(/\r?\n/).map((line) => line.trimEnd())
  const blank = lines.indexOf("")
  // The checksum is optional and protects nothing (RFC 9580, 6.1).
  const body = lines.slice(blank + 1).filter((line) => line !== "" && !line.startsWith("="))
  if (blank < 0 || !body.every((line) => /^[A-Za-z0-9+/]+={0,2}$/.test(line))) throw malformed(origin)
  return Buffer.from(body.join(""), "base64")
}

/**
 * The keys in a file: a packet stream, or armored blocks with anything around them.
 *
 * @throws SignatureError `ERR_SIGNATURE_KEYRING` where there is none.
 */
export function keysIn(file: Buffer, origin: string): Buffer[] {
  const armored = file.includes("-----BEGIN PGP ")
  const parts = armored
    ? [...file.toString("latin1").matchAll(block)].map(([, text = ""]) => unarmor(text, origin))
    : [file]
  const keys = parts.flatMap((part) => splitKeys(part, origin))
  if (keys.length === 0) throw malformed(origin)
  return keys
}
