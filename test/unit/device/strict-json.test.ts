import assert from "node:assert/strict"
import { parseStrictJson } from "../../../lib/device/strict-json.ts"
import { generator } from "../../vectors/load.ts"

/** Objects of the parser have no prototype; for comparisons. */
const plain = (value: unknown): unknown => JSON.parse(JSON.stringify(value))

describe("parseStrictJson", () => {
  for (const text of [
    "null",
    "true",
    "false",
    "0",
    "12.5e-3",
    '""',
    '"\\u00e9\\n\\"\\\\\\/"',
    "[]",
    "{}",
    ' \t\r\n[ 1 , "a" , [ ] , { } ] \n',
    '{"a":{"b":[1,2,{"c":null}]},"é":"ü"}',
    "[".repeat(16) + "]".repeat(16),
  ])
    it(`reads ${text.length > 40 ? "arrays nested sixteen deep" : JSON.stringify(text)} as JSON.parse does`, () => {
      assert.deepEqual(plain(parseStrictJson(text)), JSON.parse(text))
    })

  for (const [text, says] of [
    ["", /no value at character 0/],
    [" ", /no value at character 1/],
    ["nul", /no value/],
    ["nulll", /text after the value/],
    ["True", /no value/],
    ["undefined", /no value/],
    ["01", /text after the value/],
    ["+1", /no value/],
    [".5", /no value/],
    ["1.", /text after the value/],
    ["- 1", /no value/],
    ["Infinity", /no value/],
    ['"a', /no well-formed string/],
    ['"\\u12"', /no well-formed string/],
    ['"\t"', /no well-formed string/],
    ["'a'", /no value/],
    ["[1 2]", /no end of the array/],
    ["[1,]", /no value/],
    ["[,1]", /no value/],
    ["[", /no value/],
    ["{", /no well-formed string/],
    ['{"a"}', /no colon/],
    ['{"a":}', /no value/],
    ['{"a":1,}', /no well-formed string/],
    ["{a:1}", /no well-formed string/],
    ["{1:1}", /no well-formed string/],
    ['{"a":1 "b":2}', /no end of the object/],
    ['{"a":1,"a":1}', /a second "a"/],
    ['{"a":1,"\\u0061":1}', /a second "a"/],
    ['{"a":{"b":1,"c":2,"b":3}}', /a second "b"/],
    ["1 2", /text after the value/],
    ["\u00a01", /no value/],
    ["\ufeff1", /no value/],
    ["[".repeat(18) + "]".repeat(18), /too deep a nesting/],
    [`[${"1,".repeat(20_000)}1]`, /too many values/],
  ] as const)
    it(`refuses ${JSON.stringify(text.length > 40 ? `${text.slice(0, 20)}…` : text)}`, () => {
      assert.throws(() => parseStrictJson(text), { name: "SyntaxError", message: says })
    })

  it("keeps names that objects have by themselves apart from any prototype", () => {
    const value = parseStrictJson('{"__proto__":{"x":1},"constructor":2,"toString":3}') as Record<
      string,
      unknown
    >
    assert.equal(Object.getPrototypeOf(value), null)
    assert.deepEqual(Object.keys(value), ["__proto__", "constructor", "toString"])
    assert.equal(({} as Record<string, unknown>)["x"], undefined)
  })

  it("accepts nothing that JSON.parse refuses, and reads the same where both accept", () => {
    const random = generator(7)
    const alphabet = '{}[]:,"\\u0aeE+-.1 \ntrufalsn\u0000é'
    let accepted = 0
    for (let round = 0; round < 20_000; round++) {
      let text = '{"a":[1,-2.5e3,"x\\n",{"b":null,"c":true}],"d":{}}'
      for (let count = random(4); count > 0; count--) {
        const at = random(text.length)
        text = text.slice(0, at) + (alphabet[random(alphabet.length)] ?? "") + text.slice(at + random(2))
      }
      let value: unknown
      try {
        value = parseStrictJson(text)
      } catch (error) {
        if (!(error instanceof SyntaxError)) throw error
        continue
      }
      accepted++
      assert.deepEqual(plain(value), JSON.parse(text), text)
    }
    assert.ok(accepted > 2000, `${accepted} accepted`)
  })
})
