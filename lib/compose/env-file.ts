// Files of variables, `.env` and those of `env_file`: a line each, as the Compose specification has them. No shell reads them.
import { InterpolationError, interpolate, type Lookup } from "./interpolation.ts"
import { fileError } from "./tree.ts"

/** Variables of one file. */
const MAX_VARIABLES = 10_000

const ASSIGNMENT =
  /[^\S\n]*(?:export[^\S\n]+)?([A-Za-z_][A-Za-z0-9_.-]*)[^\S\n]*(?:(=|:[^\S\n])[^\S\n]*|(?=\n|$))/y
const BLANK = /[^\S\n]*(?:#[^\n]*)?(?:\n|$)/y

const ESCAPES: Readonly<Record<string, string>> = { n: "\n", r: "\r", t: "\t", '"': '"', "\\": "\\" }

/** Where a quoted value ends; -1: nowhere. */
function closingQuote(text: string, at: number, quote: string): number {
  for (let i = at; i < text.length; i++) {
    if (text[i] === "\\") i++
    else if (text[i] === quote) return i
  }
  return -1
}

/** A comment begins with the first # that stands behind a blank, or at the start. */
function withoutComment(line: string): string {
  const at = line.search(/(?<!\S)#/)
  return at < 0 ? line : line.slice(0, at)
}

/** Escapes of a value between double quotes; `\$` stays a dollar, which is why it becomes two first. */
function unescape(text: string): string {
  return text.replaceAll(/\\(.)/gs, (whole, letter: string) =>
    letter === "$" ? "$$" : (ESCAPES[letter] ?? whole),
  )
}

/**
 * The variables of a text. A name without a value has the one of the caller's environment, if that has it.
 *
 * @param raw - Values are taken as they stand behind `=`.
 * @throws ComposeError `ERR_COMPOSE_FILE`.
 */
export function parseEnvFile(
  text: string,
  file: string,
  lookup: Lookup,
  raw: boolean = false,
): Map<string, string> {
  const found = new Map<string, string>()
  const all = text.replaceAll("\r\n", "\n").replace(/^\ufeff/, "")
  const fail = (at: number, message: string): never => {
    const line = all.slice(0, at).split("\n").length
    throw fileError(`${file}:${line}: ${message}`, { path: file })
  }
  if (all.includes("\0")) fail(all.indexOf("\0"), "there is a NUL byte in it")
  const known: Lookup = (name) => lookup(name) ?? found.get(name)
  for (let at = 0; at < all.length;) {
    BLANK.lastIndex = at
    const blank = BLANK.exec(all)
    if (blank !== null) {
      at += Math.max(1, blank[0].length)
      continue
    }
    ASSIGNMENT.lastIndex = at
    const [whole, name = "", sign] = ASSIGNMENT.exec(all) ?? fail(at, "it is no NAME=VALUE")
    if (found.size >= MAX_VARIABLES) fail(at, `there are more than ${MAX_VARIABLES} variables`)
    const start = at
    at += whole.length
    if (sign === undefined) {
      const value = lookup(name)
      if (value !== undefined) found.set(name, value)
      continue
    }
    const quote = all[at]
    let value: string
    if (!raw && (quote === '"' || quote === "'")) {
      const end = closingQuote(all, at + 1, quote)
      if (end < 0) fail(start, `the quote of ${name} is not closed`)
      const inner = all.slice(at + 1, end)
      value = quote === "'" ? inner.replaceAll("\\'", "'") : unescape(inner)
      at = end + 1
      BLANK.lastIndex = at
      const rest = BLANK.exec(all) ?? fail(start, `something stands behind the quotes of ${name}`)
      at += rest[0].length
    } else {
      const end = all.indexOf("\n", at)
      const line = all.slice(at, end < 0 ? all.length : end)
      at += line.length
      value = raw ? line : withoutComment(line).trimEnd()
    }
    try {
      found.set(name, raw || quote === "'" ? value : interpolate(value, known))
    } catch (cause) {
      if (cause instanceof InterpolationError) fail(start, `${name}: ${cause.message}`)
      throw cause
    }
  }
  return found
}
