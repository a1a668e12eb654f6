// Text that others wrote, for somebody to read. A leaf: imports nothing.

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
