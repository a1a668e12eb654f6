// How much work a key file may ask for before a password opens it. The numbers are the file's, and are looked at before a primitive
// gets them: nothing stops OpenSSL or bcrypt in the middle.
import { unsupported } from "./found-key.ts"

/** In iterations of PBKDF2, for all keys of a file: some seconds. */
const MAX_ITERATIONS = 20_000_000

/** What is counted, and what one of them costs in iterations of PBKDF2. */
export const Stretch = {
  pbkdf2: { of: "iterations", weight: 1 },
  /** N times r times p. */
  scrypt: { of: "blocks of scrypt", weight: 1 },
  /** PKCS#5's first scheme, and those of PKCS#12: a key and an IV. */
  pbes1: { of: "iterations", weight: 3 },
  /** RFC 7292, B.2: the key of a MAC. */
  pkcs12Mac: { of: "iterations", weight: 1 },
  bcrypt: { of: "rounds of bcrypt", weight: 40_000 },
} as const

/** What one file may still ask for. */
export class Stretching {
  readonly #origin: string
  #left = MAX_ITERATIONS

  constructor(origin: string) {
    this.#origin = origin
  }

  /**
   * Before it is done.
   *
   * @returns `count`.
   * @throws KeyError `ERR_KEY_UNSUPPORTED`.
   */
  spend(count: number, { of, weight }: (typeof Stretch)[keyof typeof Stretch], what: string): number {
    if (!(count * weight <= this.#left)) {
      const most = Math.floor(MAX_ITERATIONS / weight)
      throw unsupported(this.#origin, `${what} with ${count} ${of} (at most ${most} in a file)`)
    }
    this.#left -= count * weight
    return count
  }
}
