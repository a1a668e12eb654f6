// A compose file as a tree whose every value knows where it stands: what is interpolated, merged and extended still says so in errors.
import { ComposeError, type ContainerErrorOptions } from "../errors.ts"
import { MAX_YAML_SIZE, Value, type YamlKind } from "../yaml-reader.ts"

/** Where a value was read. */
export interface Place {
  readonly file: string
  readonly line: number
}

/** `!reset` takes away what is overridden, `!override` stands instead of it. */
type Tag = "!reset" | "!override"

interface Common {
  readonly at: Place
  readonly tag?: Tag | undefined
}

export type Scalar = string | number | boolean | null

export interface Leaf extends Common {
  readonly kind: "leaf"
  readonly value: Scalar
  /** As it was written, which for a number is not always how it is printed: 1.10, 0440. */
  readonly written?: string | undefined
}

export interface Sequence extends Common {
  readonly kind: "list"
  readonly items: readonly Tree[]
}

export interface Mapping extends Common {
  readonly kind: "map"
  readonly entries: ReadonlyMap<string, Tree>
}

export type Tree = Leaf | Sequence | Mapping

/** Levels of a compose file; the deepest that the specification knows has eight. */
const MAX_LEVELS = 50

/** A text is no file of the Compose specification. */
export function fileError(message: string, options?: ContainerErrorOptions): ComposeError {
  return new ComposeError("ERR_COMPOSE_FILE", message, options)
}

/** @param path - As `services.web.ports[0]`. */
export function errorAt({ file, line }: Place, path: string, message: string): ComposeError {
  return fileError(`${file}:${line}: ${path === "" ? "the file" : path}: ${message}`, { path: file })
}

/** The specification knows it, and it is not there: nothing is left out without a word. */
export function unsupported({ file, line }: Place, path: string, message: string): ComposeError {
  return new ComposeError("ERR_COMPOSE_UNSUPPORTED", `${file}:${line}: ${path}: ${message}`, { path: file })
}

const composeKind: YamlKind = { error: fileError, tags: ["!reset", "!override"], merges: true }

function treeOf(value: Value, file: string, levels: number): Tree {
  if (levels > MAX_LEVELS) throw value.error("it is nested too deeply")
  const common = { at: { file, line: value.line }, tag: value.tag as Tag | undefined }
  if (value.isMapping)
    return {
      ...{ kind: "map", ...common },
      entries: new Map(value.entries().map(([key, one]) => [key, treeOf(one, file, levels + 1)])),
    }
  if (value.isList)
    return { kind: "list", ...common, items: value.list((one) => treeOf(one, file, levels + 1)) }
  const { value: scalar = null, written } = value.scalar ?? {}
  if (typeof scalar === "string") value.text()
  return { kind: "leaf", ...common, value: scalar, written }
}

/**
 * Parses a compose file.
 *
 * @throws ComposeError `ERR_COMPOSE_FILE`.
 */
export function parseTree(text: string, file: string): Mapping {
  if (Buffer.byteLength(text) > MAX_YAML_SIZE)
    throw fileError(`${file}: it is longer than ${MAX_YAML_SIZE} bytes`, { path: file })
  const tree = treeOf(Value.parse(text, file, composeKind), file, 0)
  if (tree.kind === "map") return tree
  const at = { file, line: 1 }
  if (tree.kind === "leaf" && tree.value === null) return { kind: "map", at, entries: new Map() }
  throw errorAt(at, "", "it is a mapping, with services")
}

export function leaf(value: Scalar, at: Place): Leaf {
  return { kind: "leaf", value, at }
}

export function listOf(items: readonly Tree[], at: Place, tag?: Tag): Sequence {
  return { kind: "list", items, at, tag }
}

export function mapOf(entries: Iterable<readonly [string, Tree]>, at: Place, tag?: Tag): Mapping {
  return { kind: "map", entries: new Map(entries), at, tag }
}

export function isNull(tree: Tree | undefined): boolean {
  return tree === undefined || (tree.kind === "leaf" && tree.value === null)
}

/** A scalar as a text: a number as it was written. */
export function textOf({ value, written }: Leaf): string {
  return typeof value === "string" ? value : (written ?? String(value))
}

/** What `JSON.stringify` and validators take. */
export function plain(tree: Tree): unknown {
  if (tree.kind === "leaf") return tree.value
  if (tree.kind === "list") return tree.items.map(plain)
  return Object.fromEntries([...tree.entries].map(([key, one]) => [key, plain(one)]))
}

/** What a path leads to, or as far as it leads: `services.web`, in parts. */
export function deepest(tree: Tree, path: readonly string[]): { readonly tree: Tree; readonly path: string } {
  let found = tree
  let name = ""
  for (const part of path) {
    const next =
      found.kind === "map"
        ? found.entries.get(part)
        : found.kind === "list"
          ? found.items[Number(part)]
          : undefined
    if (next === undefined) break
    name = found.kind === "list" ? `${name}[${part}]` : name === "" ? part : `${name}.${part}`
    found = next
  }
  return { tree: found, path: name }
}

/** Values in it, itself too. */
export function countValues(tree: Tree): number {
  let count = 0
  const left = [tree]
  for (let next = left.pop(); next !== undefined; next = left.pop()) {
    count++
    if (next.kind === "list") for (const one of next.items) left.push(one)
    else if (next.kind === "map") for (const one of next.entries.values()) left.push(one)
  }
  return count
}

/** Every scalar replaced. */
export function mapLeaves(tree: Tree, path: string, change: (leaf: Leaf, path: string) => Leaf): Tree {
  if (tree.kind === "leaf") return change(tree, path)
  if (tree.kind === "list")
    return { ...tree, items: tree.items.map((one, i) => mapLeaves(one, `${path}[${i}]`, change)) }
  const below = (key: string): string => (path === "" ? key : `${path}.${key}`)
  return {
    ...tree,
    entries: new Map([...tree.entries].map(([key, one]) => [key, mapLeaves(one, below(key), change)])),
  }
}
