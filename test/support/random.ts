// Chance that can be had again: each run has a seed of its own, which is told when a test fails, and SIFCRYPT_SEED repeats it.
import { randomInt } from "node:crypto"
import { generator } from "../vectors/load.ts"

const seed = Number(process.env["SIFCRYPT_SEED"] ?? randomInt(1, 2 ** 32))
let told = false

/** A whole number below a bound, at random; each file that asks has a row of its own. */
export function seeded(): (bound: number) => number {
  if (!told) console.log(`      SIFCRYPT_SEED=${seed}`)
  told = true
  return generator(seed)
}
