// What of the host is seen inside, and where: the peers' defaults, and what the caller asks for.
import { existsSync, realpathSync, statSync } from "node:fs"
import path from "node:path"
import { RunError } from "../errors.ts"

/** A file or folder of the host, seen inside. */
export interface Bind {
  /** Absolute, on the host. */
  readonly source: string
  /** Absolute, inside. */
  readonly destination: string
  readonly readOnly: boolean
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

/** Splits at commas that start a new bind; a comma before `ro` or `rw` belongs to the options of the one before. */
function splitBinds(text: string): string[] {
  const parts = text.split(/(?<!\\),/)
  const binds: string[] = []
  for (const part of parts) {
    if (binds.length > 0 && (part === "ro" || part === "rw")) binds.push(`${binds.pop() ?? ""},${part}`)
    else binds.push(part)
  }
  return binds
}

/**
 * Parses `SRC[:DST[:ro|rw]]`, several separated by commas.
 *
 * @param cwd - What a relative source is relative to.
 * @throws RunError `ERR_RUN_BIND`.
 */
export function parseBinds(texts: readonly string[], cwd: string): Bind[] {
  return texts.flatMap(splitBinds).map((text) => {
    const wrong = (why: string): never => {
      throw new RunError("ERR_RUN_BIND", `bind ${text}: ${why}`)
    }
    const parts = text.split(/(?<!\\):/).map((part) => part.replace(/\\([:,])/g, "$1"))
    const [from = "", to, option] = parts
    if (parts.length > 3) wrong("more than SRC:DST:OPTION")
    if (from === "") wrong("no source")
    const options = (option ?? "").split(",").filter((word) => word !== "")
    for (const word of options)
      if (word !== "ro" && word !== "rw") wrong(`${word} is not a valid bind option`)
    const source = path.resolve(cwd, from)
    if (!existsSync(source)) wrong("the source does not exist")
    const destination = to === undefined || to === "" ? source : to
    if (!path.isAbsolute(destination)) wrong("the destination must be an absolute path")
    return { source, destination: path.posix.normalize(destination), readOnly: options.includes("ro") }
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
