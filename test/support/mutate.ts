// Inputs of strangers, changed at random: bytes, pieces, and words that parsers stumble over.

/** What has made parsers stumble: the ends of numbers, names that objects have anyway, brackets, escapes, letters of more than one byte. */
const words = [
  ...[
    "-1",
    "0",
    "00",
    "1e999",
    "9007199254740993",
    "18446744073709551616",
    "0x10",
    "NaN",
    "null",
    "[]",
    "{}",
  ],
  ...[
    "__proto__",
    "constructor",
    "toString",
    "hasOwnProperty",
    "\0",
    "\\",
    "\n",
    "\r\n",
    "\t",
    " ",
    "%",
    "{{",
    "}}",
  ],
  ...[
    "[z-a]",
    "[",
    "]",
    "(",
    ")",
    "{",
    "}",
    "|",
    "*",
    "!(",
    "**/",
    "..",
    "/",
    "//",
    ":",
    ",",
    "=",
    "#",
    "@",
    "+",
    "-",
    '"',
    "'",
  ],
  ...["\u2028", "\ufeff", "\u{1f512}", "\ud800", "A".repeat(300), "[".repeat(300), "(".repeat(300), "é"],
].map((word) => Buffer.from(word))

/** Changes a few bytes, cuts, repeats or swaps pieces, or puts words in. */
export function mutate(original: Buffer, random: (bound: number) => number): Buffer {
  const bytes = Buffer.from(original)
  if (bytes.length === 0) return words[random(words.length)] ?? bytes
  const at = random(bytes.length)
  const word = words[random(words.length)] ?? bytes
  const piece = bytes.subarray(at, at + 1 + random(40))
  switch (random(9)) {
    case 0:
      return bytes.subarray(0, at)
    case 1:
      return Buffer.concat([bytes, bytes.subarray(at)])
    case 2:
      return Buffer.concat([bytes.subarray(at), bytes.subarray(0, at)])
    case 3:
      return Buffer.concat([bytes.subarray(0, at), word, bytes.subarray(at)])
    case 4:
      return Buffer.concat([bytes.subarray(0, at), word, bytes.subarray(at + piece.length)])
    case 5:
      return Buffer.concat([
        bytes.subarray(0, at),
        ...Array<Buffer>(1 + random(50)).fill(piece),
        bytes.subarray(at),
      ])
    default:
      for (let count = 1 + random(3); count > 0; count--) bytes[random(bytes.length)] = random(256)
      return bytes
  }
}
