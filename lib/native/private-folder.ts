// A folder that is its user's alone, for what his processes have in common; and whether one is that he named.
import {
  chmodSync,
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  mkdirSync,
  openSync,
  readFileSync,
} from "node:fs"
import { lstat, readFile, realpath, stat } from "node:fs/promises"
import { homedir, hostname } from "node:os"
import path from "node:path"
import { RunError } from "../errors.ts"
import type { Bytes } from "../units.ts"

/** A folder that others can put nothing into. */
function isTrusted(folder: string, uid: number): boolean {
  const found = lstatSync(folder, { throwIfNoEntry: false })
  return found?.isDirectory() === true && found.uid === uid && (found.mode & 0o022) === 0
}

/** Makes a folder of mode 0700, or takes the one that is there: it must be just that, and no link. */
function privateFolder(folder: string, uid: number): string {
  try {
    mkdirSync(folder, { mode: 0o700 })
    chmodSync(folder, 0o700)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error
  }
  const found = lstatSync(folder)
  if (!found.isDirectory() || found.uid !== uid || (found.mode & 0o077) !== 0)
    throw RunError.at(folder, "ERR_INSTANCE_FOLDER", `not a folder of the user ${uid} alone (mode 0700)`)
  return folder
}

/** What every process of this user hears there, today and tomorrow. A place that only one has to do without is not one in common. */
const lasting: ReadonlySet<unknown> = new Set(["EACCES", "EPERM", "EROFS", "ENAMETOOLONG"])

/**
 * `base` must be there and the user's alone; what is below it is made. undefined: another place is needed.
 *
 * @throws RunError `ERR_INSTANCE_FOLDER`: nobody but the user can have spoilt it. The system's error, as of a file system that is full.
 */
function folderBelow(base: string, names: readonly string[], uid: number): string | undefined {
  if (!path.isAbsolute(base) || !isTrusted(base, uid)) return undefined
  try {
    return names.reduce((folder, name) => privateFolder(path.join(folder, name), uid), base)
  } catch (error) {
    if (lasting.has((error as NodeJS.ErrnoException).code)) return undefined
    throw error
  }
}

function homeCache(): string {
  const cache = process.env["XDG_CACHE_HOME"]
  if (cache !== undefined && path.isAbsolute(cache)) return cache
  try {
    return path.join(homedir(), ".cache")
  } catch {
    return "" // neither the environment nor the system knows one
  }
}

/**
 * Where this user's processes have what they share: in memory, where the system has a place for that. What others may write, such as
 * /tmp, comes last: the first who comes there could keep the place from its user.
 *
 * @throws RunError `ERR_INSTANCE_FOLDER`; the system's error where it cannot be made now.
 */
export function ownFolder(name: string): string {
  const uid = process.geteuid?.() ?? 0
  for (const base of uid === 0 ? ["/run"] : [process.env["XDG_RUNTIME_DIR"] ?? "", `/run/user/${uid}`]) {
    const folder = folderBelow(base, ["sifcrypt", name], uid)
    if (folder !== undefined) return folder
  }
  const cache = homeCache()
  if (cache !== "" && isTrusted(path.dirname(cache), uid)) {
    try {
      mkdirSync(cache, { mode: 0o700 })
    } catch {
      // It is there, or cannot be: seen below.
    }
    // A home may be seen from many machines, and processes are this one's.
    const folder = folderBelow(cache, [`sifcrypt-${name}`, encodeURIComponent(hostname()) || "here"], uid)
    if (folder !== undefined) return folder
  }
  return privateFolder(`${privateFolder(`/tmp/sifcrypt-${uid}`, uid)}/${name}`, uid)
}

/** The same where it is there, and nothing is made; undefined: it is not, or not the user's alone. */
export function ownFolderThere(name: string): string | undefined {
  const uid = process.geteuid?.() ?? 0
  const isPrivate = (folder: string): boolean => {
    const found = lstatSync(folder, { throwIfNoEntry: false })
    return found?.isDirectory() === true && found.uid === uid && (found.mode & 0o077) === 0
  }
  const bases = uid === 0 ? ["/run"] : [process.env["XDG_RUNTIME_DIR"] ?? "", `/run/user/${uid}`]
  for (const base of bases) {
    const above = path.join(base, "sifcrypt")
    if (path.isAbsolute(base) && isTrusted(base, uid) && isPrivate(above))
      return isPrivate(path.join(above, name)) ? path.join(above, name) : undefined
  }
  const cache = homeCache()
  const above = path.join(cache, `sifcrypt-${name}`)
  const folder = path.join(above, encodeURIComponent(hostname()) || "here")
  return cache !== "" && isTrusted(path.dirname(cache), uid) && isPrivate(above) && isPrivate(folder)
    ? folder
    : undefined
}

/** What belongs to somebody whom this user namespace does not know is nobody's. */
async function unmappedUser(): Promise<number | undefined> {
  const map = await readFile("/proc/self/uid_map", "utf8")
  return /^\s*0\s+0\s+4294967295\s*$/.test(map) ? undefined : 65534
}

/**
 * Can nobody else put something in its place, or in that of a folder that it lies in, or say where a link on the way leads? Such a link may
 * lead to what is this user's and has another's content: an image that root has unpacked.
 */
export async function isHeld(place: string): Promise<boolean> {
  const trusted = [0, process.geteuid?.(), await unmappedUser()]
  // Or where it will be.
  const real = await realpath(place).catch(async () =>
    path.join(await realpath(path.dirname(place)), path.basename(place)),
  )
  for (const start of new Set([path.resolve(place), real]))
    for (let below = start; below !== "/"; below = path.dirname(below)) {
      const found = await lstat(below).catch(() => undefined)
      if (found?.isSymbolicLink() === true && !trusted.includes(found.uid)) return false
      const { uid, mode } = await stat(path.dirname(below))
      const isShared = (mode & 0o022) !== 0 && (mode & 0o1000) === 0
      if (!trusted.includes(uid) || isShared) return false
    }
  return true
}

/** What is in a file of ours there; undefined: it is none, or longer. */
export function readOwn(file: string, limit: Bytes): string | undefined {
  let fd: number
  try {
    fd = openSync(file, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  } catch {
    return undefined
  }
  try {
    const found = fstatSync(fd)
    const isOurs = found.isFile() && found.uid === process.geteuid?.() && found.size <= limit
    return isOurs ? readFileSync(fd, "utf8") : undefined
  } finally {
    closeSync(fd)
  }
}
