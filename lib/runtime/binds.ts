// What of the host is seen inside, and where: the peers' defaults, and what the caller asks for.
import { existsSync, realpathSync, statSync } from "node:fs"
import path from "node:path"
import { RunError } from "../errors.ts"
import type { BindSpec } from "./options.ts"

/** A file or folder of the host, seen inside. */
export interface Bind {
  /** Absolute, on the host. */
  readonly source: string
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

const optionWord = /^(?:ro|rw|(?:image-src|id|archive-src)=[^,:]*)$/

/** Splits `SRC[:DST[:OPTION[,OPTION…]]]`, several separated by commas; a backslash takes a comma or colon literally. */
function splitBinds(text: string): WrittenBind[] {
  const binds: WrittenBind[] = []
  let parts = [""]
  let begin = 0
  const end = (at: number): void => {
    const [source = "", destination, options] = parts
    const written = text.slice(begin, at)
    if (parts.length > 3) throw bindError(written, "more than SRC:DST:OPTIONS")
    binds.push({ text: written, source, destination, options: options?.split(",") ?? [] })
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

function checkBind(text: string, spec: BindSpec, cwd: string): Bind {
  if (spec.source === "") throw bindError(text, "no source")
  const source = path.resolve(cwd, spec.source)
  if (!existsSync(source)) throw bindError(text, "the source does not exist")
  const { destination = source, readOnly = false, nested = true } = spec
  const inside = destination === "" ? source : destination
  if (!path.isAbsolute(inside)) throw bindError(text, "the destination must be an absolute path")
  const normal = path.posix.normalize(inside).replace(/(?<=.)\/$/, "")
  if (normal === "/") throw bindError(text, "nothing can be bound over the root")
  return { source, destination: normal, readOnly, nested }
}

/** The one kind of bind that would need an image of its own to be opened. */
function refuseImage(text: string, option: string): never {
  throw bindError(text, `${option} is not supported: mount that image on a folder and bind the folder`)
}

/**
 * The binds of a list as `--bind` takes them.
 *
 * @param cwd - What a relative source is relative to.
 * @throws RunError `ERR_RUN_BIND`.
 */
export function parseBinds(list: readonly (string | BindSpec)[], cwd: string): Bind[] {
  return list.flatMap((one): Bind[] => {
    if (typeof one !== "string")
      return [checkBind(`${one.source}:${one.destination ?? one.source}`, one, cwd)]
    return splitBinds(one)
      .filter(({ text }, _, all) => text !== "" || all.length === 1)
      .map(({ text, source, destination, options }) => {
        for (const word of options) {
          if (!optionWord.test(word)) throw bindError(text, `${word} is not a valid bind option`)
          if (word.includes("=")) refuseImage(text, word.slice(0, word.indexOf("=")))
        }
        const spec = { source, ...(destination === undefined ? {} : { destination }) }
        return checkBind(text, { ...spec, readOnly: options.includes("ro") }, cwd)
      })
  })
}

/** Folders of an operating system, which belong to the image and not to the host's working directory. */
const systemFolders = [
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

/** Who runs, and from where. */
export interface Caller {
  readonly uid: number
  readonly gid: number
  readonly home: string
  /** Resolved. */
  readonly cwd: string
}

/**
 * The binds of home, /tmp, /var/tmp and the working directory, then the caller's own: a later one wins its destination.
 */
export function composeBinds(caller: Caller, own: readonly Bind[]): Bind[] {
  const binds: Bind[] = []
  const add = (source: string, destination: string): void => {
    binds.push({ source, destination, readOnly: false })
  }
  if (caller.home !== "/" && isFolder(caller.home)) add(realpathSync(caller.home), caller.home)
  for (const folder of ["/tmp", "/var/tmp"]) if (isFolder(folder)) add(folder, folder)
  const { cwd } = caller
  const visible = [...binds, ...own].some(
    ({ destination, source }) => destination === source && isWithin(cwd, source),
  )
  const belongsToImage =
    cwd === "/" || [...systemFolders, ...kernelFolders].some((folder) => isWithin(cwd, folder))
  if (!visible && !belongsToImage) add(cwd, cwd)
  const taken = new Set(own.map(({ destination }) => destination))
  return [...binds.filter(({ destination }) => !taken.has(destination)), ...own]
}

/** The host's path behind `inside`, if a bind covers it. */
export function hostPath(binds: readonly Bind[], inside: string): string | undefined {
  for (const bind of [...binds].reverse())
    if (isWithin(inside, bind.destination))
      return path.posix.join(bind.source, path.posix.relative(bind.destination, inside))
  return undefined
}
