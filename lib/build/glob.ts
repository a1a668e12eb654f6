// Names that match a pattern as %files has them: * ? [] {,} ** and the shell's extended ones, @() ?() *() +() !().
import { lstat, readdir, stat } from "node:fs/promises"
import path from "node:path"
import { BuildError } from "../errors.ts"

const MAX_PATTERN = 4096
const MAX_ALTERNATIVES = 1024
const MAX_MATCHES = 1_000_000

/** Where names are looked up: this machine, or a root file system under construction. */
export interface GlobPlace {
  /** Turns a path of the pattern's kind into one of this machine. */
  resolve(name: string): Promise<string>
}

function closing(text: string, open: number, opener: string, closer: string): number {
  let depth = 0
  for (let at = open; at < text.length; at++) {
    if (text[at] === "\\") at++
    else if (text[at] === opener) depth++
    else if (text[at] === closer && --depth === 0) return at
  }
  return -1
}

/** Splits at separators that are in no inner group. */
function splitTop(text: string, separator: string): string[] {
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

/** `a{b,c}d` is two patterns. */
export function expandBraces(pattern: string): string[] {
  for (let open = pattern.indexOf("{"); open >= 0; open = pattern.indexOf("{", open + 1)) {
    const close = closing(pattern, open, "{", "}")
    if (close < 0) continue
    const choices = splitTop(pattern.slice(open + 1, close), ",")
    if (choices.length < 2) continue
    const rest = expandBraces(pattern.slice(close + 1))
    const all = choices
      .flatMap((choice) => expandBraces(choice))
      .flatMap((choice) => rest.map((tail) => pattern.slice(0, open) + choice + tail))
    if (all.length > MAX_ALTERNATIVES)
      throw new BuildError("ERR_BUILD_SOURCE", `${pattern}: more than ${MAX_ALTERNATIVES} alternatives`)
    return all
  }
  return [pattern]
}

const literal = (text: string): string => text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&")

function translate(text: string): string {
  const letter = text[0] ?? ""
  if (letter === "") return ""
  if (letter === "\\") return literal(text[1] ?? "\\") + translate(text.slice(2))
  if ("@?*+!".includes(letter) && text[1] === "(") {
    const close = closing(text, 1, "(", ")")
    if (close > 0) {
      const group = splitTop(text.slice(2, close), "|").map(translate).join("|")
      const rest = translate(text.slice(close + 1))
      if (letter === "!") return `(?!(?:${group})${rest}$)[^]*${rest}`
      return `(?:${group})${letter === "@" ? "" : letter}${rest}`
    }
  }
  if (letter === "*") return `[^]*${translate(text.replace(/^\*+/, ""))}`
  if (letter === "?") return `[^]${translate(text.slice(1))}`
  const set = /^\[([!^]?)(\]?[^\]]*)\]/.exec(text)
  if (set !== null) {
    const members = (set[2] ?? "").replace(/[\\\]^[]/g, "\\$&")
    return `[${set[1] === "" ? "" : "^"}${members}]${translate(text.slice(set[0].length))}`
  }
  return literal(letter) + translate(text.slice(1))
}

/** Is there anything in it that is not itself? */
function isPattern(part: string): boolean {
  return /[*?[\\]|[@+!]\(/.test(part)
}

/** One part of a path; a leading dot has to be asked for. */
export function partMatcher(part: string): (name: string) => boolean {
  const regex = new RegExp(`^${translate(part)}$`, "u")
  return (name) => (!name.startsWith(".") || part.startsWith(".") || part.startsWith("\\.")) && regex.test(name)
}

async function namesIn(folder: string): Promise<string[]> {
  try {
    return (await readdir(folder)).sort()
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === "ENOENT" || code === "ENOTDIR") return []
    throw error
  }
}

async function isFolder(place: string): Promise<boolean> {
  return (await lstat(place).catch(() => undefined))?.isDirectory() === true
}

async function exists(place: string): Promise<boolean> {
  return (await stat(place).catch(() => undefined)) !== undefined
}

class Expansion {
  readonly #place: GlobPlace
  readonly #pattern: string
  readonly found: string[] = []

  constructor(place: GlobPlace, pattern: string) {
    this.#place = place
    this.#pattern = pattern
  }

  #add(name: string): void {
    if (this.found.length === MAX_MATCHES)
      throw new BuildError("ERR_BUILD_SOURCE", `${this.#pattern}: more than ${MAX_MATCHES} matches`)
    this.found.push(name)
  }

  /** All folders below, hidden ones aside; a link could lead back. */
  async #descend(base: string, parts: readonly string[]): Promise<void> {
    await this.expand(base, parts)
    const folder = await this.#place.resolve(base)
    for (const name of await namesIn(folder))
      if (!name.startsWith(".") && (await isFolder(path.join(folder, name))))
        await this.#descend(path.posix.join(base, name), parts)
  }

  async expand(base: string, parts: readonly string[]): Promise<void> {
    const [part, ...rest] = parts
    if (part === undefined) {
      this.#add(base)
      return
    }
    if (part === "**" && rest.length > 0) {
      await this.#descend(base, rest)
      return
    }
    if (!isPattern(part)) {
      const next = path.posix.join(base, part)
      if (await exists(await this.#place.resolve(next))) await this.expand(next, rest)
      return
    }
    const matches = partMatcher(part)
    for (const name of await namesIn(await this.#place.resolve(base)))
      if (matches(name)) await this.expand(path.posix.join(base, name), rest)
  }
}

/**
 * What a pattern names, sorted; a name without a pattern is itself, whether it exists or not.
 *
 * @throws BuildError `ERR_BUILD_SOURCE` for a pattern that is too long or matches too much.
 */
export async function expandGlob(pattern: string, place: GlobPlace): Promise<string[]> {
  if (pattern.length > MAX_PATTERN)
    throw new BuildError("ERR_BUILD_SOURCE", `a pattern of more than ${MAX_PATTERN} bytes`)
  const names: string[] = []
  for (const one of expandBraces(pattern)) {
    const parts = one.split("/").filter((part) => part !== "")
    if (!parts.some(isPattern)) {
      names.push(one)
      continue
    }
    const expansion = new Expansion(place, one)
    await expansion.expand(one.startsWith("/") ? "/" : ".", parts)
    names.push(...expansion.found)
  }
  return names
}
