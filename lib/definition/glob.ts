// Names that match a pattern as %files has them: * ? [] {,} ** and the shell's extended ones, @() ?() *() +() !().
import { lstat, readdir, stat } from "node:fs/promises"
import path from "node:path"
import { BuildError } from "../errors.ts"
import { closings, matcher, splitTop } from "./glob-match.ts"

const MAX_PATTERN = 4096
const MAX_ALTERNATIVES = 1024
const MAX_MATCHES = 1_000_000
/** Several ** lead to the same folders again and again, and need not find anything there. */
const MAX_LOOKUPS = 1_000_000

/** Where names are looked up: this machine, or a root file system under construction. */
export interface GlobPlace {
  /** Turns a path of the pattern's kind into one of this machine. */
  resolve(name: string): Promise<string>
}

/** `a{b,c}d` is two patterns. */
export function expandBraces(pattern: string): string[] {
  const ends = closings(pattern, "{", "}")
  for (let open = pattern.indexOf("{"); open >= 0; open = pattern.indexOf("{", open + 1)) {
    const close = ends.get(open)
    if (close === undefined) continue
    const choices = splitTop(pattern.slice(open + 1, close), ",")
    if (choices.length < 2) continue
    const rest = expandBraces(pattern.slice(close + 1))
    const all: string[] = []
    for (const choice of choices)
      for (const start of expandBraces(choice)) {
        if (all.length + rest.length > MAX_ALTERNATIVES)
          throw new BuildError("ERR_BUILD_SOURCE", `${pattern}: more than ${MAX_ALTERNATIVES} alternatives`)
        all.push(...rest.map((tail) => pattern.slice(0, open) + start + tail))
      }
    return all
  }
  return [pattern]
}

/** Is there anything in it that is not itself? */
function isPattern(part: string): boolean {
  return /[*?[\\]|[@+!]\(/.test(part)
}

/** One part of a path; a leading dot has to be asked for. */
export function partMatcher(part: string): (name: string) => boolean {
  const matches = matcher(part)
  return (name) => (!name.startsWith(".") || part.startsWith(".") || part.startsWith("\\.")) && matches(name)
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
  #lookups: number

  /** @param lookups - How many there may be. */
  constructor(place: GlobPlace, pattern: string, lookups: number) {
    this.#lookups = lookups
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
    if (--this.#lookups < 0)
      throw new BuildError("ERR_BUILD_SOURCE", `${this.#pattern}: it would be looked for in too many places`)
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
export async function expandGlob(
  pattern: string,
  place: GlobPlace,
  lookups: number = MAX_LOOKUPS,
): Promise<string[]> {
  if (pattern.length > MAX_PATTERN)
    throw new BuildError("ERR_BUILD_SOURCE", `a pattern of more than ${MAX_PATTERN} bytes`)
  const names: string[] = []
  for (const one of expandBraces(pattern)) {
    const parts = one
      .split("/")
      .filter((part, index, all) => part !== "" && (part !== "**" || all[index + 1] !== "**"))
    if (!parts.some(isPattern)) {
      names.push(one)
      continue
    }
    const expansion = new Expansion(place, one, lookups)
    await expansion.expand(one.startsWith("/") ? "/" : ".", parts)
    names.push(...expansion.found)
  }
  return names
}
