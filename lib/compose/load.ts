// Compose files as one tree: read, interpolated, checked, with what they extend and include, one over the other. Files are named by whoever
// wrote the first of them: they may lie anywhere, as the specification allows, and are read as data and by nobody but the caller.
import { statSync } from "node:fs"
import os from "node:os"
import path from "node:path"
import { isDeepStrictEqual } from "node:util"
import { readBoundedSync, TooLarge } from "../bounded-file.ts"
import { MAX_YAML_SIZE } from "../yaml-reader.ts"
import { canonical, each, everyValue, fields, isHostPath, type Change } from "./canonical.ts"
import { parseEnvFile } from "./env-file.ts"
import { interpolate, InterpolationError, type Lookup } from "./interpolation.ts"
import { merge, unique, withoutResets } from "./merge.ts"
import { checkSchema } from "./schema.ts"
import {
  countValues,
  errorAt,
  fileError,
  leaf,
  mapLeaves,
  mapOf,
  parseTree,
  plain,
  textOf,
  type Leaf,
  type Mapping,
  type Tree,
} from "./tree.ts"

/** Of one project, what is extended and included counted too. */
const MAX_FILES = 100
/** A service that extends one that extends one; a file that includes one that includes one. */
const MAX_CHAIN = 20
/** What values with variables come to, in all. */
const MAX_INTERPOLATED = 16 << 20
const MAX_ENV_FILE = 1 << 20
/** Of one project: values of all its files, and once more of each service that extends another. */
const MAX_VALUES = 1_000_000
/** Of one project: variables that services have from files. */
const MAX_VARIABLES = 200_000

/** What all files of a project share. */
export interface Loading {
  readonly lookup: Lookup
  readonly onNotice: (text: string) => void
  /** For files that are read while loading. */
  readonly count: { files: number; characters: number; values: number; readonly unset: Set<string> }
}

export function newLoading(lookup: Lookup, onNotice: (text: string) => void): Loading {
  return { lookup, onNotice, count: { files: 0, characters: 0, values: 0, unset: new Set() } }
}

function whyNot(cause: unknown): string {
  if (cause instanceof TooLarge) return cause.message
  const { code } = cause as NodeJS.ErrnoException
  return code === "ENOENT"
    ? "there is no such file"
    : code === "EISDIR"
      ? "it is a folder"
      : (code ?? "it cannot be read")
}

/** @throws ComposeError `ERR_COMPOSE_FILE`. */
export function readText(file: string, limit: number): string {
  try {
    return readBoundedSync(file, limit).toString("utf8")
  } catch (cause) {
    throw fileError(`${file}: ${whyNot(cause)}`, { path: file, cause })
  }
}

/** The variables of a file; see {@link parseEnvFile}. */
export function readEnvFile(file: string, lookup: Lookup, raw: boolean = false): Map<string, string> {
  return parseEnvFile(readText(file, MAX_ENV_FILE), file, lookup, raw)
}

/** Files of variables that services name: each is read once, however many have it. */
export class EnvFiles {
  readonly #lookup: Lookup
  readonly #read = new Map<string, ReadonlyMap<string, string>>()
  #given = 0

  constructor(lookup: Lookup) {
    this.#lookup = lookup
  }

  /** @throws ComposeError `ERR_COMPOSE_FILE`. */
  read(file: string, raw: boolean): ReadonlyMap<string, string> {
    const key = `${String(raw)} ${file}`
    const found = this.#read.get(key) ?? readEnvFile(file, this.#lookup, raw)
    this.#read.set(key, found)
    if ((this.#given += found.size) > MAX_VARIABLES)
      throw fileError(`${file}: all services together have more than ${MAX_VARIABLES} variables from files`, {
        path: file,
      })
    return found
  }
}

/** What repeats itself has to end somewhere, before there is no memory left. */
function counted<T extends Tree>(tree: T, { count }: Loading): T {
  if ((count.values += countValues(tree)) > MAX_VALUES)
    throw errorAt(tree.at, "", `with what is included and extended there are more than ${MAX_VALUES} values`)
  return tree
}

function interpolated(tree: Mapping, { lookup, onNotice, count }: Loading): Mapping {
  const onUnset = (name: string): void => {
    if (count.unset.has(name)) return
    count.unset.add(name)
    onNotice(`the variable ${name} is not set: it stands for nothing`)
  }
  const change = (one: Leaf, at: string): Leaf => {
    if (typeof one.value !== "string" || !one.value.includes("$")) return one
    try {
      const value = interpolate(one.value, lookup, onUnset)
      if ((count.characters += value.length) > MAX_INTERPOLATED)
        throw new InterpolationError(`the values come to more than ${MAX_INTERPOLATED} characters`)
      return { ...one, value, written: undefined }
    } catch (cause) {
      if (cause instanceof InterpolationError) throw errorAt(one.at, at, cause.message)
      throw cause
    }
  }
  return mapLeaves(tree, "", change) as Mapping
}

/** `~/x` and what is relative to `base`. */
function resolved(text: string, base: string): string {
  if (text === "~" || text.startsWith("~/")) return path.join(os.homedir(), text.slice(1))
  return path.resolve(base, text)
}

const URL_OR_HOST = /^(?:[a-z][a-z0-9+.-]*:\/\/|git@|github\.com\/)/

/** Paths of the host, which are relative to the folder of the project: in the long forms. */
function withPaths(file: Mapping, base: string): Mapping {
  const whenPath =
    (isPath: (text: string) => boolean): Change =>
    (tree) => {
      if (tree.kind !== "leaf" || tree.value === null || !isPath(textOf(tree))) return tree
      return { ...tree, value: resolved(textOf(tree), base), written: undefined }
    }
  const always = whenPath(() => true)
  const settings = fields({ pem_path: always })
  const service = fields({
    build: fields({ context: whenPath((text) => !URL_OR_HOST.test(text)) }),
    env_file: each(fields({ path: always })),
    label_file: each(always),
    image: whenPath(isHostPath),
    volumes: each(fields({ source: whenPath(isHostPath) })),
    "x-sifcrypt": settings,
  })
  const fromFile = everyValue(fields({ file: always }))
  return fields({
    services: everyValue(service),
    secrets: fromFile,
    configs: fromFile,
    "x-sifcrypt": settings,
  })(file, "") as Mapping
}

/** A file in its long forms, as a mapping of its own. */
function readFile(file: string, base: string, loading: Loading): Mapping {
  if (++loading.count.files > MAX_FILES)
    throw fileError(`${file}: more than ${MAX_FILES} files`, { path: file })
  const tree = interpolated(parseTree(readText(file, MAX_YAML_SIZE), file), loading)
  checkSchema(tree)
  return withPaths(unique(counted(canonical(tree), loading)) as Mapping, base)
}

export function child(tree: Tree | undefined, key: string): Tree | undefined {
  return tree?.kind === "map" ? tree.entries.get(key) : undefined
}

/** What a key of a mapping says; undefined: nothing. */
export function textAt(tree: Tree | undefined, key: string): string | undefined {
  const found = child(tree, key)
  return found?.kind === "leaf" && found.value !== null ? textOf(found) : undefined
}

function withEntry(tree: Mapping, key: string, value: Tree): Mapping {
  return { ...tree, entries: new Map([...tree.entries, [key, value]]) }
}

/** Services of one file with what they extend. */
class Extender {
  readonly #loading: Loading
  readonly #files = new Map<string, Mapping>()

  constructor(loading: Loading) {
    this.#loading = loading
  }

  all(file: string, tree: Mapping): Mapping {
    this.#files.set(file, tree)
    const services = tree.entries.get("services")
    if (services?.kind !== "map") return tree
    const extended = [...services.entries.keys()].map(
      (name) => [name, this.#service(file, name, [], services)] as const,
    )
    return withEntry(tree, "services", { ...services, entries: new Map(extended) })
  }

  #service(file: string, name: string, chain: readonly string[], services: Mapping): Tree {
    const own = services.entries.get(name)
    const extended = child(own, "extends")
    if (own?.kind !== "map" || extended === undefined || extended.kind !== "map")
      return own ?? leaf(null, services.at)
    const at = `services.${name}.extends`
    const from = textAt(extended, "service") ?? ""
    const named = textAt(extended, "file")
    const target = named === undefined ? file : resolved(named, path.dirname(file))
    const link = `${target}#${from}`
    if (chain.includes(link) || link === `${file}#${name}`)
      throw errorAt(
        extended.at,
        at,
        `it extends itself: ${[...chain, link].map((one) => one.split("#").at(-1) ?? "").join(", ")}`,
      )
    if (chain.length >= MAX_CHAIN)
      throw errorAt(extended.at, at, `more than ${MAX_CHAIN} services extend each other`)
    let tree = this.#files.get(target)
    if (tree === undefined) {
      tree = readFile(target, path.dirname(target), this.#loading)
      this.#files.set(target, tree)
    }
    const others = tree.entries.get("services")
    if (others?.kind !== "map" || others.entries.get(from)?.kind !== "map")
      throw errorAt(extended.at, at, `there is no service ${from} in ${target}`)
    const base = this.#service(target, from, [...chain, `${file}#${name}`], others)
    const left = mapOf(
      [...own.entries].filter(([key]) => key !== "extends"),
      own.at,
      own.tag,
    )
    return counted(merge(base, left, ["services", name]), this.#loading)
  }
}

const RESOURCES = ["services", "networks", "volumes", "secrets", "configs"] as const

const sameTree = (a: Tree, b: Tree): boolean => isDeepStrictEqual(plain(a), plain(b))

/** What is included beside what is there: nothing has two meanings. */
function beside(file: Mapping, included: Mapping): Mapping {
  let tree = file
  for (const kind of RESOURCES) {
    const more = included.entries.get(kind)
    if (more?.kind !== "map") continue
    const own = tree.entries.get(kind)
    const entries = new Map(own?.kind === "map" ? own.entries : [])
    for (const [name, one] of more.entries) {
      const before = entries.get(name)
      if (before !== undefined && !sameTree(before, one))
        throw errorAt(
          before.at,
          `${kind}.${name}`,
          `${one.at.file}:${one.at.line}, which is included, has another of this name`,
        )
      entries.set(name, one)
    }
    tree = withEntry(tree, kind, mapOf(entries, more.at))
  }
  return tree
}

function isFile(file: string): boolean {
  return statSync(file, { throwIfNoEntry: false })?.isFile() === true
}

/** The environment first, then the files, the last of them first. */
export function lookupWith(environment: Lookup, files: readonly string[]): Lookup {
  const found = new Map<string, string>()
  const lookup: Lookup = (name) => environment(name) ?? found.get(name)
  for (const file of files) for (const [name, value] of readEnvFile(file, lookup)) found.set(name, value)
  return lookup
}

/** The file of variables that is read without being named. */
export function defaultEnvFiles(folder: string): readonly string[] {
  const file = path.join(folder, ".env")
  return isFile(file) ? [file] : []
}

function include(file: string, tree: Mapping, loading: Loading, chain: readonly string[]): Mapping {
  const entries = tree.entries.get("include")
  let found = mapOf(
    [...tree.entries].filter(([key]) => key !== "include"),
    tree.at,
  )
  for (const one of entries?.kind === "list" ? entries.items : []) {
    const base = path.dirname(file)
    const listed = (key: string): string[] => {
      const list = child(one, key)
      return list?.kind === "list" ? list.items.map((item) => (item.kind === "leaf" ? textOf(item) : "")) : []
    }
    const files = listed("path").map((name) => {
      if (URL_OR_HOST.test(name) || name.startsWith("oci:"))
        throw errorAt(one.at, "include", `${name}: only files of this machine are included`)
      return resolved(name, base)
    })
    const [first] = files
    if (first === undefined) throw errorAt(one.at, "include", "there is no path")
    if (files.some((name) => chain.includes(name)) || chain.length >= MAX_CHAIN)
      throw errorAt(one.at, "include", `${first} includes itself`)
    const wanted = textAt(one, "project_directory")
    const folder = wanted === undefined ? path.dirname(first) : resolved(wanted, base)
    const named = listed("env_file").map((name) => resolved(name, base))
    const lookup = lookupWith(loading.lookup, named.length > 0 ? named : defaultEnvFiles(folder))
    found = beside(found, loadTree(files, folder, { ...loading, lookup }, [...chain, ...files]))
  }
  return found
}

/**
 * Files, each over the one before.
 *
 * @param folder - What paths in them are relative to.
 * @throws ComposeError `ERR_COMPOSE_FILE`.
 */
export function loadTree(
  files: readonly string[],
  folder: string,
  loading: Loading,
  chain: readonly string[] = files,
): Mapping {
  let whole: Tree | undefined
  for (const file of files) {
    const tree = new Extender(loading).all(file, readFile(file, folder, loading))
    const one = include(file, tree, loading, chain)
    whole = whole === undefined ? one : merge(whole, one)
  }
  return withoutResets(whole ?? mapOf([], { file: folder, line: 1 })) as Mapping
}

/** Names that are looked for, the first that is there. */
const NAMES = ["compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"]

/** The files of a folder or of the nearest one above it that has some; undefined: there is none. */
export function findFiles(folder: string): string[] | undefined {
  for (let at = path.resolve(folder); ; at = path.dirname(at)) {
    const name = NAMES.find((one) => isFile(path.join(at, one)))
    if (name !== undefined) {
      const [, stem = "", extension = ""] = /^(.*)(\.ya?ml)$/.exec(name) ?? []
      const over = [extension, extension === ".yml" ? ".yaml" : ".yml"]
        .map((one) => path.join(at, `${stem}.override${one}`))
        .find(isFile)
      return [path.join(at, name), ...(over === undefined ? [] : [over])]
    }
    if (at === path.dirname(at)) return undefined
  }
}
