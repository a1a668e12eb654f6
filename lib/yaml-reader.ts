// YAML of strangers, read strictly: whoever takes a value knows where it stands, so that every error names file, line and key. A leaf:
// anyone may import it.
import {
  isAlias,
  isMap,
  isScalar,
  isSeq,
  Lexer,
  LineCounter,
  parseDocument,
  visit,
  type Alias,
  type Document,
  type Node,
  type Tags,
} from "yaml"
import type { ContainerError, ContainerErrorOptions } from "./errors.ts"
import type { Bytes } from "./units.ts"

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

/** What a kind of file has of its own. */
export interface YamlKind {
  /** What is thrown of it. */
  readonly error: (message: string, options: ContainerErrorOptions) => ContainerError
  /** Tags that its values may have, as `!reset`. */
  readonly tags?: readonly string[]
  /** `<<` takes the keys of other mappings over. */
  readonly merges?: true
}

interface Source {
  readonly file: string
  readonly kind: YamlKind
  /** What each alias stands for. */
  readonly targets: ReadonlyMap<Alias, Node>
  readonly lines: LineCounter
  values: number
}

/** An alias means the last value of that name that begins before it. Looking for each anew would be looking at all for each. */
function targetsOf(document: Document.Parsed): Map<Alias, Node> {
  const named = new Map<string, Node>()
  const targets = new Map<Alias, Node>()
  visit(document, {
    Node: (_, node) => {
      if (isAlias(node)) {
        const target = named.get(node.source)
        if (target !== undefined) targets.set(node, target)
      } else if (node.anchor !== undefined) named.set(node.anchor, node)
    },
  })
  return targets
}

/** What is tagged stays what it is. */
function tagsFor(names: readonly string[]): Tags {
  return names.flatMap((tag): Tags => [
    { tag, collection: "map", resolve: (value) => value },
    { tag, collection: "seq", resolve: (value) => value },
    { tag, resolve: (text: string) => text },
  ])
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
    const target = isAlias(node) ? source.targets.get(node) : node
    this.#node = target ?? null
    if (target === undefined) throw this.error("there is no anchor of this name before it")
  }

  /**
   * Parses a text.
   *
   * @param file - What to call it.
   * @throws What `kind` says.
   */
  static parse(text: string, file: string, kind: YamlKind): Value {
    const lines = new LineCounter()
    const fail = (message: string, at: number): ContainerError =>
      kind.error(`${file}:${lines.linePos(at).line}: ${message}`, { path: file })
    const tooDeep = (cause?: unknown): ContainerError =>
      kind.error(`${file}: it is nested too deeply`, { path: file, cause })
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
        customTags: tagsFor(kind.tags ?? []),
      })
    } catch (cause) {
      throw tooDeep(cause)
    }
    const [error] = [...document.errors, ...document.warnings]
    if (error !== undefined) throw fail(error.message.replaceAll(/\s+/g, " "), error.pos[0])
    return new Value({ file, kind, targets: targetsOf(document), lines, values: 0 }, document.contents, "", 0)
  }

  get #name(): string {
    return this.key === "" ? "the file" : this.key
  }

  get line(): number {
    return Math.max(1, this.#source.lines.linePos(this.#at).line)
  }

  error(message: string): ContainerError {
    const { file, kind } = this.#source
    return kind.error(`${file}:${this.line}: ${this.#name}: ${message}`, { path: file })
  }

  #wrong(what: string): ContainerError {
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

  /** What stands for itself, and how it is written where that is known. */
  get scalar(): { readonly value: string | number | boolean | null; readonly written?: string } | undefined {
    if (this.#node === null) return { value: null }
    if (!isScalar(this.#node)) return undefined
    const { value, source } = this.#node
    if (typeof value !== "string" && typeof value !== "number" && typeof value !== "boolean")
      return { value: null }
    return { value, ...(source === undefined ? {} : { written: source }) }
  }

  /** As `!reset`, one of those that the kind of file has. */
  get tag(): string | undefined {
    const { tags = [] } = this.#source.kind
    const tag = this.#node?.tag
    return tag !== undefined && tags.includes(tag) ? tag : undefined
  }

  /** Every key with its value, in order; what is merged comes behind, where there is no such key. */
  entries(): readonly (readonly [string, Value])[] {
    return this.#entries(0)
  }

  #entries(levels: number): readonly (readonly [string, Value])[] {
    if (!isMap(this.#node)) throw this.#wrong("a mapping")
    if (levels > MAX_LEVELS) throw this.error("it is nested too deeply")
    const seen = new Set<string>()
    const merged: (readonly [string, Value])[] = []
    const found: (readonly [string, Value])[] = []
    for (const pair of this.#node.items) {
      const key = pair.key as Node
      const name = isScalar(key) && typeof key.value === "string" ? key.value : ""
      const at = key.range?.[0] ?? this.#at
      const path = this.key === "" ? name : `${this.key}.${name}`
      const merges = name === "<<" && this.#source.kind.merges === true
      const wrong =
        name === "" || (name === "<<" && !merges)
          ? "it is no key"
          : seen.has(name)
            ? "it is there twice"
            : undefined
      if (wrong !== undefined) throw new Value(this.#source, null, path, at).error(wrong)
      seen.add(name)
      if (merges) {
        const from = new Value(this.#source, pair.value as Node | null, this.key, at)
        for (const one of from.isList ? from.#items(this.key) : [from])
          merged.push(...one.#entries(levels + 1))
      } else found.push([name, new Value(this.#source, pair.value as Node | null, path, at)])
    }
    const more = merged.filter(([name]) => !seen.has(name) && seen.add(name))
    return [...found, ...more]
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
    return this.#items().map(read)
  }

  /** @param key - What to call each; default: by its place. */
  #items(key?: string): Value[] {
    if (!isSeq(this.#node)) throw this.#wrong("a list")
    return this.#node.items.map(
      (node, index) => new Value(this.#source, node as Node, key ?? `${this.key}[${index}]`, this.#at),
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
