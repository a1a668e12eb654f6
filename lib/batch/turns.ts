// Work that others ask for, as much of it at once as is good.

/** At most so many at once; others wait for their turn. */
export class Turns {
  #free: number
  readonly #most: number
  readonly #waiting: (() => void)[] = []

  constructor(atOnce: number, waiting: number) {
    this.#free = atOnce
    this.#most = waiting
  }

  /** @returns undefined: too many wait already. */
  async take<T>(use: () => Promise<T>): Promise<T | undefined> {
    if (this.#free === 0) {
      if (this.#waiting.length >= this.#most) return undefined
      await new Promise<void>((resolve) => this.#waiting.push(resolve))
    } else this.#free--
    try {
      return await use()
    } finally {
      const next = this.#waiting.shift()
      if (next === undefined) this.#free++
      else next()
    }
  }
}
