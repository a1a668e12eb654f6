// Values of a compose file as they are meant: each reader says what is wrong with file, line and path.
import type { ComposeError } from "../errors.ts"
import type { Bytes, Milliseconds } from "../units.ts"
import { errorAt, isNull, textOf, unsupported, type Tree } from "./tree.ts"

const UNITS: Readonly<Record<string, number>> = { b: 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40 }
const TIMES: Readonly<Record<string, Milliseconds>> = {
  h: 3_600_000,
  m: 60_000,
  s: 1000,
  ms: 1,
  us: 0.001,
  ns: 1e-6,
}

/** What reads keys of a mapping: a text stands for why the key is not there, a table for what a mapping below it has. */
export interface Readers {
  readonly [key: string]: ((field: Field) => void) | string | Readers
}

export class Field {
  readonly tree: Tree
  /** As `services.web.ports[0]`. */
  readonly path: string

  constructor(tree: Tree, path: string) {
    this.tree = tree
    this.path = path
  }

  error(message: string): ComposeError {
    return errorAt(this.tree.at, this.path, message)
  }

  unsupported(message: string): ComposeError {
    return unsupported(this.tree.at, this.path, message)
  }

  get isNull(): boolean {
    return isNull(this.tree)
  }

  #leaf(what: string): string {
    if (this.tree.kind !== "leaf" || this.tree.value === null) throw this.error(`it is ${what}`)
    return textOf(this.tree)
  }

  text(): string {
    const text = this.#leaf("a text")
    if (text.includes("\0")) throw this.error("it has a NUL byte in it")
    return text
  }

  flag(): boolean {
    const text = this.#leaf("true or false").toLowerCase()
    if (["true", "yes", "on", "1"].includes(text)) return true
    if (["false", "no", "off", "0"].includes(text)) return false
    throw this.error("it is true or false")
  }

  number(least: number, most: number): number {
    const text = this.#leaf("a number")
    const value = /^[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?$/.test(text) ? Number(text) : NaN
    if (!(value >= least && value <= most)) throw this.error(`it is a number from ${least} to ${most}`)
    return value
  }

  whole(least: number, most: number): number {
    const value = this.number(least, most)
    if (!Number.isInteger(value)) throw this.error("it is a whole number")
    return value
  }

  /** Octal, with or without a 0 before it, as modes are written. */
  mode(): number {
    const [, digits] = /^(?:0o?)?([0-7]{1,4})$/.exec(this.#leaf("a mode, as 0440")) ?? []
    if (digits === undefined) throw this.error("it is a mode, as 0440")
    return Number.parseInt(digits, 8)
  }

  /** `64m`, `1gb`, or bytes. */
  size(): Bytes {
    const [, digits, unit = "b"] =
      /^(\d+(?:\.\d+)?)\s*([bkmgt])?(?:i?b)?$/i.exec(this.#leaf("a size, as 64m")) ?? []
    const value = Math.floor(Number(digits) * (UNITS[unit.toLowerCase()] ?? 1))
    if (digits === undefined || !Number.isSafeInteger(value)) throw this.error("it is a size, as 64m or 1gb")
    return value
  }

  /** `1m30s`. */
  duration(): Milliseconds {
    const text = this.#leaf("a time, as 1m30s")
    const parts = [...text.matchAll(/(\d+(?:\.\d+)?)(h|ms|us|ns|m|s)/g)]
    const isWhole = parts.map(([part]) => part).join("") === text && text !== ""
    if (!isWhole && text !== "0") throw this.error("it is a time, as 1m30s")
    const total = parts.reduce((sum, [, digits, unit = ""]) => sum + Number(digits) * (TIMES[unit] ?? 0), 0)
    if (total > 365 * 86_400_000) throw this.error("it is a year at most")
    return Math.ceil(total)
  }

  oneOf<const T extends string>(...words: readonly T[]): T {
    const text = this.text()
    const found = words.find((word) => word === text)
    if (found === undefined) throw this.error(`it is one of ${words.join(", ")}`)
    return found
  }

  list(): Field[] {
    if (this.tree.kind !== "list") throw this.error("it is a list")
    return this.tree.items.map((one, i) => new Field(one, `${this.path}[${i}]`))
  }

  texts(): string[] {
    return this.list().map((one) => one.text())
  }

  entries(): (readonly [string, Field])[] {
    if (this.tree.kind !== "map") throw this.error("it is a mapping")
    return [...this.tree.entries].map(([key, one]) => [
      key,
      new Field(one, this.path === "" ? key : `${this.path}.${key}`),
    ])
  }

  get(key: string): Field | undefined {
    const found = this.tree.kind === "map" ? this.tree.entries.get(key) : undefined
    return found === undefined || isNull(found)
      ? undefined
      : new Field(found, this.path === "" ? key : `${this.path}.${key}`)
  }

  /** Hands each key that says something to what reads it. Extensions, `x-…`, say nothing. */
  each(readers: Readers): void {
    for (const [key, field] of this.entries()) {
      const reader = Object.hasOwn(readers, key) ? readers[key] : undefined
      if (reader === undefined) {
        if (key.startsWith("x-")) continue
        throw field.unsupported("it is not supported")
      }
      if (field.isNull) continue
      if (typeof reader === "string") throw field.unsupported(reader)
      if (typeof reader === "function") reader(field)
      else field.each(reader)
    }
  }
}
