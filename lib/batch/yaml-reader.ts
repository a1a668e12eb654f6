// YAML of strangers, read strictly: whoever takes a value knows where it stands, so that every error names file, line and key.
import {
  isAlias,
  isMap,
  isScalar,
  isSeq,
  Lexer,
  LineCounter,
  parseDocument,
  type Document,
  type Node,
} from "yaml"
import { BatchError } from "../errors.ts"
import type { Bytes } from "../units.ts"

/** Longer than any configuration. */
export const MAX_YAML_SIZE: Bytes = 2 << 20
/** Values that are looked at, what an alias repeats counted each time: a few hundred bytes of aliases can stand for billions. */
const MAX_VALUES = 200_000

/** Levels that a configuration has at most. The parser calls itself for each, and a thousand end the process. */
const MAX_LEVELS = 50
/** What says before the parser that the next word is text. */
const SCALAR = "\u001f"

/** Is it nested more deeply than any configuration? By brackets, or by what stands in front of a line's text. */
function isTooDeep(text: string): boolean {
  // Every level of a block takes a column, or an indicator.
  if (/^[ \t?:-]{101}/m.test(text)) return true
  let levels = 0
  let isText = false
  for (const word of new Lexer().lex(text)) {
    if (!isText && (word === "[" || word === "{") && ++levels > MAX_LEVELS) return true
    if (!isText && (word === "]" || word === "}")) levels--
    isText = word === SCALAR
  }
  return false
}

interface Source {
  readonly file: string
  readonly document: Document.Parsed
  readonly lines: LineCounter
  values: number
}

/** As the keys of the file are written. */
function snakeCase(key: string): string {
  return key.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
}

/** What a value is for an error message. */
function kindOf(node: Node | null | undefined): string {
  if (isMap(node)) return "a mapping"
  if (isSeq(node)) return "a list"
  if (!isScalar(node) || node.value === null) return "nothing"
  return typeof node.value === "string" ? "a text" : `a ${typeof node.value}`
}

/** A value at its place. */
export class Value {
  readonly #source: Source
  readonly #node: Node | null
  /** Where an alias stands, not what it stands for. */
  readonly #at: number
  /** As `images[0].signing_key`. */
  readonly key: string

  private constructor(source: Source, node: Node | null, key: string, at: number) {
    this.#source = source
    this.key = key
    this.#at = node?.range?.[0] ?? at
    if (++source.values > MAX_VALUES) throw this.error(`more than ${MAX_VALUES} values`)
    this.#node = isAlias(node) ? ((node.resolve(source.document) as Node | undefined) ?? null) : node
  }

  /**
   * Parses a text.
   *
   * @param file - What to call it.
   * @throws BatchError `ERR_BATCH_CONFIG`.
   */
  static parse(text: string, file: string): Value {
    const lines = new LineCounter()
    const fail = (message: string, at: number): BatchError =>
      new BatchError("ERR_BATCH_CONFIG", `${file}:${lines.linePos(at).line}: ${message}`, { path: file })
    const tooDeep = (cause?: unknown): BatchError =>
      new BatchError("ERR_BATCH_CONFIG", `${file}: it is nested too deeply`, { path: file, cause })
    if (isTooDeep(text)) throw tooDeep()
    let document: Document.Parsed
    try {
      document = parseDocument(text, {
        lineCounter: lines,
        prettyErrors: false,
        stringKeys: true,
        // The parser would compare each with each.
        uniqueKeys: false,
        version: "1.2",
        schema: "core",
      })
    } catch (cause) {
      throw tooDeep(cause)
    }
    const [error] = [...document.errors, ...document.warnings]
    if (error !== undefined) throw fail(error.message.replaceAll(/\s+/g, " "), error.pos[0])
    return new Value({ file, document, lines, values: 0 }, document.contents, "", 0)
  }

  get #name(): string {
    return this.key === "" ? "the file" : this.key
  }

  error(message: string): BatchError {
    const { file, lines } = this.#source
    const line = Math.max(1, lines.linePos(this.#at).line)
    return new BatchError("ERR_BATCH_CONFIG", `${file}:${line}: ${this.#name}: ${message}`, { path: file })
  }

  #wrong(what: string): BatchError {
    return this.error(`it is ${what}, not ${kindOf(this.#node)}`)
  }

  get isNull(): boolean {
    return this.#node === null || (isScalar(this.#node) && this.#node.value === null)
  }

  get isMapping(): boolean {
    return isMap(this.#node)
  }

  get isList(): boolean {
    return isSeq(this.#node)
  }

  /** Every key with its value, in order. */
  entries(): readonly (readonly [string, Value])[] {
    if (!isMap(this.#node)) throw this.#wrong("a mapping")
    const seen = new Set<string>()
    return this.#node.items.map((pair) => {
      const key = pair.key as Node
      const name = isScalar(key) && typeof key.value === "string" ? key.value : ""
      const at = key.range?.[0] ?? this.#at
      const path = this.key === "" ? name : `${this.key}.${name}`
      const wrong =
        name === "" || name === "<<" ? "it is no key" : seen.has(name) ? "it is there twice" : undefined
      if (wrong !== undefined) throw new Value(this.#source, null, path, at).error(wrong)
      seen.add(name)
      return [name, new Value(this.#source, pair.value as Node | null, path, at)] as const
    })
  }

  /**
   * A mapping with these keys and no others; `some_key` is read by `someKey`.
   *
   * @param readers - What each is read with; a key that is not there, or is null, is left out of the result.
   */
  read<T extends object>(readers: {
    readonly [K in keyof T]-?: (value: Value) => NonNullable<T[K]>
  }): Partial<T> {
    const found: { -readonly [K in keyof T]?: T[K] } = {}
    const known = new Map(Object.keys(readers).map((key) => [snakeCase(key), key as keyof T]))
    for (const [name, value] of this.entries()) {
      const key = known.get(name)
      if (key === undefined)
        throw value.error(`there is no such key here: there are ${[...known.keys()].join(", ")}`)
      if (!value.isNull) found[key] = readers[key](value)
    }
    return found
  }

  list<T>(read: (value: Value) => T, { least = 0 }: { readonly least?: number } = {}): T[] {
    if (!isSeq(this.#node)) throw this.#wrong("a list")
    if (this.#node.items.length < least) throw this.error("it is empty")
    return this.#node.items.map((node, index) =>
      read(new Value(this.#source, node as Node, `${this.key}[${index}]`, this.#at)),
    )
  }

  text(pattern?: RegExp, what = "a text"): string {
    const value = isScalar(this.#node) ? this.#node.value : undefined
    if (typeof value !== "string") throw this.#wrong(what)
    if (value.includes("\0")) throw this.error("it has a NUL byte in it")
    if (pattern !== undefined && !pattern.test(value))
      throw this.error(`it is no ${what.replace(/^an? /, "")}`)
    return value
  }

  /** A word of a command line: a number is taken as it is written. */
  word(): string {
    if (
      isScalar(this.#node) &&
      (typeof this.#node.value === "number" || typeof this.#node.value === "boolean")
    )
      return this.#node.source ?? String(this.#node.value)
    return this.text()
  }

  /** Hexadecimal digits, which may look like a number. */
  hex(pattern: RegExp, what: string): string {
    const value = this.word()
    if (!pattern.test(value)) throw this.error(`it is no ${what}`)
    return value
  }

  flag(): boolean {
    const value = isScalar(this.#node) ? this.#node.value : undefined
    if (typeof value !== "boolean") throw this.#wrong("true or false")
    return value
  }

  number(least: number, most: number): number {
    const value = isScalar(this.#node) ? this.#node.value : undefined
    if (typeof value !== "number") throw this.#wrong("a number")
    if (!(value >= least && value <= most)) throw this.error(`it is ${least} to ${most}, not ${value}`)
    return value
  }

  whole(least: number, most: number): number {
    const value = this.number(least, most)
    if (!Number.isInteger(value)) throw this.error(`it is a whole number, not ${value}`)
    return value
  }

  oneOf<const T extends string>(...words: readonly T[]): T {
    const value = this.text()
    const found = words.find((word) => word === value)
    if (found === undefined) throw this.error(`it is one of ${words.join(", ")}`)
    return found
  }
}
