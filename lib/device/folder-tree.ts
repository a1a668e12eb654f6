// A folder as a root file system. It is somebody else's, and may change while it is read: each part of a path is opened in the
// folder above it, which is open, and links lead to where they would if the folder were the root. Nothing outside is opened.
import { closeSync, constants, fstatSync, lstatSync, openSync, readlinkSync, type Stats } from "node:fs"
import { open, readdir } from "node:fs/promises"
import os from "node:os"
import { setImmediate } from "node:timers/promises"
import { TreeError } from "../errors.ts"
import type { NativeFolder, NativeStat, NativeTreeEntry, TreeEntryType } from "../native/binding.ts"
import { nameBytes, nameText } from "../printable.ts"
import type { Bytes } from "../units.ts"
import { isAbsent, treeError, type ExtractResult, type ReadableTree } from "./tree.ts"

// open(2); Node has no name for it
const O_PATH = 0o10000000
const MAX_LINKS = 40
const SLASH = Buffer.from("/")
const UP = Buffer.from("..")
/** Others get their turn after so many of a folder. */
const ENTRIES_AT_ONCE = 1024

type Place = Buffer | string

function within(folder: number, name: Buffer): Buffer {
  return Buffer.concat([Buffer.from(`/proc/self/fd/${folder}/`), name])
}

function partsOf(path: Place): Buffer[] {
  const text = (typeof path === "string" ? nameBytes(path) : path).toString("latin1")
  return text
    .split("/")
    .filter((part) => part !== "" && part !== ".")
    .map((part) => Buffer.from(part, "latin1"))
}

function failure(name: "ENOENT" | "ENOTDIR" | "ELOOP" | "EISDIR" | "EINVAL"): Error {
  return Object.assign(new Error(name), { code: name, errno: -os.constants.errno[name] })
}

function codeOf(error: unknown): string | undefined {
  return (error as NodeJS.ErrnoException).code
}

function typeOf(info: Stats): TreeEntryType {
  if (info.isDirectory()) return "directory"
  if (info.isFile()) return "file"
  if (info.isSymbolicLink()) return "symlink"
  if (info.isBlockDevice()) return "block-device"
  if (info.isCharacterDevice()) return "character-device"
  return info.isFIFO() ? "fifo" : "socket"
}

function statOf(info: Stats, target: Buffer | undefined): NativeStat {
  return {
    inode: info.ino,
    type: typeOf(info),
    mode: info.mode & 0o7777,
    uid: info.uid,
    gid: info.gid,
    nlink: info.nlink,
    mtime: Math.floor(info.mtimeMs / 1000),
    size: info.size,
    rdev: info.rdev,
    ...(target === undefined ? {} : { target }),
  }
}

/** What stands in an open folder by a name. */
function look(folder: number, name: Buffer): NativeStat {
  const place = within(folder, name)
  const info = lstatSync(place)
  return statOf(info, info.isSymbolicLink() ? readlinkSync(place, { encoding: "buffer" }) : undefined)
}

/** The folders from the root down to where one is, each open for nothing but looking. */
class Way implements Disposable {
  readonly #folders: number[]

  constructor(root: number) {
    this.#folders = [openSync(`/proc/self/fd/${root}`, O_PATH | constants.O_DIRECTORY)]
  }
  get last(): number {
    return this.#folders.at(-1) ?? -1
  }
  /** A folder that is in the last one, and no link to one. */
  down(name: Buffer): void {
    this.#folders.push(
      openSync(within(this.last, name), O_PATH | constants.O_DIRECTORY | constants.O_NOFOLLOW),
    )
  }
  /** The root is its own parent. */
  up(): void {
    if (this.#folders.length > 1) closeSync(this.#folders.pop() ?? -1)
  }
  toRoot(): void {
    while (this.#folders.length > 1) this.up()
  }
  [Symbol.dispose](): void {
    for (const folder of this.#folders) closeSync(folder)
  }
}

export class FolderTree implements ReadableTree {
  readonly #image: string
  readonly #root: number

  /**
   * @param root - Of the folder, open as long as this is used.
   * @param image - What to call it in messages.
   */
  constructor(root: number, image: string) {
    this.#root = root
    this.#image = image
  }

  async #named<T>(path: Place, operation: () => T | Promise<T>): Promise<T> {
    try {
      return await operation()
    } catch (cause) {
      const shown = typeof path === "string" ? path : nameText(path)
      const code = codeOf(cause)
      if (code === "EACCES" || code === "EPERM")
        throw Object.assign(new Error(`${this.#image}: ${shown}: permission denied`, { cause }), { code })
      throw treeError(this.#image, shown, cause)
    }
  }

  /**
   * Walks to where `path` leads.
   *
   * @returns The name of what is there in the last folder of the way; undefined: it is that folder.
   */
  #go(way: Way, path: Place, follow: boolean): Buffer | undefined {
    // The next one last: links may put tens of thousands of parts in front.
    const left = partsOf(path).reverse()
    for (let links = 0; ;) {
      const part = left.pop()
      if (part === undefined) return undefined
      if (part.equals(UP)) {
        way.up()
        continue
      }
      try {
        way.down(part)
        continue
      } catch (error) {
        if (codeOf(error) !== "ENOTDIR" && codeOf(error) !== "ELOOP") throw error
      }
      const { type, target } = look(way.last, part)
      if (type !== "symlink" || target === undefined) {
        if (left.length > 0) throw failure("ENOTDIR")
        return part
      }
      if (!follow && left.length === 0) return part
      if (++links > MAX_LINKS) throw failure("ELOOP")
      if (target.subarray(0, 1).equals(SLASH)) way.toRoot()
      for (const one of partsOf(target).reverse()) left.push(one)
    }
  }

  stat(path: string, follow: boolean): Promise<NativeStat> {
    return this.#named(path, () => {
      using way = new Way(this.#root)
      const name = this.#go(way, path, follow)
      return name === undefined ? statOf(fstatSync(way.last), undefined) : look(way.last, name)
    })
  }

  async find(path: string, follow: boolean): Promise<NativeStat | undefined> {
    try {
      return await this.stat(path, follow)
    } catch (error) {
      // Of what the caller may not see there is nothing to be known, as a payload would find.
      if (codeOf(error) === "EACCES" || isAbsent(error)) return undefined
      throw error
    }
  }

  list(path: string): Promise<NativeTreeEntry[]> {
    return this.#named(path, () => this.#list(path, true))
  }

  async #list(path: Place, follow: boolean): Promise<NativeTreeEntry[]> {
    using way = new Way(this.#root)
    if (this.#go(way, path, follow) !== undefined) throw failure("ENOTDIR")
    const names = await readdir(`/proc/self/fd/${way.last}`, { encoding: "buffer" })
    const entries: NativeTreeEntry[] = []
    for (const [index, name] of names.sort((a, b) => Buffer.compare(a, b)).entries()) {
      if (index % ENTRIES_AT_ONCE === ENTRIES_AT_ONCE - 1) await setImmediate()
      try {
        entries.push({ name, stat: look(way.last, name) })
      } catch (error) {
        // It went, or became another one, meanwhile.
        if (codeOf(error) !== "ENOENT" && codeOf(error) !== "EINVAL") throw error
      }
    }
    return entries
  }

  async *walk(path: string): AsyncGenerator<NativeFolder, void, undefined> {
    // Paths from there that are left, the next one last.
    const left: Buffer[] = [Buffer.alloc(0)]
    for (let here = left.pop(); here !== undefined; here = left.pop()) {
      const below = here
      const whole = Buffer.concat([nameBytes(path), SLASH, below])
      // Where it starts may be a link; below it a link that took a folder's place is none to follow.
      const entries = await this.#named(whole, () => this.#list(whole, below.length === 0))
      yield { path: below, entries }
      const folders = entries.filter(({ stat }) => stat.type === "directory").reverse()
      for (const { name } of folders)
        left.push(below.length === 0 ? name : Buffer.concat([below, SLASH, name]))
    }
  }

  read(path: string, position: Bytes, length: Bytes): Promise<Buffer> {
    return this.#named(path, async () => {
      using way = new Way(this.#root)
      const name = this.#go(way, path, true)
      if (name === undefined) throw failure("EISDIR")
      // Opening some devices and pipes does something, or waits.
      if (look(way.last, name).type !== "file") throw failure("EINVAL")
      const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK
      await using file = await open(within(way.last, name), flags)
      const info = await file.stat()
      if (!info.isFile()) throw failure("EINVAL")
      const buffer = Buffer.alloc(Math.max(0, Math.min(length, info.size - position)))
      let done = 0
      while (done < buffer.length) {
        const { bytesRead } = await file.read(buffer, done, buffer.length - done, position + done)
        if (bytesRead === 0) break
        done += bytesRead
      }
      return buffer.subarray(0, done)
    })
  }

  extract(): Promise<ExtractResult> {
    return Promise.reject(
      new TreeError("ERR_TREE_UNSUPPORTED", `${this.#image} is a folder: there is nothing to extract`, {
        path: this.#image,
      }),
    )
  }

  close(): void {
    // The folder is its owner's to close.
  }
  [Symbol.dispose](): void {
    this.close()
  }
}
