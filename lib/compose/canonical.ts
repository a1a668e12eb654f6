// The short forms of the Compose specification in their long ones: what is merged and read knows one form of each.
import {
  errorAt,
  isNull,
  leaf,
  listOf,
  mapOf,
  textOf,
  type Leaf,
  type Mapping,
  type Place,
  type Tree,
} from "./tree.ts"
import { splitWords } from "./words.ts"

/** Of one list, with those that ranges stand for: as many as are published. */
const MAX_PORTS = 256

export type Change = (tree: Tree, path: string) => Tree

/** A list of one, for a single text. */
const listed: Change = (tree) =>
  tree.kind === "leaf" && !isNull(tree) ? listOf([tree], tree.at, tree.tag) : tree

/** `- NAME=VALUE` as a mapping; a name without a value has null. */
const assignments =
  (separators: readonly string[]): Change =>
  (tree, path) => {
    if (tree.kind !== "list") return tree
    const entries = tree.items.map((one, i): [string, Tree] => {
      if (one.kind !== "leaf") throw errorAt(one.at, `${path}[${i}]`, "it is NAME=VALUE")
      const text = textOf(one)
      const at = Math.min(...separators.map((sign) => text.indexOf(sign)).map((n) => (n < 0 ? Infinity : n)))
      return at === Infinity
        ? [text, leaf(null, one.at)]
        : [text.slice(0, at), leaf(text.slice(at + 1), one.at)]
    })
    return mapOf(entries, tree.at, tree.tag)
  }

const variables = assignments(["="])

/** `NAME: ADDRESS`, where one name may have several. */
const hosts: Change = (tree, path) => {
  const entries = new Map<string, Tree[]>()
  const add = (name: string, address: Tree): void => {
    entries.set(name, [
      ...(entries.get(name) ?? []),
      ...(address.kind === "list" ? address.items : [address]),
    ])
  }
  if (tree.kind === "map") for (const [name, one] of tree.entries) add(name, one)
  else if (tree.kind === "list")
    for (const [i, one] of tree.items.entries()) {
      const [, name, address] = /^([^=:\s]+)[=:](.+)$/.exec(one.kind === "leaf" ? textOf(one) : "") ?? []
      if (name === undefined || address === undefined)
        throw errorAt(one.at, `${path}[${i}]`, "it is HOST=ADDRESS")
      add(name, leaf(address, one.at))
    }
  else return tree
  const merged = [...entries].map(([name, all]) => [name, listOf(all, tree.at)] as const)
  return mapOf(merged, tree.at, tree.tag)
}

/** A list of names as a mapping. */
const named =
  (value: (at: Place) => Tree): Change =>
  (tree, path) => {
    if (tree.kind !== "list") return tree
    const entries = tree.items.map((one, i): [string, Tree] => {
      if (one.kind !== "leaf") throw errorAt(one.at, `${path}[${i}]`, "it is a name")
      return [textOf(one), value(one.at)]
    })
    return mapOf(entries, tree.at, tree.tag)
  }

/** A text, or a mapping already. */
const keyed =
  (key: string, ...more: readonly (readonly [string, string | boolean])[]): Change =>
  (tree) => {
    if (tree.kind === "leaf" && !isNull(tree))
      return mapOf(
        [[key, tree], ...more.map(([name, value]) => [name, leaf(value, tree.at)] as const)],
        tree.at,
      )
    if (tree.kind !== "map") return tree
    const defaults = more.filter(([name]) => !tree.entries.has(name))
    return {
      ...tree,
      entries: new Map([
        ...tree.entries,
        ...defaults.map(([name, value]) => [name, leaf(value, tree.at)] as const),
      ]),
    }
  }

export const each =
  (change: Change): Change =>
  (tree, path) =>
    tree.kind === "list" ? { ...tree, items: tree.items.map((one, i) => change(one, `${path}[${i}]`)) } : tree

/** Of every value of a mapping. */
export const everyValue =
  (change: Change): Change =>
  (tree, path) =>
    tree.kind === "map"
      ? {
          ...tree,
          entries: new Map([...tree.entries].map(([key, one]) => [key, change(one, `${path}.${key}`)])),
        }
      : tree

export const fields =
  (changes: Readonly<Record<string, Change>>): Change =>
  (tree, path) => {
    if (tree.kind !== "map") return tree
    const entries = [...tree.entries].map(([key, one]): [string, Tree] => [
      key,
      changes[key]?.(one, path === "" ? key : `${path}.${key}`) ?? one,
    ])
    return { ...tree, entries: new Map(entries) }
  }

const words: Change = (tree, path) => {
  if (tree.kind !== "leaf" || isNull(tree)) return tree
  const found = splitWords(textOf(tree))
  if (found === undefined) throw errorAt(tree.at, path, "a quote is not closed")
  return listOf(
    found.map((word) => leaf(word, tree.at)),
    tree.at,
    tree.tag,
  )
}

/** As a health check has it: a text is for a shell. */
const test: Change = (tree) =>
  tree.kind === "leaf" && !isNull(tree)
    ? listOf([leaf("CMD-SHELL", tree.at), leaf(textOf(tree), tree.at)], tree.at, tree.tag)
    : tree

function portsOf(text: string): readonly [first: number, last: number] | undefined {
  const [, first, last = first] = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(text) ?? []
  if (first === undefined) return undefined
  return Number(last) >= Number(first) && Number(last) <= 65_535 && Number(first) > 0
    ? [Number(first), Number(last)]
    : undefined
}

/** `[HOST:]CONTAINER[/PROTOCOL]`, ranges as one port each. */
function shortPort(one: Leaf, path: string): Tree[] {
  const text = textOf(one)
  const wrong = (): Error => errorAt(one.at, path, `${text} is not [[ADDRESS:]HOST:]CONTAINER[/PROTOCOL]`)
  const [, address, published, target = "", protocol = "tcp"] =
    /^(?:(?:(\[[0-9A-Fa-f:.]+\]|[^:[\]]*):)?([\d-]*):)?([\d-]+)(?:\/([a-z]+))?$/.exec(text) ?? []
  const inside = portsOf(target)
  const outside = published === undefined || published === "" ? undefined : portsOf(published)
  if (inside === undefined || (outside === undefined && (published ?? "") !== "")) throw wrong()
  const count = inside[1] - inside[0] + 1
  if (count > MAX_PORTS) throw errorAt(one.at, path, `more than ${MAX_PORTS} ports`)
  const range = outside === undefined ? undefined : outside[1] - outside[0] + 1
  if (range !== undefined && range !== count && count !== 1)
    throw errorAt(one.at, path, `${text}: there are more ports on one side than on the other`)
  return Array.from({ length: count }, (_, i) =>
    mapOf(
      [
        ...(address === undefined || address === ""
          ? []
          : [["host_ip", leaf(address.replace(/^\[|\]$/g, ""), one.at)] as const]),
        ["target", leaf(inside[0] + i, one.at)],
        ...(outside === undefined
          ? []
          : [
              [
                "published",
                leaf(range === count ? String(outside[0] + i) : `${outside[0]}-${outside[1]}`, one.at),
              ] as const,
            ]),
        ["protocol", leaf(protocol, one.at)],
        ["mode", leaf("ingress", one.at)],
      ],
      one.at,
    ),
  )
}

/** One of a list, in the long form; ranges as one port each. */
function portsIn(one: Tree, path: string): Tree[] {
  if (one.kind === "leaf") return shortPort(one, path)
  const long = keyed("target", ["protocol", "tcp"], ["mode", "ingress"])(one, path)
  if (long.kind !== "map") return [long]
  const published = long.entries.get("published")
  if (published?.kind !== "leaf") return [long]
  return [
    {
      ...long,
      entries: new Map([...long.entries, ["published", leaf(textOf(published), published.at)]]),
    },
  ]
}

const ports: Change = (tree, path) => {
  if (tree.kind !== "list") return tree
  const items: Tree[] = []
  for (const [i, one] of tree.items.entries()) {
    items.push(...portsIn(one, `${path}[${i}]`))
    if (items.length > MAX_PORTS) throw errorAt(one.at, path, `more than ${MAX_PORTS} ports`)
  }
  return { ...tree, items }
}

/** Where a path of the host begins: what else stands before the colon is a volume's name. */
const HOST_PATH = /^(?:\.{1,2}(?:\/|$)|\/|~(?:\/|$))/

export function isHostPath(text: string): boolean {
  return HOST_PATH.test(text)
}

const VOLUME_OPTIONS: Readonly<Record<string, (at: Place) => readonly [string, Tree]>> = {
  ro: (at) => ["read_only", leaf(true, at)],
  rw: (at) => ["read_only", leaf(false, at)],
  z: (at) => ["bind", mapOf([["selinux", leaf("z", at)]], at)],
  Z: (at) => ["bind", mapOf([["selinux", leaf("Z", at)]], at)],
  nocopy: (at) => ["volume", mapOf([["nocopy", leaf(true, at)]], at)],
}

function shortVolume(one: Leaf, path: string): Tree {
  const text = textOf(one)
  const parts = text.split(":")
  const [source, target, options = "", ...more] = parts.length === 1 ? [undefined, ...parts] : parts
  if (target === undefined || target === "" || source === "" || more.length > 0)
    throw errorAt(one.at, path, `${text} is not [SOURCE:]TARGET[:OPTIONS]`)
  const type = source !== undefined && isHostPath(source) ? "bind" : "volume"
  const entries = new Map<string, Tree>([["type", leaf(type, one.at)]])
  if (source !== undefined) entries.set("source", leaf(source, one.at))
  entries.set("target", leaf(target, one.at))
  // A folder that is not there is made, as in the short form of old.
  if (type === "bind") entries.set("bind", mapOf([["create_host_path", leaf(true, one.at)]], one.at))
  for (const option of options === "" ? [] : options.split(",")) {
    const [key, value] = VOLUME_OPTIONS[option]?.(one.at) ?? [undefined]
    if (key === undefined)
      throw errorAt(one.at, path, `${option} is no option: there are ro, rw, z, Z and nocopy`)
    const before = entries.get(key)
    entries.set(
      key,
      before?.kind === "map" && value.kind === "map"
        ? mapOf([...before.entries, ...value.entries], one.at)
        : value,
    )
  }
  return mapOf(entries, one.at)
}

const volume: Change = (tree, path) => (tree.kind === "leaf" ? shortVolume(tree, path) : tree)
const healthcheck = fields({ test })
const build: Change = (tree, path) =>
  fields({
    args: variables,
    labels: variables,
    extra_hosts: hosts,
    additional_contexts: variables,
    ulimits: asIs,
  })(keyed("context")(tree, path), path)

function asIs(tree: Tree): Tree {
  return tree
}

const dependency: Change = (tree) => keyed("condition", ["required", true])(tree, "")

const service = fields({
  annotations: variables,
  build,
  command: words,
  configs: each(keyed("source")),
  depends_on: (tree, path) =>
    everyValue(dependency)(
      named((at) => mapOf([["condition", leaf("service_started", at)]], at))(tree, path),
      path,
    ),
  deploy: fields({ labels: variables }),
  dns: listed,
  dns_opt: listed,
  dns_search: listed,
  entrypoint: words,
  env_file: (tree, path) => each(keyed("path", ["required", true]))(listed(tree, path), path),
  environment: variables,
  extends: keyed("service"),
  extra_hosts: hosts,
  healthcheck,
  label_file: listed,
  labels: variables,
  networks: named((at) => leaf(null, at)),
  ports,
  secrets: each(keyed("source")),
  sysctls: variables,
  tmpfs: listed,
  volumes: each(volume),
})

const resource = fields({ labels: variables, driver_opts: asIs })

const canonicalFile = fields({
  include: each((tree, path) => fields({ path: listed, env_file: listed })(keyed("path")(tree, path), path)),
  services: everyValue(service),
  networks: everyValue(resource),
  volumes: everyValue(resource),
  secrets: everyValue(resource),
  configs: everyValue(resource),
})

/**
 * A file whose form the schema allows, with every short form written out.
 *
 * @throws ComposeError `ERR_COMPOSE_FILE`.
 */
export function canonical(file: Mapping): Mapping {
  return canonicalFile(file, "") as Mapping
}
