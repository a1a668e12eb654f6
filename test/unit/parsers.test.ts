// A few changed inputs for every parser, the same in each run; `scripts/fuzz.sh HOURS parsers` goes on with others. And each input that
// has ever broken one.
import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import path from "node:path"
import { tryInput, tryParser, Work } from "../fuzz/loop.ts"
import { parsers } from "../fuzz/parsers.ts"
import { generator } from "../vectors/load.ts"

const ROUNDS = 200
const SEED = 20_261_130
/** By parser, in base64. */
const broke = JSON.parse(
  readFileSync(path.join(import.meta.dirname, "../fuzz/corpus/parsers.json"), "utf8"),
) as Readonly<Record<string, readonly string[]>>

describe("a parser", () => {
  let work: Work
  before(() => {
    work = new Work()
  })
  after(() => {
    work[Symbol.dispose]()
  })

  it("has every input that has ever broken one", () => {
    for (const what of Object.keys(broke)) assert.ok(what in parsers, what)
  })

  for (const [what, parser] of Object.entries(parsers))
    it(`of ${what} reads or refuses what was changed, with no more work than any input may be`, async function () {
      this.timeout(0)
      for (const input of parser.inputs) await parser.parse(Buffer.from(input))
      work.takeTooMuch()
      for (const input of broke[what] ?? []) {
        await tryInput(what, parser, Buffer.from(input, "base64"))
        assert.equal(work.takeTooMuch(parser.times), undefined, input)
      }
      const rounds = Math.ceil(ROUNDS * (parser.share ?? 1))
      await tryParser(what, parser, generator(SEED), (tried) => tried < rounds, work)
    })

  it("of a token's key file shows none of it in a warning", async () => {
    const warnings: Error[] = []
    const note = (warning: Error): void => void warnings.push(warning)
    process.on("warning", note)
    try {
      const file = Buffer.from('pkcs11:\n  uri: !pin "pkcs11:object=c?pin-value=1234"\n')
      await parsers["a token's key file"]?.parse(file)
      await new Promise((resolve) => setImmediate(resolve))
    } finally {
      process.off("warning", note)
    }
    assert.deepEqual(warnings, [])
  })
})
