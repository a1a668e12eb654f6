// One task of a configuration that stands for many: what its places {0}, {1}, … are filled with in each of them.
import { createHash } from "node:crypto"
import { readdirSync } from "node:fs"
import path from "node:path"
import type { Value } from "../yaml-reader.ts"

/** What the places of one task are filled with. */
export type Filling = ReadonlyMap<string, string>

/** Of a job set: Slurm's own default for jobs in its memory is 10,000. */
export const MAX_TASKS = 100_000

/** Decimal digits that a number of binary fractions has for certain. */
const DIGITS = 15

function range(value: Value): readonly string[] {
  const all = value.read<{ start: number; stop: number; step: number }>({
    start: (one) => one.number(-1e15, 1e15),
    stop: (one) => one.number(-1e15, 1e15),
    step: (one) => one.number(-1e15, 1e15),
  })
  const { start = 0, stop, step = 1 } = all
  if (stop === undefined) throw value.error("stop is missing")
  if (step === 0) throw value.error("step is 0: it never comes to an end")
  const count = Math.max(0, Math.ceil(Number(((stop - start) / step).toPrecision(DIGITS))))
  if (count > MAX_TASKS) throw value.error(`more than ${MAX_TASKS} values`)
  return Array.from({ length: count }, (_, i) => String(Number((start + i * step).toPrecision(DIGITS))))
}

/** A range of numbers, or a list of words. */
function series(value: Value): readonly string[] {
  return value.isList ? value.list((one) => one.word()) : range(value)
}

function numbered(words: readonly string[]): Filling {
  return new Map(words.map((word, place) => [String(place), word]))
}

function product(value: Value): Filling[] {
  const all = value.list(series, { least: 1 })
  const count = all.reduce((sum, { length }) => sum * length, 1)
  if (count > MAX_TASKS) throw value.error(`${count} tasks are more than ${MAX_TASKS}`)
  const rows = all.reduce<string[][]>(
    (before, next) => before.flatMap((row) => next.map((word) => [...row, word])),
    [[]],
  )
  return rows.map(numbered)
}

function zip(value: Value): Filling[] {
  const all = value.list(series, { least: 1 })
  const [first = []] = all
  if (all.some(({ length }) => length !== first.length))
    throw value.error(`the lists are of different lengths: ${all.map(({ length }) => length).join(", ")}`)
  return first.map((_, i) => numbered(all.map((one) => one[i] ?? "")))
}

/** The names of a pattern in which `*` is any text and `?` any letter. */
function namePattern(pattern: string): RegExp {
  const quoted = pattern.replaceAll(/[\\^$.|+()[\]{}]/g, "\\$&")
  return new RegExp(`^${quoted.replaceAll(/\*+/g, ".*").replaceAll("?", ".")}$`, "su")
}

function files(value: Value, base: string): Filling[] {
  const { folder, include = "*" } = value.read<{ folder: string; include: string }>({
    folder: (one) => path.resolve(base, one.text()),
    include: (one) => one.text(/^[^/]{1,255}$/, "a pattern for names, without folders"),
  })
  if (folder === undefined) throw value.error("folder is missing")
  const wanted = namePattern(include)
  let names: string[]
  try {
    names = readdirSync(folder, { withFileTypes: true })
      .filter((entry) => !entry.isDirectory() && !entry.name.startsWith(".") && wanted.test(entry.name))
      .map(({ name }) => name)
      .sort()
  } catch (error) {
    throw value.error(`${folder} cannot be read: ${(error as Error).message}`)
  }
  return names.map((name) => {
    const file = path.join(folder, name)
    return new Map([
      ["0", file],
      ["file_path", file],
      ["file_name", name],
      ["file_name_no_extension", path.parse(name).name],
    ])
  })
}

/** A number from 0 up to 1 that depends on these two alone, on every machine and in every version. */
function drawn(seed: number, index: number): number {
  const bytes = createHash("sha256").update(`${seed}:${index}`).digest()
  return bytes.readUIntBE(0, 6) / 2 ** 48
}

function generated(value: Value): Filling[] {
  const bounds = (one: Value): { readonly start: number; readonly stop: number } => {
    const { start = 0, stop } = one.read<{ start: number; stop: number }>({
      start: (at) => at.number(-1e15, 1e15),
      stop: (at) => at.number(-1e15, 1e15),
    })
    if (stop === undefined || stop <= start) throw one.error("stop is above start")
    return { start, stop }
  }
  const { generate, seed, integer, uniform } = value.read<{
    generate: number
    seed: number
    integer: { readonly start: number; readonly stop: number }
    uniform: { readonly start: number; readonly stop: number }
  }>({
    generate: (one) => one.whole(1, MAX_TASKS),
    seed: (one) => one.whole(0, Number.MAX_SAFE_INTEGER),
    integer: bounds,
    uniform: bounds,
  })
  if (generate === undefined) throw value.error("generate is missing: how many")
  if (seed === undefined) throw value.error("seed is missing: without it nobody could repeat the tasks")
  if ((integer === undefined) === (uniform === undefined))
    throw value.error("one of integer and uniform says what is drawn")
  return Array.from({ length: generate }, (_, i) => {
    const at = drawn(seed, i)
    if (integer !== undefined)
      return numbered([String(Math.floor(integer.start + at * (integer.stop - integer.start)))])
    const { start, stop } = uniform ?? { start: 0, stop: 1 }
    return numbered([String(start + at * (stop - start))])
  })
}

/**
 * What the places of each task are filled with.
 *
 * @param base - What folders are relative to.
 * @throws BatchError `ERR_BATCH_CONFIG`.
 */
export function expandFactory(value: Value, base: string): readonly Filling[] {
  const kinds = value.read<Record<"product" | "zip" | "sweep" | "files" | "repeat" | "random", Filling[]>>({
    product,
    zip,
    sweep: (one) => range(one).map((word) => numbered([word])),
    files: (one) => files(one, base),
    repeat: (one) => Array.from({ length: one.whole(1, MAX_TASKS) }, (_, i) => numbered([String(i)])),
    random: generated,
  })
  const [found, ...others] = Object.values(kinds)
  if (found === undefined || others.length > 0)
    throw value.error("it has one of product, zip, sweep, files, repeat, random")
  if (found.length === 0) throw value.error("it stands for no task at all")
  return found
}

/**
 * A text with its places filled; `{{` and `}}` are braces.
 *
 * @throws BatchError `ERR_BATCH_CONFIG` for a place that nothing fills.
 */
export function fill(text: string, filling: Filling, at: Value): string {
  return text.replaceAll(/\{\{|\}\}|\{([^{}]*)\}|[{}]/g, (found, name: string | undefined) => {
    if (found === "{{") return "{"
    if (found === "}}") return "}"
    const word = name === undefined ? undefined : filling.get(name)
    if (word === undefined)
      throw at.error(`${found} is filled with nothing: there are ${[...filling.keys()].join(", ")}`)
    return word
  })
}
