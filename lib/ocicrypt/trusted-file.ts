// Files that say what gets layer keys and PINs, and what is started or loaded by them: nobody but root and the user himself may have
// written them, nor be able to put something else into their place.
import { constants, type Stats } from "node:fs"
import { open, realpath, stat } from "node:fs/promises"
import path from "node:path"
import { KeyError } from "../errors.ts"
import type { Bytes } from "../units.ts"

type Code = "ERR_KEY_PROVIDER" | "ERR_KEY_TOKEN"

const WRITABLE_BY_OTHERS = 0o022
const STICKY = 0o1000

/** Errors about such files, of one kind. */
export class TrustedFiles {
  readonly #code: Code

  constructor(code: Code) {
    this.#code = code
  }

  refuse(file: string, why: string, cause?: unknown): KeyError {
    return KeyError.at(file, this.#code, why, { cause })
  }

  #checkOwner(file: string, info: Stats): void {
    const user = process.geteuid?.() ?? 0
    if (info.uid !== 0 && info.uid !== user)
      throw this.refuse(file, `it belongs to user ${info.uid}, who would get the keys of layers by it`)
    if ((info.mode & WRITABLE_BY_OTHERS) !== 0 && !(info.isDirectory() && (info.mode & STICKY) !== 0))
      throw this.refuse(file, "others may write it, who would get the keys of layers by it: chmod go-w")
  }

  /**
   * Nobody else can put something else into its place.
   *
   * @returns The place, by a name without links: those on the way to it may be others'.
   */
  async checkPlace(file: string): Promise<string> {
    const place = await realpath(file)
    for (let at = place; ; at = path.dirname(at)) {
      this.#checkOwner(at, await stat(at))
      if (at === "/") return place
    }
  }

  /** The text of such a file, of at most so many bytes. */
  async read(file: string, limit: Bytes): Promise<string> {
    try {
      await using handle = await open(await this.checkPlace(file), constants.O_RDONLY | constants.O_NONBLOCK)
      const info = await handle.stat()
      if (!info.isFile() || info.size > limit)
        throw this.refuse(file, `it is no file of ${limit} bytes at most`)
      this.#checkOwner(file, info)
      const buffer = Buffer.alloc(limit)
      const { bytesRead } = await handle.read(buffer, 0, limit, 0)
      return buffer.toString("utf8", 0, bytesRead)
    } catch (cause) {
      if (cause instanceof KeyError) throw cause
      const { code, message } = cause as NodeJS.ErrnoException
      throw this.refuse(file, code === "ENOENT" ? "there is no such file" : message, cause)
    }
  }
}
