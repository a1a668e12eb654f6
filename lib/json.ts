// JSON of strangers. A leaf: imports nothing.

/** Deeper than any document that somebody has a use for, shallow enough for every stack that walks it later. */
const MAX_DEPTH = 128

/**
 * Parses what somebody else has written. JSON.parse itself takes any depth; whoever walks or writes the value then runs out
 * of stack, far from where it could be told what was wrong.
 *
 * @throws SyntaxError.
 */
export function parseJson(text: string): unknown {
  let depth = 0
  let inString = false
  for (let at = 0; at < text.length; at++) {
    const letter = text[at]
    if (letter === '"') inString = !inString
    else if (inString && letter === "\\") at++
    else if (!inString && (letter === "[" || letter === "{")) depth++
    else if (!inString && (letter === "]" || letter === "}")) depth--
    if (depth > MAX_DEPTH) throw new SyntaxError(`more than ${MAX_DEPTH} levels of JSON`)
  }
  return JSON.parse(text)
}

/** What is between braces. */
export type JsonObject = Readonly<Record<string, unknown>>

export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value)
}
