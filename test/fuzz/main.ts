// scripts/fuzz.sh's other half: parsers in turn, for so many seconds, with a seed that is told. `main.ts SECONDS [SEED] [PARSER]...`
import { randomInt } from "node:crypto"
import { mkdirSync, writeFileSync } from "node:fs"
import path from "node:path"
import { generator } from "../vectors/load.ts"
import { Finding, tryParser, Work } from "./loop.ts"
import { parsers } from "./parsers.ts"

/** Inputs before the next parser has its turn, and milliseconds of the processor. */
const TURN = 4096
const TURN_MS = 100

const [, , seconds = "60", given = String(randomInt(1, 2 ** 32)), ...names] = process.argv
const seed = Number(given)
const end = performance.now() + Number(seconds) * 1000
const folder = path.join(import.meta.dirname, "..", "..", "build-fuzz", "findings")
const wanted = Object.entries(parsers).filter(([what]) => names.length === 0 || names.includes(what))
const counts = new Map<string, { read: number; refused: number }>()
let findings = 0
const say = (text: string): void => void process.stdout.write(`${text}\n`)

say(`seed ${seed}`)
{
  using work = new Work()
  for (let round = 0; performance.now() < end; round++)
    for (const [what, parser] of wanted) {
      // The same inputs for the same seed, however many the turn before had time for.
      const random = generator((seed + round * 0x9e3779b9) >>> 0)
      const before = process.cpuUsage()
      const spent = (): number => {
        const { user, system } = process.cpuUsage(before)
        return (user + system) / 1000
      }
      const all = counts.get(what) ?? { read: 0, refused: 0 }
      counts.set(what, all)
      try {
        const some = await tryParser(
          what,
          parser,
          random,
          (tried) => tried < TURN && (tried % 16 !== 0 || (spent() < TURN_MS && performance.now() < end)),
          work,
        )
        all.read += some.read
        all.refused += some.refused
      } catch (error) {
        if (!(error instanceof Finding)) throw error
        findings++
        mkdirSync(folder, { recursive: true })
        const file = path.join(folder, `parsers-${findings}`)
        writeFileSync(file, error.input)
        say(`FOUND ${file}: ${error.message.slice(0, 300)}`)
        say(String(error.cause instanceof Error ? error.cause.stack : error.cause))
      }
    }
}
let tried = 0
for (const [what, { read, refused }] of counts) {
  tried += read + refused
  say(`${what}: ${read} read, ${refused} refused`)
}
say(`${tried} runs, ${findings === 0 ? "nothing found" : `${findings} findings`}`)
process.exitCode = findings === 0 ? 0 : 1
