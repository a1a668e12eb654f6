// A folder as a root file system. It is somebody else's, and may change while it is read: each part of a path is opened in the
// folder above it, which is open, and links lead to where they would if the folder were the root. Nothing outside is opened.
import { constants } from "node:fs"
import { open, readdir, readlink, type FileHandle } from "node:fs/promises"
import os from "node:os"
import { TreeError } from "../errors.ts"
import type { NativeFolder, NativeStat, NativeTreeEntry, TreeEntryType } from "../native/binding.ts"
import { nameBytes, nameText } from "../printable.ts"
import type { Bytes } from "../units.ts"
import { treeError, type ExtractResult, type ReadableTree } from "./tree.ts"

// open(2); Node has no name for it
const O_PATH = 0o10000000
const MAX_LINKS = 40
const SLASH = Buffer.from("/")

type Place = Buffer | string

function within(folder: FileHandle, name: Place): Buffer {
  return Buffer.concat([Buffer.from(`/proc/self/fd/${folder.fd}/`), Buffer.from(name)])
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

/** Handles that were opened on the way to one, which is given away. */
class Way implements AsyncDisposable {
  readonly #handles: FileHandle[] = []

  get last(): FileHandle {
    const last = this.#handles.at(-1)
    if (last === undefined) throw new RangeError("there is nothing on this way")
    return last
  }
  push(handle: FileHandle): void {
    this.#handles.push(handle)
  }
  /** The root is its own parent. */
  async up(): Promise<void> {
    if (this.#handles.length > 1) await this.#handles.pop()?.close()
  }
  async toRoot(): Promise<void> {
    while (this.#handles.length > 1) await this.up()
  }
  take(): FileHandle {
    const { last } = this
    this.#handles.pop()
    return last
  }
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#handles.map((handle) => handle.close()))
  }
}

function typeOf(info: Awaited<ReturnType<FileHandle["stat"]>>): TreeEntryType {
  if (info.isDirectory()) return "directory"
  if (info.isFile()) return "file"
  if (info.isSymbolicLink()) return "symlink"
  if (info.isBlockDevice()) return "block-device"
  if (info.isCharacterDevice()) return "character-device"
  return info.isFIFO() ? "fifo" : "socket"
}

async function statOf(found: FileHandle, target: Buffer | undefined): Promise<NativeStat> {
  const info = await found.stat()
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

  async #named<T>(path: Place, operation: () => Promise<T>): Promise<T> {
    try {
      return await operation()
    } catch (cause) {
      const shown = typeof path === "string" ? path : nameText(path)
      const { code } = cause as NodeJS.ErrnoException
      if (code === "EACCES" || code === "EPERM")
        throw Object.assign(new Error(`${this.#image}: ${shown}: permission denied`, { cause }), { code })
      throw treeError(this.#image, shown, cause)
    }
  }

  /** What is at `path`, open for nothing but looking, and where a link leads that was not followed. */
  async #open(
    path: Place,
    follow: boolean,
  ): Promise<{ readonly found: FileHandle; readonly target: Buffer | undefined }> {
    await using way = new Way()
    way.push(await open(`/proc/self/fd/${this.#root}`, O_PATH | constants.O_DIRECTORY))
    let left = partsOf(path)
    for (let links = 0; ;) {
      const [part, ...rest] = left
      if (part === undefined) return { found: way.take(), target: undefined }
      left = rest
      if (part.equals(Buffer.from(".."))) {
        await way.up()
        continue
      }
      const above = way.last
      const found = await open(within(above, part), O_PATH | constants.O_NOFOLLOW)
      way.push(found)
      const info = await found.stat()
      if (info.isSymbolicLink()) {
        const target = await readlink(within(above, part), { encoding: "buffer" })
        if (!follow && left.length === 0) return { found: way.take(), target }
        if (++links > MAX_LINKS) throw failure("ELOOP")
        await way.up()
        if (target.subarray(0, 1).equals(SLASH)) await way.toRoot()
        left = [...partsOf(target), ...left]
      } else if (left.length > 0 && !info.isDirectory()) {
        throw failure("ENOTDIR")
      }
    }
  }

  stat(path: string, follow: boolean): Promise<NativeStat> {
    return this.#named(path, async () => {
      const { found, target } = await this.#open(path, follow)
      await using place = found
      return await statOf(place, target)
    })
  }

  async find(path: string, follow: boolean): Promise<NativeStat | undefined> {
    try {
      return await this.stat(path, follow)
    } catch (error) {
      // Of what the caller may not see there is nothing to be known, as a payload would find.
      if ((error as NodeJS.ErrnoException).code === "EACCES") return undefined
      if (
        error instanceof TreeError &&
        (error.code === "ERR_TREE_NOT_FOUND" || error.code === "ERR_TREE_TYPE")
      )
        return undefined
      throw error
    }
  }

  list(path: string): Promise<NativeTreeEntry[]> {
    return this.#named(path, () => this.#list(path, true))
  }

  async #list(path: Place, follow: boolean): Promise<NativeTreeEntry[]> {
    const { found } = await this.#open(path, follow)
    await using folder = found
    if (!(await folder.stat()).isDirectory()) throw failure("ENOTDIR")
    const names = await readdir(`/proc/self/fd/${folder.fd}`, { encoding: "buffer" })
    const entries: NativeTreeEntry[] = []
    for (const name of names.sort((a, b) => Buffer.compare(a, b))) {
      try {
        await using entry = await open(within(folder, name), O_PATH | constants.O_NOFOLLOW)
        const isLink = (await entry.stat()).isSymbolicLink()
        const target = isLink ? await readlink(within(folder, name), { encoding: "buffer" }) : undefined
        entries.push({ name, stat: await statOf(entry, target) })
      } catch (error) {
        // It went, or became another one, meanwhile.
        const { code } = error as NodeJS.ErrnoException
        if (code !== "ENOENT" && code !== "EINVAL") throw error
      }
    }
    return entries
  }

  async *walk(path: string): AsyncGenerator<NativeFolder, void, undefined> {
    // Names that are left, the next one last.
    const left: Buffer[] = [Buffer.alloc(0)]
    for (let below = left.pop(); below !== undefined; below = left.pop()) {
      const here = below
      const whole = Buffer.concat([nameBytes(path), SLASH, here])
      // The first may be a link; below it a link that took a folder's place is none to follow.
      const entries = await this.#named(whole, () => this.#list(whole, here.length === 0))
      yield { path: here, entries }
      const folders = entries.filter(({ stat }) => stat.type === "directory").reverse()
      for (const { name } of folders) left.push(here.length === 0 ? name : Buffer.concat([here, SLASH, name]))
    }
  }

  read(path: string, position: Bytes, length: Bytes): Promise<Buffer> {
    return this.#named(path, async () => {
      const { found } = await this.#open(path, true)
      await using place = found
      const info = await place.stat()
      if (info.isDirectory()) throw failure("EISDIR")
      if (!info.isFile()) throw failure("EINVAL")
      await using file = await open(`/proc/self/fd/${place.fd}`, constants.O_RDONLY)
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
