// A file under construction: without a name until it is complete, so that nothing is left of it when we fail or are killed.
import { randomBytes } from "node:crypto"
import { constants } from "node:fs"
import { link, lstat, open, readlink, realpath, rename, rm, stat, type FileHandle } from "node:fs/promises"
import path from "node:path"
import { BuildError } from "../errors.ts"
import { loadAddon } from "../native/load.ts"
import { writeFully } from "../sif/write.ts"
import type { Bytes } from "../units.ts"

// open(2); Node has no name for it
const O_TMPFILE = 0o20000000 | constants.O_DIRECTORY

const PAGE: Bytes = 4096

/** Peers mark images executable: their first line starts them. */
const IMAGE_MODE = 0o777

/** Names the output and what could not be done to it. */
export function outputError(target: string, what: string, cause: unknown): BuildError {
  const { code, message } = cause as NodeJS.ErrnoException
  const why: Readonly<Record<string, string>> = {
    ENOSPC: "no space left on the device",
    EDQUOT: "the disk quota is used up",
    EROFS: "the file system is read-only",
    EACCES: "permission denied",
    ENOENT: "the folder does not exist",
    EFBIG: "the file would be too large",
  }
  return new BuildError("ERR_BUILD_OUTPUT", `cannot ${what} ${target}: ${why[code ?? ""] ?? message}`, {
    path: target,
    cause,
  })
}

/** Turns the system errors of writing into one that names the output. */
export function asOutputError(target: string, cause: unknown): unknown {
  const failed = cause instanceof Error && "syscall" in cause && "code" in cause
  return failed ? outputError(target, "write", cause) : cause
}

export class Output implements AsyncDisposable {
  readonly target: string
  readonly #file: FileHandle
  /** Where the file system cannot make unnamed files. */
  #temporary: string | undefined

  private constructor(target: string, file: FileHandle, temporary: string | undefined) {
    this.target = target
    this.#file = file
    this.#temporary = temporary
  }

  /**
   * @param mode - As open(2) has it: the umask may take from it.
   * @throws BuildError `ERR_BUILD_EXISTS` without `replace`, `ERR_BUILD_OUTPUT`.
   */
  static async create(target: string, replace: boolean, mode: number = IMAGE_MODE): Promise<Output> {
    await checkTarget(target, replace)
    const folder = path.dirname(target)
    try {
      return new Output(target, await open(folder, O_TMPFILE | constants.O_RDWR, mode), undefined)
    } catch (cause) {
      const { code } = cause as NodeJS.ErrnoException
      // EISDIR: a kernel or file system that never heard of O_TMPFILE.
      if (code !== "EOPNOTSUPP" && code !== "ENOTSUP" && code !== "EISDIR" && code !== "EINVAL")
        throw outputError(target, "create", cause)
    }
    const temporary = path.join(folder, `.${path.basename(target)}.${randomBytes(12).toString("hex")}`)
    try {
      const flags = constants.O_CREAT | constants.O_EXCL | constants.O_RDWR | constants.O_NOFOLLOW
      return new Output(target, await open(temporary, flags, mode), temporary)
    } catch (cause) {
      throw outputError(target, "create", cause)
    }
  }

  get file(): FileHandle {
    return this.#file
  }

  /** The names in `folder`, from there, that are this output: an image may be written into what it is made of. */
  async within(folder: string): Promise<string[]> {
    const outer = await realpath(folder)
    const parent = await realpath(path.dirname(this.target))
    const names = [this.target, ...(this.#temporary === undefined ? [] : [this.#temporary])]
    return names
      .map((name) => path.relative(outer, path.join(parent, path.basename(name))))
      .filter((name) => name !== ".." && !name.startsWith("../"))
  }

  /** Writes all of `bytes`. */
  async write(bytes: Uint8Array, position: Bytes): Promise<void> {
    try {
      await writeFully(this.#file, bytes, position)
    } catch (cause) {
      throw asOutputError(this.target, cause)
    }
  }

  /** Writes what is not zero; the rest becomes holes. */
  async writeSparse(bytes: Buffer, position: Bytes): Promise<void> {
    const empty = Buffer.alloc(PAGE)
    const isEmpty = (at: Bytes): boolean => {
      const page = bytes.subarray(at, at + PAGE)
      return page.equals(empty.subarray(0, page.length))
    }
    for (let at = 0; at < bytes.length;) {
      let end = at
      while (end < bytes.length && !isEmpty(end)) end += PAGE
      if (end > at) await this.write(bytes.subarray(at, end), position + at)
      at = end + PAGE
    }
  }

  /** Gives the file its length: it may end in a hole. */
  async truncate(size: Bytes): Promise<void> {
    try {
      await this.#file.truncate(size)
    } catch (cause) {
      throw asOutputError(this.target, cause)
    }
  }

  /** Syncs it and gives it its name, in one step. */
  async publish(replace: boolean): Promise<void> {
    try {
      if (this.#temporary === undefined) {
        await loadAddon().publishFile({ fd: this.#file.fd, path: this.target, replace })
        return
      }
      await this.#file.sync()
      if (replace) {
        await rename(this.#temporary, this.target)
        this.#temporary = undefined
      } else await link(this.#temporary, this.target)
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code === "EEXIST") throw exists(this.target)
      throw outputError(this.target, "write", cause)
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.#file.close()
    } finally {
      if (this.#temporary !== undefined) await rm(this.#temporary, { force: true })
    }
  }
}

function exists(target: string): BuildError {
  return new BuildError("ERR_BUILD_EXISTS", `${target} exists`, { path: target })
}

/** Like /dev/stdout: a link that must not be replaced by a file. */
async function leadsToDevice(target: string): Promise<boolean> {
  if ((await readlink(target)).startsWith("/proc/")) return true
  try {
    return !(await stat(target)).isFile()
  } catch {
    return false // It leads nowhere.
  }
}

/** Fails early where publishing would fail. */
export async function checkTarget(target: string, replace: boolean): Promise<void> {
  let info
  try {
    info = await lstat(target)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ENOENT") return
    throw outputError(target, "create", cause)
  }
  if (info.isDirectory())
    throw new BuildError("ERR_BUILD_OUTPUT", `cannot write ${target}: it is a folder`, { path: target })
  if (info.isSymbolicLink() ? await leadsToDevice(target) : !info.isFile())
    throw new BuildError("ERR_BUILD_OUTPUT", `cannot write ${target}: it is no regular file`, {
      path: target,
    })
  if (!replace) throw exists(target)
}
