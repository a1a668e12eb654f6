// What is wrapped for each recipient of an encrypted layer: its key, where the counter begins, and what was encrypted. JSON, of
// which the key never becomes a string: nobody could wipe that.
import { OciError } from "../errors.ts"
import { parseJson } from "../json.ts"
import { allocateSecret } from "../key/secret.ts"
import type { Bytes } from "../units.ts"

export const KEY_SIZE: Bytes = 32
export const IV_SIZE: Bytes = 16
/** Some 200 bytes are usual. */
const MAX_SIZE: Bytes = 16 << 10

/** The key of one layer, for AES-256-CTR and for HMAC-SHA-256. Disposing wipes it. */
export class LayerKey implements Disposable {
  readonly key: Buffer
  /** The first counter block. */
  readonly iv: Buffer
  /** Of what was encrypted, or of what that is when it is decompressed, `sha256:…`; undefined: nobody says. */
  readonly digest: string | undefined

  /** @param key - Becomes this one's. */
  constructor(key: Buffer, iv: Buffer, digest: string | undefined) {
    this.key = key
    this.iv = iv
    this.digest = digest
  }

  [Symbol.dispose](): void {
    this.key.fill(0)
  }
}

const ALPHABET = Buffer.from("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
const PAD = 0x3d
const QUOTE = 0x22
const BACKSLASH = 0x5c
const COLON = 0x3a
const NAME = Buffer.from("symkey")

const isSpace = (byte: number | undefined): boolean =>
  byte === 0x20 || byte === 0x09 || byte === 0x0a || byte === 0x0d

/** The end of a string of JSON that begins behind a quote: where its other quote is. */
function endOfString(json: Buffer, start: number): number {
  let at = start
  while (at < json.length && json[at] !== QUOTE) at += json[at] === BACKSLASH ? 2 : 1
  return at
}

/** What stands between the quotes of `symkey` in the outermost object; undefined: it is not there once. */
function keyText(json: Buffer): Buffer | undefined {
  const found: Buffer[] = []
  let depth = 0
  for (let at = 0; at < json.length; at++) {
    const byte = json[at]
    if (byte === 0x7b || byte === 0x5b) depth++
    if (byte === 0x7d || byte === 0x5d) depth--
    if (byte !== QUOTE) continue
    const start = at + 1
    at = endOfString(json, start)
    if (depth !== 1 || !json.subarray(start, at).equals(NAME)) continue
    let next = at + 1
    while (isSpace(json[next])) next++
    if (json[next] !== COLON) continue
    next++
    while (isSpace(json[next])) next++
    if (json[next] !== QUOTE) return undefined
    at = endOfString(json, next + 1)
    found.push(json.subarray(next + 1, at))
  }
  return found.length === 1 ? found[0] : undefined
}

/** As Go reads and writes it, with padding. The caller wipes what it gets. */
function decodeBase64(text: Buffer, size: Bytes): Buffer | undefined {
  const digits = Math.ceil((size * 8) / 6)
  const rest = text.subarray(digits)
  if (text.length !== Math.ceil(size / 3) * 4 || !rest.every((byte) => byte === PAD)) return undefined
  const decoded = allocateSecret(size)
  let bits = 0
  let held = 0
  let at = 0
  for (const letter of text.subarray(0, digits)) {
    const value = ALPHABET.indexOf(letter)
    if (value < 0) {
      decoded.fill(0)
      return undefined
    }
    held = ((held << 6) | value) & 0xffff
    bits += 6
    if (bits < 8) continue
    bits -= 8
    decoded[at++] = (held >> bits) & 0xff
  }
  return decoded
}

function encodeBase64(bytes: Buffer, into: Buffer, at: number): number {
  let end = at
  for (let i = 0; i < bytes.length; i += 3) {
    const [a = 0, b = 0, c = 0] = bytes.subarray(i, i + 3)
    const three = (a << 16) | (b << 8) | c
    for (let digit = 0; digit < 4; digit++)
      into[end++] = i + digit > bytes.length ? PAD : (ALPHABET[(three >> (18 - 6 * digit)) & 63] ?? 0)
  }
  return end
}

function malformed(what: string, why: string): OciError {
  return new OciError("ERR_OCI_FORMAT", `${what}: what was wrapped for its recipients ${why}`)
}

/**
 * Reads what was unwrapped; it is overwritten.
 *
 * @throws OciError `ERR_OCI_FORMAT`.
 */
export function readLayerKey(json: Buffer, what: string): LayerKey {
  try {
    if (json.length > MAX_SIZE) throw malformed(what, `has more than ${MAX_SIZE} bytes`)
    const text = keyText(json)
    const key = text === undefined ? undefined : decodeBase64(text, KEY_SIZE)
    if (text === undefined || key === undefined) throw malformed(what, `has no key of ${KEY_SIZE} bytes`)
    text.fill(0x2e)
    try {
      return new LayerKey(key, ...readRest(json, what))
    } catch (error) {
      key.fill(0)
      throw error
    }
  } finally {
    json.fill(0)
  }
}

/** What is no secret in it. */
function readRest(json: Buffer, what: string): [iv: Buffer, digest: string | undefined] {
  let value: unknown
  try {
    value = parseJson(json.toString("utf8"))
  } catch {
    throw malformed(what, "is no JSON")
  }
  const { digest, cipheroptions } = value as Readonly<Record<string, unknown>>
  const { nonce } = (cipheroptions ?? {}) as Readonly<Record<string, unknown>>
  const iv = typeof nonce === "string" ? Buffer.from(nonce, "base64") : undefined
  if (iv?.length !== IV_SIZE) throw malformed(what, `has no initial counter of ${IV_SIZE} bytes`)
  if (digest !== undefined && digest !== null && typeof digest !== "string")
    throw malformed(what, "has a digest that is none")
  return [iv, digest === "" || digest === null ? undefined : digest]
}

/** What is wrapped for recipients, as Go writes it. The caller wipes it. */
export function writeLayerKey({ key, iv, digest = "" }: LayerKey): Buffer {
  const start = Buffer.from('{"symkey":"')
  const rest = Buffer.from(
    `","digest":${JSON.stringify(digest)},"cipheroptions":{"nonce":"${iv.toString("base64")}"}}`,
  )
  const json = allocateSecret(start.length + Math.ceil(key.length / 3) * 4 + rest.length)
  start.copy(json)
  rest.copy(json, encodeBase64(key, json, start.length))
  return json
}
