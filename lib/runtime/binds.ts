// What of the host is seen inside, and where: the peers' defaults, and what the caller asks for.
import { chmodSync, existsSync, mkdirSync, realpathSync, statSync } from "node:fs"
import path from "node:path"
import { RunError } from "../errors.ts"
import { optionError, type BindSpec, type ExecOptions } from "./options.ts"

/** What of an image is bound. */
export interface BoundImage {
  /** Absolute, inside. */
  readonly path: string
  /** The partition of a SIF. */
  readonly id: number | undefined
}

/** A file or folder of the host, or of an image there, seen inside. */
export interface Bind {
  /** Absolute, on the host. */
  readonly source: string
  /** `source` is an image. */
  readonly image?: BoundImage
  /** Absolute, inside. */
  readonly destination: string
  readonly readOnly: boolean
  /** Is a container that is started inside told of it? Default true. */
  readonly nested?: boolean
}

/**
 * Is `inner` the folder `outer` or something in it? Decided by path components: `/safe` does not hold `/safe2`.
 * Both absolute and resolved.
 */
export function isWithin(inner: string, outer: string): boolean {
  const relative = path.posix.relative(outer, inner)
  return (
    relative === "" || (relative !== ".." && !relative.startsWith("../") && !path.posix.isAbsolute(relative))
  )
}

/** A bind as it was written, its options still words. */
interface WrittenBind {
  /** For messages. */
  readonly text: string
  readonly source: string
  readonly destination: string | undefined
  readonly options: readonly string[]
}

const optionWord = /^(?:ro|rw|(?:image-src|id)=[^,:]*)$/

/** The number of a SIF's partition as it is written; NaN: it is none. */
export function parseImageId(text: string): number {
  return /^\d{1,9}$/.test(text) ? Number(text) : NaN
}

/** Splits `SRC[:DST[:OPTION[,OPTION…]]]`, several separated by commas and blanks; a backslash takes a comma or colon literally. */
function splitBinds(text: string): WrittenBind[] {
  const binds: WrittenBind[] = []
  let parts = [""]
  let begin = 0
  const end = (at: number): void => {
    const [source = "", destination, options] = parts.map((part) => part.trim())
    const written = text.slice(begin, at).trim()
    if (parts.length > 3) throw bindError(written, "more than SRC:DST:OPTIONS")
    // Nothing between two commas, or in all, asks for nothing.
    if (written !== "") binds.push({ text: written, source, destination, options: options?.split(",") ?? [] })
    parts = [""]
    begin = at + 1
  }
  for (let at = 0; at < text.length; at++) {
    const character = text[at] ?? ""
    const next = text[at + 1] ?? ""
    if (character === "\\" && (next === "," || next === ":")) {
      parts.push((parts.pop() ?? "") + next)
      at++
    } else if (character === ":") parts.push("")
    else if (
      character === "," &&
      !(parts.length === 3 && optionWord.test(/^[^,:]*/.exec(text.slice(at + 1))?.[0] ?? ""))
    )
      end(at)
    else parts.push((parts.pop() ?? "") + character)
  }
  end(text.length)
  return binds
}

function bindError(text: string, why: string): RunError {
  return new RunError("ERR_RUN_BIND", `bind ${text}: ${why}`)
}

function normalized(inside: string): string {
  return path.posix.normalize(inside).replace(/(?<=.)\/$/, "")
}

/** The root stays the image's, whatever a list of binds says that was made for many images. */
function isOverRoot({ source, destination }: WrittenBind): boolean {
  const inside = destination === undefined || destination === "" ? source : destination
  return normalized(inside) === "/"
}

function checkBind(text: string, spec: BindSpec, cwd: string): Bind {
  if (spec.source === "") throw bindError(text, "no source")
  const source = path.resolve(cwd, spec.source)
  if (!existsSync(source)) throw bindError(text, "the source does not exist")
  const { destination = source, readOnly = false, nested = true } = spec
  const inside = destination === "" ? source : destination
  if (!path.isAbsolute(inside)) throw bindError(text, "the destination must be an absolute path")
  const normal = normalized(inside)
  if (normal === "/") throw bindError(text, "nothing can be bound over the root")
  const bind = { source, destination: normal, readOnly, nested }
  const { imageSource, imageId } = spec
  if (imageSource === undefined && imageId === undefined) return bind
  if (imageId !== undefined && !(Number.isSafeInteger(imageId) && imageId > 0))
    throw bindError(text, `${imageId} is no number of a partition`)
  return { ...bind, image: { path: path.posix.join("/", imageSource ?? ""), id: imageId } }
}

/**
 * The binds of a list as `--bind` takes them.
 *
 * @param cwd - What a relative source is relative to.
 * @param onNotice - Hears of what is left out.
 * @throws RunError `ERR_RUN_BIND`.
 */
export function parseBinds(
  list: readonly (string | BindSpec)[],
  cwd: string,
  onNotice?: (text: string) => void,
): Bind[] {
  return list.flatMap((one): Bind[] => {
    if (typeof one !== "string")
      return [checkBind(`${one.source}:${one.destination ?? one.source}`, one, cwd)]
    return splitBinds(one)
      .filter((written) => {
        if (isOverRoot(written)) onNotice?.(`bind ${written.text}: left out, nothing is bound over the root`)
        return !isOverRoot(written)
      })
      .map(({ text, source, destination, options }) => {
        const values = new Map<string, string>()
        for (const word of options) {
          if (!optionWord.test(word)) throw bindError(text, `${word} is not a valid bind option`)
          const [name = "", value = ""] = word.split(/=(.*)/s)
          values.set(name, value)
        }
        const imageSource = values.get("image-src")
        const imageId = values.get("id")
        return checkBind(
          text,
          {
            source,
            destination,
            readOnly: values.has("ro"),
            imageSource,
            ...(imageId === undefined ? {} : { imageId: parseImageId(imageId) }),
          },
          cwd,
        )
      })
  })
}

/** Folders of an operating system, which are the image's. What lies in them, as /var/scratch and /opt/data do, may be the caller's. */
const systemFolders = [
  "/",
  "/etc",
  "/bin",
  "/usr",
  "/var",
  "/opt",
  "/sbin",
  "/lib",
  "/lib32",
  "/lib64",
  "/libx32",
  "/mnt",
]
const kernelFolders = ["/proc", "/sys", "/dev"]

function isFolder(file: string): boolean {
  return statSync(file, { throwIfNoEntry: false })?.isDirectory() === true
}

/** A folder in memory: empty, for the caller to write to, gone with the payload. */
export interface MemoryFolder {
  /** Absolute, inside. */
  readonly destination: string
  readonly source?: undefined
  /** Permission bits. */
  readonly mode: number
}

/** What is seen inside at a place besides the image. */
export type Place = Bind | MemoryFolder

/** Who runs, and from where. */
export interface Caller {
  readonly uid: number
  readonly gid: number
  /** On the host, as passwd has it. */
  readonly home: string
  /** Where that is seen; default: in the same place. */
  readonly insideHome?: string
  /** Resolved. */
  readonly cwd: string
}

/** The options that decide which places of the host are seen. */
export type PlaceOptions = Pick<
  ExecOptions,
  "contain" | "home" | "noHome" | "noMount" | "workdir" | "scratch" | "onNotice"
>

const noMountWords: ReadonlySet<string> = new Set([
  "proc",
  "sys",
  "dev",
  "devpts",
  "home",
  "tmp",
  "hostfs",
  "cwd",
  "bind-paths",
])

/** What `--no-mount` asks for. */
export function leftOut(options: PlaceOptions): ReadonlySet<string> {
  const { noMount = [], onNotice } = options
  for (const word of noMount)
    if (!noMountWords.has(word) && !path.isAbsolute(word))
      onNotice?.(`--no-mount ${word}: there is no such mount`)
  return new Set(noMount)
}

/**
 * `--home SRC[:DST]`, or the caller's own. A source that is not there is an empty folder in memory; without one it is `cwd`. Over
 * the root nothing lies.
 */
export function homeOf(caller: Caller, options: PlaceOptions): { source: string; destination: string } {
  if (options.home === undefined)
    return { source: caller.home, destination: caller.insideHome ?? caller.home }
  const parts = options.home.split(":")
  const [from = "", to = path.resolve(caller.cwd, from)] = parts
  if (parts.length > 2 || options.home === "" || !path.isAbsolute(to))
    throw optionError("home", `${options.home} is not SRC[:DST], DST an absolute path`)
  const source = path.resolve(caller.cwd, from)
  if (existsSync(source) && !isFolder(source)) throw optionError("home", `${source} is no folder`)
  return { source, destination: path.posix.normalize(to) }
}

/** A folder below the one of `--workdir`; several payloads may share it. */
function workFolder(workdir: string, cwd: string, name: string, mode: number): string {
  const base = path.resolve(cwd, workdir)
  if (!isFolder(base)) throw optionError("workdir", `there is no folder ${base} on this machine`)
  const folder = path.join(base, name)
  if (!existsSync(folder)) {
    mkdirSync(folder, { recursive: true })
    chmodSync(folder, mode)
  }
  return realpathSync(folder)
}

/** The default places that may be left out or replaced, then scratch folders, then the caller's own binds. */
export function composeBinds(caller: Caller, own: readonly Bind[], options: PlaceOptions = {}): Place[] {
  const { contain = false, noHome = false, workdir, scratch = [], onNotice } = options
  const without = leftOut(options)
  const places: Place[] = []
  const add = (source: string, destination: string): void => {
    places.push({ source, destination, readOnly: false })
  }
  const addEmpty = (destination: string, name: string, mode: number): void => {
    if (workdir === undefined) places.push({ destination, mode })
    else add(workFolder(workdir, caller.cwd, name, mode), destination)
  }
  if (!without.has("tmp"))
    for (const [folder, name] of [
      ["/tmp", "tmp"],
      ["/var/tmp", "var_tmp"],
    ] as const)
      if (contain) addEmpty(folder, name, 0o1777)
      else if (isFolder(folder)) add(folder, folder)
  // Behind these: a home may lie in one of them.
  const home = homeOf(caller, options)
  if (!noHome && !without.has("home") && home.destination !== "/") {
    if (contain && options.home === undefined) addEmpty(home.destination, "home", 0o700)
    else if (isFolder(home.source)) add(realpathSync(home.source), home.destination)
    else if (options.home !== undefined) {
      onNotice?.(`--home: there is no folder ${home.source} on this machine, so it is empty, and in memory`)
      addEmpty(home.destination, "home", 0o700)
    }
  }
  for (const folder of scratch) {
    if (!path.isAbsolute(folder) || path.posix.normalize(folder) === "/")
      throw optionError("scratch", `${folder} is not an absolute path`)
    const normal = path.posix.normalize(folder)
    addEmpty(normal, path.join("scratch", normal), 0o755)
  }
  const { cwd } = caller
  const visible = [...places, ...own].some(
    ({ destination, source }) => destination === source && isWithin(cwd, source),
  )
  const belongsToImage = systemFolders.includes(cwd) || kernelFolders.some((folder) => isWithin(cwd, folder))
  if (!contain && !without.has("cwd") && !visible && !belongsToImage) add(cwd, cwd)
  const taken = new Map<string, Bind>()
  for (const bind of own) {
    const earlier = taken.get(bind.destination)
    if (earlier === undefined) taken.set(bind.destination, bind)
    else onNotice?.(`bind ${bind.source}: ${bind.destination} is taken by ${earlier.source} already`)
  }
  return [...places.filter(({ destination }) => !taken.has(destination)), ...taken.values()]
}

/** Is there a folder at `inside`, as far as `places` decide? undefined: they do not. */
export function folderAt(places: readonly Place[], inside: string): boolean | undefined {
  for (const place of [...places].reverse()) {
    if (!isWithin(inside, place.destination)) continue
    if (place.source === undefined) return inside === place.destination
    // What is in an image shows when it is mounted: what is asked for is there until then.
    if (place.image !== undefined) return true
    return isFolder(path.posix.join(place.source, path.posix.relative(place.destination, inside)))
  }
  return undefined
}
