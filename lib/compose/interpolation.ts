// Variables in values: `$NAME`, `${NAME}` and the forms with a word, as the Compose specification has them. Nothing is ever run.

/** What a variable is; undefined: it is not set. */
export type Lookup = (name: string) => string | undefined

/** A value cannot be interpolated. */
export class InterpolationError extends Error {}

/** Words within words. */
const MAX_LEVELS = 20
/** What one value comes to. */
const MAX_LENGTH = 1 << 20

const NAME = /[A-Za-z_][A-Za-z0-9_]*/y

function nameAt(text: string, at: number): string | undefined {
  NAME.lastIndex = at
  return NAME.exec(text)?.[0]
}

/** Where the brace is closed that is opened before `at`: braces of other variables count, others do not. */
function closingBrace(text: string, at: number): number {
  let open = 1
  for (let i = at; i < text.length; i++) {
    if (text[i] === "$" && text[i + 1] === "$") i++
    else if (text[i] === "$" && text[i + 1] === "{") {
      open++
      i++
    } else if (text[i] === "}" && --open === 0) return i
  }
  return -1
}

const OPERATORS = [":-", ":?", ":+", "-", "?", "+"] as const

interface Interpolation {
  readonly lookup: Lookup
  /** Hears of a variable that is not set and has no default. */
  readonly onUnset: (name: string) => void
}

/** What is between the braces. */
function braced(inner: string, { lookup, onUnset }: Interpolation, levels: number): string {
  const name = nameAt(inner, 0)
  if (name === undefined) throw new InterpolationError(`\${${inner}}: there is no name of a variable`)
  const rest = inner.slice(name.length)
  const value = lookup(name)
  if (rest === "") {
    if (value === undefined) onUnset(name)
    return value ?? ""
  }
  const operator = OPERATORS.find((one) => rest.startsWith(one))
  if (operator === undefined)
    throw new InterpolationError(`\${${inner}}: behind a name there may be :- - :? ? :+ or +`)
  const isSet = value !== undefined && (operator.length === 1 || value !== "")
  const word = (): string => expand(rest.slice(operator.length), { lookup, onUnset }, levels + 1)
  switch (operator.at(-1)) {
    case "-":
      return isSet ? value : word()
    case "+":
      return isSet ? word() : ""
    default: {
      if (isSet) return value
      const message = word()
      throw new InterpolationError(`the variable ${name} is required${message === "" ? "" : `: ${message}`}`)
    }
  }
}

function expand(text: string, how: Interpolation, levels: number): string {
  if (levels > MAX_LEVELS) throw new InterpolationError("variables are nested too deeply")
  const parts: string[] = []
  let length = 0
  const add = (part: string): void => {
    parts.push(part)
    if ((length += part.length) > MAX_LENGTH)
      throw new InterpolationError(`with its variables it is longer than ${MAX_LENGTH} characters`)
  }
  for (let at = 0; at < text.length;) {
    const dollar = text.indexOf("$", at)
    if (dollar < 0) {
      add(text.slice(at))
      break
    }
    add(text.slice(at, dollar))
    const next = text[dollar + 1]
    if (next === "$") {
      add("$")
      at = dollar + 2
    } else if (next === "{") {
      const end = closingBrace(text, dollar + 2)
      if (end < 0) throw new InterpolationError("a brace behind $ is not closed")
      add(braced(text.slice(dollar + 2, end), how, levels))
      at = end + 1
    } else {
      const name = nameAt(text, dollar + 1)
      if (name === undefined)
        throw new InterpolationError("behind $ there is no name of a variable; a dollar itself is $$")
      const value = how.lookup(name)
      if (value === undefined) how.onUnset(name)
      add(value ?? "")
      at = dollar + 1 + name.length
    }
  }
  return parts.join("")
}

/**
 * A text with its variables replaced.
 *
 * @throws {@link InterpolationError}.
 */
export function interpolate(
  text: string,
  lookup: Lookup,
  onUnset: (name: string) => void = () => undefined,
): string {
  return text.includes("$") ? expand(text, { lookup, onUnset }, 0) : text
}
