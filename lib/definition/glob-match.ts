// One part of a path against a pattern: * ? [] and the shell's extended @() ?() *() +() !(). Every place of the pattern is tried
// once at every place of the name, which has 255 letters at most: no pattern takes long.
import { BuildError } from "../errors.ts"

/** Where each group ends, by where it begins; those without an end are not there. Looking for each end anew takes quadratic time. */
export function closings(text: string, opener: string, closer: string): ReadonlyMap<number, number> {
  const found = new Map<number, number>()
  const open: number[] = []
  for (let at = 0; at < text.length; at++) {
    if (text[at] === "\\") at++
    else if (text[at] === opener) open.push(at)
    else if (text[at] === closer) {
      const start = open.pop()
      if (start !== undefined) found.set(start, at)
    }
  }
  return found
}

/** Splits at separators that are in no inner group. */
export function splitTop(text: string, separator: string): string[] {
  const parts: string[] = []
  let depth = 0
  let start = 0
  for (let at = 0; at < text.length; at++) {
    const letter = text[at] ?? ""
    if (letter === "\\") at++
    else if ("({".includes(letter)) depth++
    else if (")}".includes(letter)) depth--
    else if (letter === separator && depth === 0) {
      parts.push(text.slice(start, at))
      start = at + 1
    }
  }
  return [...parts, text.slice(start)]
}

interface Group {
  readonly kind: "group"
  readonly operator: string
  readonly choices: readonly (readonly Piece[])[]
}

type Piece =
  { readonly kind: "letter"; readonly fits: (letter: string) => boolean } | { readonly kind: "any" } | Group

function letterSet(text: string, expression: string): RegExp {
  try {
    return new RegExp(expression, "su")
  } catch (cause) {
    // A range that ends before it begins.
    throw new BuildError("ERR_BUILD_SOURCE", `${text}: not a set of letters`, { cause })
  }
}

/** Groups in groups, shallow enough for every stack. */
const MAX_NESTED = 64

function parse(text: string, nested: number = 0): Piece[] {
  if (nested > MAX_NESTED)
    throw new BuildError("ERR_BUILD_SOURCE", `a pattern with more than ${MAX_NESTED} groups in each other`)
  const pieces: Piece[] = []
  const letters = (wanted: string): void => {
    pieces.push({ kind: "letter", fits: (letter) => letter === wanted })
  }
  const ends = closings(text, "(", ")")
  const lastBracket = text.lastIndexOf("]")
  for (let at = 0; at < text.length;) {
    const letter = String.fromCodePoint(text.codePointAt(at) ?? 0)
    const close = "@?*+!".includes(letter) ? (ends.get(at + 1) ?? -1) : -1
    const set = letter === "[" && at < lastBracket ? /^\[([!^]?)(\]?[^\]]*)\]/.exec(text.slice(at)) : null
    if (close > 0) {
      const choices = splitTop(text.slice(at + 2, close), "|").map((choice) => parse(choice, nested + 1))
      pieces.push({ kind: "group", operator: letter, choices })
      at = close + 1
    } else if (set !== null) {
      const members = (set[2] ?? "").replace(/[\\\]^[]/g, "\\$&")
      const fits = letterSet(set[0], `^[${set[1] === "" ? "" : "^"}${members}]$`)
      pieces.push({ kind: "letter", fits: (one) => fits.test(one) })
      at += set[0].length
    } else if (letter === "*") {
      if (pieces.at(-1)?.kind !== "any") pieces.push({ kind: "any" })
      at++
    } else if (letter === "?") {
      pieces.push({ kind: "letter", fits: () => true })
      at++
    } else if (letter === "\\") {
      const escaped = text.codePointAt(at + 1)
      const itself = escaped === undefined ? "\\" : String.fromCodePoint(escaped)
      letters(itself)
      at += 1 + (escaped === undefined ? 0 : itself.length)
    } else {
      letters(letter)
      at += letter.length
    }
  }
  return pieces
}

/** Places in a name, before each letter and behind the last: 1 where it is one of them. */
type Places = Uint8Array

/** What is known of a group: where it ends, and where one choice of it does, for each place that it starts at. */
interface Known {
  readonly ends: (Places | undefined)[]
  readonly once: (Places | undefined)[]
}

/** A name, and where the pieces of a pattern can end in it. */
class Matching {
  readonly #letters: readonly string[]
  readonly #known = new Map<Piece, Known>()

  constructor(name: string) {
    this.#letters = Array.from(name)
  }

  /** Can all of the name be that? */
  all(pieces: readonly Piece[]): boolean {
    return this.#ends(pieces, this.#only(0))[this.#letters.length] === 1
  }

  #none(): Places {
    return new Uint8Array(this.#letters.length + 1)
  }

  #only(place: number): Places {
    const places = this.#none()
    places[place] = 1
    return places
  }

  /** Where a row of pieces can end that starts at one of those places. */
  #ends(pieces: readonly Piece[], starts: Places): Places {
    let places = starts
    for (const piece of pieces) {
      const next = this.#none()
      if (piece.kind === "any") {
        const first = places.indexOf(1)
        if (first >= 0) next.fill(1, first)
      } else if (piece.kind === "letter") {
        for (const [place, letter] of this.#letters.entries())
          if (places[place] === 1 && piece.fits(letter)) next[place + 1] = 1
      } else {
        for (let place = 0; place < places.length; place++)
          if (places[place] === 1) merge(next, this.#endsOfGroup(piece, place))
      }
      places = next
    }
    return places
  }

  #endsOfGroup(group: Group, start: number): Places {
    let known = this.#known.get(group)
    if (known === undefined) this.#known.set(group, (known = { ends: [], once: [] }))
    return (known.ends[start] ??= this.#findEnds(group, known, start))
  }

  #findEnds({ operator, choices }: Group, known: Known, start: number): Places {
    const once = (place: number): Places => {
      const found = this.#none()
      for (const choice of choices) merge(found, this.#ends(choice, this.#only(place)))
      return found
    }
    const ends = once(start)
    if (operator === "!") return ends.map((end, place) => (place >= start && end === 0 ? 1 : 0))
    // Each place that is reached leads on from there; what is added lies behind it.
    if (operator === "*" || operator === "+")
      for (let place = start; place < ends.length; place++)
        if (ends[place] === 1) merge(ends, (known.once[place] ??= once(place)))
    if (operator === "*" || operator === "?") ends[start] = 1
    return ends
  }
}

function merge(into: Places, places: Places): void {
  for (let place = 0; place < into.length; place++) if (places[place] === 1) into[place] = 1
}

/** What tells whether a name is what a pattern means, as a shell matches it. */
export function matcher(pattern: string): (name: string) => boolean {
  const pieces = parse(pattern)
  return (name) => new Matching(name).all(pieces)
}
