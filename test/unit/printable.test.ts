// What others wrote does not steer the terminal of whoever reads it.
import assert from "node:assert/strict"
import { nameBytes, nameText, printable, printableLines, printableName } from "../../lib/printable.ts"
import { seeded } from "../support/random.ts"

/** Direction, invisible, between lines, tags; the first and last of each block. */
const hostile = [
  ...[0x00, 0x07, 0x09, 0x0a, 0x0d, 0x1b, 0x1f, 0x7f, 0x80, 0x85, 0x9b, 0x9f, 0xad],
  ...[0x61c, 0x180e, 0x200b, 0x200e, 0x200f, 0x2028, 0x2029, 0x202a, 0x202e, 0x2060, 0x2064, 0x2066, 0x2069],
  ...[0x206a, 0x206f, 0xfeff, 0xfff9, 0xfffb, 0x1d173, 0xe0001, 0xe0020, 0xe007f],
].map((code) => String.fromCodePoint(code))

describe("printable", () => {
  it("leaves no character that steers, hides or breaks a line", () => {
    for (const character of hostile)
      assert.match(printable(`a${character}b`), /^a(?:\\x[0-9a-f]{2}|\\u[0-9a-f]{4})+b$/)
    assert.equal(printable("\x1b[2J \u202egpj.exe \u{e0041}"), "\\x1b[2J \\u202egpj.exe \\udb40\\udc41")
  })

  it("leaves letters of every script, and what joins them", () => {
    for (const text of ["naïve", "日本語", "می‌خواهم", "क्‍ष", "👩‍🔬", "שלום", "a\\x1b"])
      assert.equal(printable(text), text)
  })

  it("says a name that is no UTF-8 so that it can be told apart and given back", () => {
    for (const [bytes, says] of [
      [Buffer.from("naïve"), "naïve"],
      [Buffer.from("na\xefve", "latin1"), "na\\xefve"],
      [Buffer.from("na\\xefve"), "na\\x5cxefve"],
      [Buffer.from("na\\x5cxefve"), "na\\x5cx5cxefve"],
      [Buffer.from("na\ufffdve"), "na\ufffdve"],
      [Buffer.from("a\xe6\x97", "latin1"), "a\\xe6\\x97"],
      [Buffer.from("\xed\xa0\x80 \xc0\xaf \xf5", "latin1"), "\\xed\\xa0\\x80 \\xc0\\xaf \\xf5"],
      // What systemd has: nothing that would be taken for a byte.
      [Buffer.from("system-a\\x2db\\x40.slice"), "system-a\\x2db\\x40.slice"],
      [Buffer.from("\\\\x \\XFF \\xFF \\x00 \\x2f \\"), "\\\\x \\XFF \\xFF \\x00 \\x2f \\"],
      [Buffer.from("\\\xff", "latin1"), "\\\\xff"],
    ] as const) {
      assert.equal(nameText(bytes), says)
      assert.deepEqual(nameBytes(says), bytes)
    }
    assert.equal(printableName("a\nb\x1b\u202e"), "a\\x0ab\\x1b\\xe2\\x80\\xae")
  })

  it("gives any name a text of its own, seen on a terminal or not", () => {
    const random = seeded()
    const pieces = [
      "\\",
      "x",
      "\\x",
      "5c",
      "ff",
      "0a",
      "\n",
      "\x80",
      "\xe2\x80\xae",
      "\xe2\x80",
      "\xc3\xa9",
      "a",
      "2d",
    ]
    for (let round = 0; round < 20_000; round++) {
      const latin1 = Array.from({ length: 1 + random(6) }, () => pieces[random(pieces.length)]).join("")
      const name = Buffer.from(latin1, "latin1")
      assert.deepEqual(nameBytes(nameText(name)), name)
      assert.deepEqual(nameBytes(printableName(nameText(name))), name)
      assert.equal(printable(printableName(nameText(name))), printableName(nameText(name)))
    }
  })

  it("says the same twice, and what JSON says", () => {
    const all = hostile.join("")
    assert.equal(printable(printable(all)), printable(all))
    const shown = printableLines(JSON.stringify({ [all]: all }, null, "\t"))
    assert.doesNotMatch(shown, /(?![\n\t])[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u)
    assert.deepEqual(JSON.parse(shown), { [all]: all })
    assert.equal(printableLines("a\tb\n"), "a\tb\n")
  })
})
