// JSON in which a secret stands as base64: read and written so that the secret never becomes a string, which nobody could wipe.
import { allocateSecret } from "./secret.ts"

const ALPHABET = Buffer.from("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
const PAD = 0x3d
const QUOTE = 0x22
const BACKSLASH = 0x5c
const COLON = 0x3a
/** What stands where a secret stood. */
const DOT = 0x2e

const isSpace = (byte: number | undefined): boolean =>
  byte === 0x20 || byte === 0x09 || byte === 0x0a || byte === 0x0d

/** The end of a string of JSON that begins behind a quote: where its other quote is. */
function endOfString(json: Buffer, start: number): number {
  let at = start
  while (at < json.length && json[at] !== QUOTE) at += json[at] === BACKSLASH ? 2 : 1
  return at
}

/** A name of an object's, or null for any place in a list. */
export type JsonStep = string | null

/** What stands between the quotes of the strings that these steps lead to from the outermost object. */
function stringsAt(json: Buffer, steps: readonly JsonStep[]): Buffer[] {
  const wanted = steps.map((step) => (step === null ? null : Buffer.from(step)))
  const found: Buffer[] = []
  /** Of each object that is open, the name that was read last; null: a list. */
  const open: (Buffer | null)[] = []
  const none = Buffer.alloc(0)
  for (let at = 0; at < json.length; at++) {
    const byte = json[at]
    if (byte === 0x7b) open.push(none)
    else if (byte === 0x5b) open.push(null)
    else if (byte === 0x7d || byte === 0x5d) open.pop()
    if (byte !== QUOTE) continue
    const start = at + 1
    at = endOfString(json, start)
    const text = json.subarray(start, at)
    let next = at + 1
    while (isSpace(json[next])) next++
    if (json[next] === COLON && open.length > 0 && open.at(-1) !== null) open[open.length - 1] = text
    else if (
      open.length === wanted.length &&
      wanted.every((step, i) => (step === null ? open[i] === null : open[i]?.equals(step) === true))
    )
      found.push(text)
  }
  return found
}

/** Letters that some writers of JSON write in other words, in place: a slash behind a backslash, and any by its number. */
function unescape(text: Buffer): Buffer {
  let end = 0
  for (let at = 0; at < text.length; at++, end++) {
    let byte = text[at] ?? 0
    if (byte === BACKSLASH) {
      byte = text[++at] ?? 0
      if (byte === 0x75) {
        byte = Number.parseInt(text.toString("latin1", at + 1, at + 5), 16) & 0xff
        at += 4
      }
    }
    text[end] = byte
  }
  return text.subarray(0, end)
}

/** As Go reads and writes it, with padding. The caller wipes what it gets. */
function decodeBase64(text: Buffer): Buffer | undefined {
  const padding = text.at(-1) === PAD ? (text.at(-2) === PAD ? 2 : 1) : 0
  if (text.length === 0 || text.length % 4 !== 0) return undefined
  const decoded = allocateSecret((text.length / 4) * 3 - padding)
  let bits = 0
  let held = 0
  let at = 0
  for (const letter of text.subarray(0, text.length - padding)) {
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

/**
 * The secret that is the one string which these names lead to, from the outermost object; in the JSON dots stand for it then.
 *
 * @returns What the caller wipes; undefined: it is not there once, or no base64.
 */
export function takeSecret(json: Buffer, names: readonly string[]): Buffer | undefined {
  const [text, ...others] = stringsAt(json, names)
  if (text === undefined || others.length > 0) return undefined
  return take(text)
}

/**
 * Likewise all that is in the list which these names lead to.
 *
 * @returns undefined: one of them is no base64, and all were wiped. An empty one is as long.
 */
export function takeSecrets(json: Buffer, names: readonly string[]): Buffer[] | undefined {
  const found = stringsAt(json, [...names, null]).map((text) =>
    text.length === 0 ? allocateSecret(0) : take(text),
  )
  if (found.every((secret) => secret !== undefined)) return found
  for (const secret of found) secret?.fill(0)
  return undefined
}

function take(text: Buffer): Buffer | undefined {
  const secret = decodeBase64(unescape(text))
  text.fill(DOT)
  return secret
}

/** JSON with a secret between what stands before and behind its quotes. The caller wipes it. */
export function writeSecret(before: string, secret: Buffer, behind: string): Buffer {
  const [start, end] = [Buffer.from(`${before}"`), Buffer.from(`"${behind}`)]
  const json = allocateSecret(start.length + Math.ceil(secret.length / 3) * 4 + end.length)
  start.copy(json)
  end.copy(json, encodeBase64(secret, json, start.length))
  return json
}
