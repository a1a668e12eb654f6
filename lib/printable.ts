// Text for somebody to read, most of it written by others. A leaf: imports nothing.

/**
 * What steers a terminal, or is not seen and changes what is: control characters, separators of lines and paragraphs, and format
 * characters, among them those of direction. The two that are left out join and part the letters of some scripts.
 */
const steering = /(?![\u200c\u200d])[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu

/** By UTF-16 code units, as JSON has it. */
function escaped(character: string): string {
  const units = Array.from({ length: character.length }, (_, index) => character.charCodeAt(index))
  return units.map((unit) => `\\u${unit.toString(16).padStart(4, "0")}`).join("")
}

/** Shows an untrusted name without letting it steer the terminal or pass for another. */
export function printable(text: string): string {
  return text.replace(steering, (character) => escaped(character).replace("\\u00", "\\x"))
}

/** The same for lines, whose ends and tabs stay. JSON says what it said. */
export function printableLines(text: string): string {
  return text.replace(steering, (character) =>
    character === "\n" || character === "\t" ? character : escaped(character),
  )
}

/** `\xHH` for a byte that text cannot have as it is, or for the backslash of what would otherwise be taken for that. */
const byteText = String.raw`\\x(0[1-9a-f]|1[0-9a-f]|5c|7f|[89a-f][0-9a-f])`
const escapedByte = new RegExp(byteText, "g")
const ambiguous = new RegExp(String.raw`\\(?=${byteText.slice(2)})`, "g")
/** RFC 3629, a byte in each character; and any byte else. */
const sequence =
  /[^\x80-\xff]|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2}|(.)/gs

function byteEscape(byte: number): string {
  return `\\x${byte.toString(16).padStart(2, "0")}`
}

/**
 * The name of a file, which is bytes, as text: what is no UTF-8 as `\xHH`. No two names have one text, and {@link nameBytes} gives
 * the bytes back.
 */
export function nameText(name: Buffer): string {
  const bytes = name.toString("latin1").replace(ambiguous, byteEscape(0x5c))
  const whole = bytes.replace(sequence, (found: string, stray: string | undefined) =>
    stray === undefined ? found : byteEscape(stray.charCodeAt(0)),
  )
  return Buffer.from(whole, "latin1").toString("utf8")
}

/** What {@link nameText} says, or {@link printableName}; a path of such names, too. */
export function nameBytes(text: string): Buffer {
  const bytes = Buffer.from(text).toString("latin1")
  const whole = bytes.replace(escapedByte, (_, hex: string) => String.fromCharCode(parseInt(hex, 16)))
  return Buffer.from(whole, "latin1")
}

/** Shows a name, or a path, in a way that can be given back. */
export function printableName(name: string): string {
  return name.replace(steering, (character) => [...Buffer.from(character)].map(byteEscape).join(""))
}

/** Bytes for people: `1.2 GiB`. */
export function humanBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"]
  let value = bytes
  let unit = 0
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024
    unit++
  }
  return unit === 0 ? `${value} B` : `${value.toFixed(1)} ${units[unit] ?? ""}`
}
