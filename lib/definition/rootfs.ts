// A root file system under construction, as seen from outside: every path is resolved as it would be inside, and never out
// of it, whatever links an image brings along. Nothing else changes it meanwhile.
import { constants, lstatSync, type Stats } from "node:fs"
import {
  chmod,
  copyFile,
  mkdir,
  open,
  readdir,
  readFile,
  readlink,
  rm,
  rmdir,
  symlink,
  stat,
} from "node:fs/promises"
import path from "node:path"
import { BuildError } from "../errors.ts"
import type { Bytes } from "../units.ts"
import type { AddedEntry } from "../source/metadata-files.ts"

/** Around a build, as the peers have it. */
export const BUILD_UMASK = 0o002
const MAX_LINKS = 40
const MAX_TEXT: Bytes = 16 << 20

/**
 * undefined: there is nothing by that name. Hundreds of names are looked at in a build, most of which the kernel knows: to ask it from
 * another thread takes ten times as long.
 */
function look(file: string): Stats | undefined {
  try {
    return lstatSync(file, { throwIfNoEntry: false })
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === "ENOENT" || code === "ENOTDIR") return undefined
    throw error
  }
}

export class Rootfs {
  /** Absolute, on this machine. */
  readonly folder: string

  constructor(folder: string) {
    this.folder = folder
  }

  /** Where `inside` is on this machine, its last part followed or not; it need not exist. */
  async resolve(inside: string, follow = true): Promise<string> {
    let left = inside.split("/").filter((part) => part !== "" && part !== ".")
    let at: string[] = []
    let links = 0
    while (left.length > 0) {
      const [part = "", ...rest] = left
      left = rest
      if (part === "..") {
        at.pop()
        continue
      }
      const place = path.join(this.folder, ...at, part)
      const info = look(place)
      if (info?.isSymbolicLink() === true && (follow || left.length > 0)) {
        if (++links > MAX_LINKS)
          throw new BuildError("ERR_BUILD_SOURCE", `${inside}: too many symbolic links in the image`)
        const target = await readlink(place)
        if (target.startsWith("/")) at = []
        left = [...target.split("/").filter((name) => name !== "" && name !== "."), ...left]
      } else at.push(part)
    }
    return path.join(this.folder, ...at)
  }

  /** What stands there, links followed. */
  async find(inside: string): Promise<Stats | undefined> {
    return look(await this.resolve(inside))
  }

  /** Makes a folder and those above it. Returns where it is. */
  async makeFolder(inside: string, mode = 0o755): Promise<string> {
    const place = await this.resolve(inside)
    const missing: string[] = []
    for (let at = place; at !== this.folder && look(at) === undefined; at = path.dirname(at))
      missing.unshift(at)
    for (const folder of missing) {
      await mkdir(folder)
      await chmod(folder, mode)
    }
    return place
  }

  /** The place for a new file: whatever stands there, unless it is a folder, is removed. */
  async place(inside: string): Promise<string> {
    await this.makeFolder(path.posix.dirname(path.posix.join("/", inside)))
    const place = await this.resolve(inside, false)
    const info = look(place)
    if (info !== undefined && !info.isDirectory()) await rm(place)
    return place
  }

  async write(inside: string, content: string | Buffer, mode: number): Promise<void> {
    const place = await this.place(inside)
    const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW
    const file = await open(place, flags, 0o600)
    try {
      await file.writeFile(content)
      await file.chmod(mode)
    } finally {
      await file.close()
    }
  }

  async size(inside: string): Promise<Bytes | undefined> {
    const info = await this.find(inside)
    return info?.isFile() === true ? info.size : undefined
  }

  async names(inside: string): Promise<string[]> {
    const place = await this.resolve(inside)
    return look(place)?.isDirectory() === true ? await readdir(place) : []
  }

  /** A file's text; undefined: there is none. */
  async read(inside: string): Promise<string | undefined> {
    const place = await this.resolve(inside)
    const info = look(place)
    if (info?.isFile() !== true) return undefined
    if (info.size > MAX_TEXT)
      throw new BuildError(
        "ERR_BUILD_SOURCE",
        `${inside} has ${info.size} bytes, more than the ${MAX_TEXT} that are read`,
      )
    return await readFile(place, "utf8")
  }

  async remove(inside: string): Promise<void> {
    await rm(await this.resolve(inside, false), { recursive: true, force: true })
  }

  /** An empty file or folder, if there is one. */
  async removeEmpty(inside: string): Promise<void> {
    const place = await this.resolve(inside, false)
    const info = look(place)
    if (info?.isDirectory() === true && (await readdir(place)).length === 0) await rmdir(place)
    else if (info?.isFile() === true && info.size === 0) await rm(place)
  }

  async add(entry: AddedEntry): Promise<void> {
    const there = look(await this.resolve(entry.path, entry.type !== "symlink"))
    if (entry.keep === true && there !== undefined) return
    if (entry.type === "directory") await this.makeFolder(entry.path, entry.mode)
    else if (entry.type === "file") await this.write(entry.path, entry.content, entry.mode)
    else if (there?.isDirectory() !== true) await symlink(entry.target, await this.place(entry.path))
  }

  /** A file of this machine: its content and, as far as the umask lets it, its mode. */
  async copyIn(source: string, inside: string): Promise<void> {
    const place = await this.place(inside)
    await copyFile(source, place, constants.COPYFILE_EXCL)
    await chmod(place, (await stat(source)).mode & 0o777 & ~BUILD_UMASK)
  }
}
