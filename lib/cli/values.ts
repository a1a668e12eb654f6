// How counts, sizes, durations and lists are written on the command line: one grammar, whatever the command (docs/cli.md, Numbers).
import { InvalidArgumentError } from "commander"
import { parseCsv } from "./csv.ts"

/** What is measured: the letters behind a number, and what they stand for. */
interface Measure {
  readonly pattern: RegExp
  readonly letters: Readonly<Record<string, number>>
  /** How the smallest part is counted. */
  readonly round: (value: number) => number
}

/** A unit in which an option counts where no letter is behind the number. */
interface Unit {
  readonly name: string
  readonly worth: number
}

const sizes: Measure = {
  pattern: /^(\d{1,15}(?:\.\d{1,3})?)([bkmgt]|[kmgt]i?b)?$/i,
  letters: { b: 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40 },
  round: Math.floor,
}
const durations: Measure = {
  pattern: /^(\d{1,15}(?:\.\d{1,3})?)([smhd])?$/i,
  letters: { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 },
  round: Math.round,
}

export const BYTES: Unit = { name: "bytes", worth: 1 }
export const MEBIBYTES: Unit = { name: "MiB", worth: 2 ** 20 }
export const GIBIBYTES: Unit = { name: "GiB", worth: 2 ** 30 }
export const SECONDS: Unit = { name: "seconds", worth: 1000 }
export const DAYS: Unit = { name: "days", worth: 86_400_000 }

/** A kind of value: how an option's text is read. */
export type Reader<T> = (text: string) => T

/** Of an option that can be repeated: what it has in order. With `list`, each time that is a list as well. */
export type Repeated<T> = ((text: string, earlier: readonly T[] | undefined) => T[]) & {
  readonly repeatable: "each" | "list"
}

/** As it is written. */
export const text: Reader<string> = (word) => word

/** No value: the option is there. */
export const flag: Reader<true> = () => true

const yes: ReadonlySet<string> = new Set(["1", "t", "T", "TRUE", "true", "True"])
const no: ReadonlySet<string> = new Set(["0", "f", "F", "FALSE", "false", "False"])

/** A truth value in any spelling of Go's, which the peers are written in; undefined for what is none. */
export function truth(word: string): boolean | undefined {
  return yes.has(word) ? true : no.has(word) ? false : undefined
}

/** @returns NaN for what is none. */
export function parseInteger(text: string): number {
  return /^-?\d{1,15}$/.test(text) ? Number(text) : Number.NaN
}

/** @returns NaN for what is none. */
export function parseDecimal(text: string): number {
  return /^\d{1,9}(?:\.\d{1,9})?$/.test(text) ? Number(text) : Number.NaN
}

function parseMeasure(text: string, { pattern, letters, round }: Measure, unit: Unit): number {
  const [, digits, letter] = pattern.exec(text) ?? []
  const value = round(Number(digits) * (letters[letter?.charAt(0).toLowerCase() ?? ""] ?? unit.worth))
  return Number.isSafeInteger(value) ? value : Number.NaN
}

/** @returns Bytes; NaN for what is no size. */
export function parseSize(text: string): number {
  return parseMeasure(text, sizes, BYTES)
}

/** Whole numbers, both ends included. */
export function count(least: number, most: number): Reader<number> {
  return (text) => {
    const value = /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN
    if (value >= least && value <= most) return value
    throw new InvalidArgumentError(`It is ${least} to ${most}.`)
  }
}

function measure(what: Measure, unit: Unit, least: number, most: number, step: number): Reader<number> {
  return (text) => {
    const value = parseMeasure(text, what, unit)
    const { name, worth } = unit
    if (value >= least * worth && value <= most * worth && value % step === 0) return value
    const whole = step === 1 ? "" : ` in steps of ${step / worth}`
    const letters = Object.keys(what.letters).join(", ")
    throw new InvalidArgumentError(
      `It is ${least} to ${most} ${name}${whole}; a number may have its own unit behind it: ${letters}.`,
    )
  }
}

/**
 * A size: gives bytes.
 *
 * @param unit - Of a number without a letter, and of the ends.
 * @param step - It is a multiple of so many bytes.
 */
export function size(unit: Unit, least: number, most: number, step = 1): Reader<number> {
  return measure(sizes, unit, least, most, step)
}

/**
 * A duration: gives milliseconds.
 *
 * @param unit - Of a number without a letter, and of the ends.
 * @param step - It is a multiple of so many milliseconds.
 */
export function duration(unit: Unit, least: number, most: number, step = 1): Reader<number> {
  return measure(durations, unit, least, most, step)
}

/** Words with commas between them, quoted as in CSV; an empty one is a word, too: what reads it refuses it. */
export function words(text: string): string[] {
  return parseCsv(text).map((word) => word.trim())
}

/** `NAME=VALUE` each; without a value it is empty. */
export function pairs(words: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    words.map((word) => {
      const [name = "", ...value] = word.split("=")
      return [name, value.join("=")]
    }),
  )
}

/** A value for each time that the option is given. */
export function each<T>(read: Reader<T>): Repeated<T> {
  return Object.assign((word: string, earlier: readonly T[] = []) => [...earlier, read(word)], {
    repeatable: "each" as const,
  })
}

/** A value for each word, where it takes a list as well. */
export function eachOf<T>(read: Reader<T>): Repeated<T> {
  const add = (line: string, earlier: readonly T[] = []): T[] => {
    let list: string[]
    try {
      list = words(line)
    } catch (error) {
      if (error instanceof RangeError) throw new InvalidArgumentError(`There is ${error.message}.`)
      throw error
    }
    return [...earlier, ...list.map(read)]
  }
  return Object.assign(add, { repeatable: "list" as const })
}
