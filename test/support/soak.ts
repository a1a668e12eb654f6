// How often is done what is promised for hundreds of times, and what is left to chance in it.
import { randomInt } from "node:crypto"

/** Everything as often as it is promised (`scripts/test.sh soak`); otherwise as often as a run of all tests has time for. */
export const isSoak: boolean = process.env["SIFCRYPT_SOAK"] !== undefined

/** How often: a variable's number, or what fits. */
export function times(variable: string, promised: number, otherwise: number): number {
  return Number(process.env[variable] ?? (isSoak ? promised : otherwise))
}

/** What all chance comes of; SIFCRYPT_SEED repeats it. */
export const seed: number = Number(process.env["SIFCRYPT_SEED"] ?? randomInt(2 ** 32))

/** Chance that can be repeated. (mulberry32) */
export class Chance {
  #state: number

  constructor(from: number = seed) {
    this.#state = from | 0
  }

  /** At least 0, less than `end`. */
  below(end: number): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0
    let mixed = Math.imul(this.#state ^ (this.#state >>> 15), this.#state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * end)
  }

  pick<T>(from: readonly T[]): T {
    const picked = from[this.below(from.length)]
    if (picked === undefined) throw new RangeError("nothing to pick from")
    return picked
  }
}

/** Does something again and again, some of it at once: mostly it waits. `place` tells those at work from each other. */
export async function repeat(
  count: number,
  width: number,
  body: (round: number, place: number) => Promise<void>,
): Promise<void> {
  let next = 0
  await Promise.all(
    Array.from({ length: width }, async (_, place) => {
      while (next < count) await body(next++, place)
    }),
  )
}
