// How one compose file overrides another, and a service the one that it extends: both in their long forms.
import { errorAt, listOf, mapOf, textOf, type Mapping, type Sequence, type Tree } from "./tree.ts"

/** What is replaced as a whole, services' names as `*`. */
const REPLACED = new Set(["services.*.command", "services.*.entrypoint", "services.*.healthcheck.test"])

const textAt = (tree: Tree, key: string): string => {
  const found = tree.kind === "map" ? tree.entries.get(key) : undefined
  return found?.kind === "leaf" ? textOf(found) : ""
}
const itself = (tree: Tree): string | undefined => (tree.kind === "leaf" ? textOf(tree) : undefined)

/** Where a secret or a configuration lies if nothing is said: an absolute target is one, others are below `folder`. */
function placeOf(tree: Tree, folder: string): string {
  const target = textAt(tree, "target") || textAt(tree, "source")
  return target.startsWith("/") ? target : `${folder}/${target}`
}

/** Of lists in which nothing is there twice: what makes two entries the same. */
const UNIQUE: Readonly<Record<string, (tree: Tree) => string | undefined>> = {
  "services.*.ports": (one) =>
    ["host_ip", "target", "published", "protocol"].map((key) => textAt(one, key)).join(" "),
  "services.*.volumes": (one) => textAt(one, "target").replace(/(?<=.)\/+$/, ""),
  "services.*.secrets": (one) => placeOf(one, "/run/secrets"),
  "services.*.configs": (one) => placeOf(one, ""),
  "services.*.env_file": (one) => textAt(one, "path"),
  "services.*.cap_add": itself,
  "services.*.cap_drop": itself,
  "services.*.dns": itself,
  "services.*.dns_search": itself,
  "services.*.expose": itself,
  "services.*.profiles": itself,
  "services.*.tmpfs": itself,
  "services.*.networks.*.aliases": itself,
}

/** The path in the tables: what is named by whoever wrote the file is `*`. */
function pattern(path: readonly string[]): string {
  return path
    .map((part, at) =>
      at === 1 || (at === 3 && path[0] === "services" && path[2] === "networks") ? "*" : part,
    )
    .join(".")
}

function mergeLists(base: Sequence, over: Sequence, path: readonly string[]): Sequence {
  const keyOf = UNIQUE[pattern(path)]
  if (keyOf === undefined) return { ...over, items: [...base.items, ...over.items] }
  const found = new Map<string, Tree>()
  for (const [i, one] of [...base.items, ...over.items].entries()) {
    const key = keyOf(one) ?? `#${i}`
    const before = found.get(key)
    found.set(key, before === undefined || i < base.items.length ? one : merge(before, one, [...path, key]))
  }
  return listOf([...found.values()], over.at, over.tag)
}

/** A logging of another driver has nothing of the one before it. */
function isOther(base: Mapping, over: Mapping, path: readonly string[]): boolean {
  if (pattern(path) !== "services.*.logging") return false
  const [before, after] = [textAt(base, "driver"), textAt(over, "driver")]
  return before !== "" && after !== "" && before !== after
}

/**
 * `over` over `base`.
 *
 * @throws ComposeError `ERR_COMPOSE_FILE` where one is a list and the other is not.
 */
export function merge(base: Tree, over: Tree, path: readonly string[] = []): Tree {
  if (over.tag === "!override" || REPLACED.has(pattern(path))) return over
  if (over.kind === "leaf") return over.value === null && base.kind !== "leaf" ? base : over
  if (base.kind === "leaf" && base.value === null) return over
  if (base.kind === "map" && over.kind === "map") {
    if (isOther(base, over, path)) return over
    const entries = new Map(base.entries)
    for (const [key, one] of over.entries) {
      const before = entries.get(key)
      if (one.tag === "!reset") entries.delete(key)
      else entries.set(key, before === undefined ? one : merge(before, one, [...path, key]))
    }
    return mapOf(entries, over.at)
  }
  if (base.kind === "list" && over.kind === "list") return mergeLists(base, over, path)
  throw errorAt(
    over.at,
    path.join("."),
    `what it overrides at ${base.at.file}:${base.at.line} is of another kind`,
  )
}

/** Without what `!reset` takes away: nothing is below it any more. */
export function withoutResets(tree: Tree): Tree {
  if (tree.kind === "leaf") return tree
  if (tree.kind === "list")
    return { ...tree, items: tree.items.filter(({ tag }) => tag !== "!reset").map(withoutResets) }
  const left = [...tree.entries].filter(([, { tag }]) => tag !== "!reset")
  return { ...tree, entries: new Map(left.map(([key, one]) => [key, withoutResets(one)])) }
}

/** Lists of one file, in which what is there twice counts once, the last. */
export function unique(tree: Tree, path: readonly string[] = []): Tree {
  if (tree.kind === "leaf") return tree
  if (tree.kind === "map")
    return {
      ...tree,
      entries: new Map([...tree.entries].map(([key, one]) => [key, unique(one, [...path, key])])),
    }
  return mergeLists(listOf([], tree.at), tree, path)
}
