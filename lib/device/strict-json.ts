// JSON as RFC 8259 has it and no further, with bounds: for documents that come out of untrusted files. JSON.parse takes the
// last of two equal names, so two parsers may see two documents in one text; here that is an error.

/** What a text holds. Objects have no prototype. */
export type JsonValue = null | boolean | number | string | readonly JsonValue[] | JsonObject
export interface JsonObject {
  readonly [name: string]: JsonValue
}

/** Deep enough for every known document, shallow enough for every stack. */
const MAX_DEPTH = 16
/** Values of all kinds in one text. */
const MAX_VALUES = 20_000

const space = /[ \t\n\r]*/y
const number = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y
// eslint-disable-next-line no-control-regex -- control characters are what a string must not hold
const string = /"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"/y

class Parser {
  readonly #text: string
  #at = 0
  #values = 0

  constructor(text: string) {
    this.#text = text
  }

  document(): JsonValue {
    const value = this.#value(0)
    this.#match(space)
    if (this.#at !== this.#text.length) this.#fail("text after the value")
    return value
  }

  #fail(what: string): never {
    throw new SyntaxError(`${what} at character ${this.#at} of the JSON`)
  }

  #match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#at
    const found = pattern.exec(this.#text)?.[0]
    if (found !== undefined) this.#at += found.length
    return found
  }

  #take(character: string): boolean {
    this.#match(space)
    if (this.#text[this.#at] !== character) return false
    this.#at += 1
    return true
  }

  #string(): string {
    this.#match(space)
    const literal = this.#match(string)
    if (literal === undefined) this.#fail("no well-formed string")
    return JSON.parse(literal) as string
  }

  #value(depth: number): JsonValue {
    if (depth > MAX_DEPTH) this.#fail("too deep a nesting")
    if (++this.#values > MAX_VALUES) this.#fail("too many values")
    this.#match(space)
    switch (this.#text[this.#at]) {
      case "{":
        return this.#object(depth)
      case "[":
        return this.#array(depth)
      case '"':
        return this.#string()
    }
    for (const [word, value] of [
      ["null", null],
      ["true", true],
      ["false", false],
    ] as const) {
      if (!this.#text.startsWith(word, this.#at)) continue
      this.#at += word.length
      return value
    }
    const digits = this.#match(number)
    if (digits === undefined) this.#fail("no value")
    return Number(digits)
  }

  #object(depth: number): JsonObject {
    const object = Object.create(null) as Record<string, JsonValue>
    this.#take("{")
    if (this.#take("}")) return object
    do {
      const name = this.#string()
      if (name in object) this.#fail(`a second ${JSON.stringify(name)}`)
      if (!this.#take(":")) this.#fail("no colon")
      object[name] = this.#value(depth + 1)
    } while (this.#take(","))
    if (!this.#take("}")) this.#fail("no end of the object")
    return object
  }

  #array(depth: number): readonly JsonValue[] {
    const array: JsonValue[] = []
    this.#take("[")
    if (this.#take("]")) return array
    do array.push(this.#value(depth + 1))
    while (this.#take(","))
    if (!this.#take("]")) this.#fail("no end of the array")
    return array
  }
}

/**
 * Parses one JSON text.
 *
 * @throws SyntaxError that says where: also for a repeated name, and beyond the bounds on depth and count.
 */
export function parseStrictJson(text: string): JsonValue {
  return new Parser(text).document()
}
