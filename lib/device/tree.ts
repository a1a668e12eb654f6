// The squashfs inside an image, read through the addon, its errno in this package's words.
import { constants } from "node:os"
import { BuildError, TreeError } from "../errors.ts"
import type { NativeFolder, NativeRange, NativeStat, NativeTree, NativeTreeEntry } from "../native/binding.ts"
import { loadAddon } from "../native/load.ts"
import { nameBytes } from "../printable.ts"
import type { Bytes } from "../units.ts"
import { changedBlock } from "./verity.ts"

/** What an extraction did. */
export interface ExtractResult {
  /** Files, folders, links and others written. */
  readonly entries: number
  readonly bytes: Bytes
}

function errnoOf(cause: unknown): number {
  return cause instanceof Error && "errno" in cause && typeof cause.errno === "number" ? -cause.errno : 0
}

/** Did the encryption of the tree find it changed? */
function isForged(cause: unknown): boolean {
  return errnoOf(cause) === constants.errno.EIO && syscallOf(cause) === "gocryptfs_read"
}

function syscallOf(cause: unknown): string {
  return cause instanceof Error && "syscall" in cause ? String(cause.syscall) : ""
}

const { errno } = constants
/** What is wrong with a path inside. */
const wrongPath: Readonly<Record<number, readonly [code: TreeError["code"], what: string]>> = {
  [errno.ENOENT]: ["ERR_TREE_NOT_FOUND", "there is no such file"],
  [errno.ENOTDIR]: ["ERR_TREE_TYPE", "not a folder"],
  [errno.EISDIR]: ["ERR_TREE_TYPE", "a folder"],
  [errno.EINVAL]: ["ERR_TREE_TYPE", "not of the right type"],
  [errno.ELOOP]: ["ERR_TREE_TYPE", "too many symbolic links"],
}

/** Our error for an errno of reading what is inside. */
export function treeError(image: string, path: string, cause: unknown): unknown {
  const changed = changedBlock(image, cause)
  if (changed !== undefined) return changed
  const number = errnoOf(cause)
  const wrong = wrongPath[number]
  if (wrong !== undefined) return TreeError.at(image, wrong[0], `${path}: ${wrong[1]}`, { cause })
  const detail = cause instanceof Error ? cause.message : String(cause)
  if (isForged(cause))
    return TreeError.at(image, "ERR_TREE_FORMAT", `the encrypted data was changed: ${detail}`, { cause })
  if (number === errno.EBADMSG || number === errno.EOVERFLOW)
    return TreeError.at(image, "ERR_TREE_FORMAT", `the file system inside is malformed: ${detail}`, { cause })
  return number === errno.ENOTSUP ? TreeError.at(image, "ERR_TREE_UNSUPPORTED", detail, { cause }) : cause
}

/** What is extracted, as the addon takes it but for its path. */
export type ExtractRequest = Omit<Parameters<NativeTree["extract"]>[0], "path"> & { readonly path: string }

/** Is there nothing by that name? */
export function isAbsent(error: unknown): boolean {
  return error instanceof TreeError && (error.code === "ERR_TREE_NOT_FOUND" || error.code === "ERR_TREE_TYPE")
}

/** A root file system that can be read: in a squashfs, or in a folder. Paths are as `nameText` has them. */
export interface ReadableTree extends Disposable {
  /** Links inside lead to where they would if the tree were the root. */
  stat(path: string, follow: boolean): Promise<NativeStat>
  /** undefined when there is nothing by that name. */
  find(path: string, follow: boolean): Promise<NativeStat | undefined>
  list(path: string): Promise<NativeTreeEntry[]>
  /** The folders at and below `path`, each before what is in it; `path` of each from there. */
  walk(path: string): AsyncGenerator<NativeFolder, void, undefined>
  /** At most `length` bytes of a file; fewer only at its end. */
  read(path: string, position: Bytes, length: Bytes): Promise<Buffer>
  /** @throws TreeError of the image; BuildError `ERR_EXTRACT` of the target. */
  extract(options: ExtractRequest, onProgress: (bytes: Bytes) => boolean): Promise<ExtractResult>
  close(): void
}

/** A squashfs opened for reading; forgets its key when disposed. */
export class Tree implements ReadableTree {
  readonly #native: NativeTree
  readonly #image: string

  private constructor(native: NativeTree, image: string) {
    this.#native = native
    this.#image = image
  }

  /**
   * @param image - What to call it in messages.
   * @throws TreeError `ERR_TREE_FORMAT`, `ERR_TREE_UNSUPPORTED`.
   */
  static async open(range: NativeRange, image: string): Promise<Tree> {
    try {
      return new Tree(await loadAddon().openTree(range), image)
    } catch (cause) {
      throw treeError(image, "/", cause)
    }
  }

  async #call<T>(path: string, operation: Promise<T>): Promise<T> {
    try {
      return await operation
    } catch (cause) {
      throw treeError(this.#image, path, cause)
    }
  }

  stat(path: string, follow: boolean): Promise<NativeStat> {
    return this.#call(path, this.#native.stat(nameBytes(path), follow))
  }
  async find(path: string, follow: boolean): Promise<NativeStat | undefined> {
    try {
      return await this.stat(path, follow)
    } catch (error) {
      if (isAbsent(error)) return undefined
      throw error
    }
  }
  list(path: string): Promise<NativeTreeEntry[]> {
    return this.#call(path, this.#native.list(nameBytes(path)))
  }
  async *walk(path: string): AsyncGenerator<NativeFolder, void, undefined> {
    const next = this.#native.walk(nameBytes(path))
    for (;;) {
      const folder = await this.#call(path, next())
      if (folder === undefined) return
      yield folder
    }
  }
  read(path: string, position: Bytes, length: Bytes): Promise<Buffer> {
    return this.#call(path, this.#native.read(nameBytes(path), position, length))
  }

  /** Where in the range a file's content lies, if all of it is stored as it is and in one piece. */
  storedAt(path: string): Promise<Bytes | undefined> {
    return this.#call(path, this.#native.storedAt(nameBytes(path)))
  }

  /** What the squashfs lies in, decrypted. */
  get plainSize(): Bytes {
    return this.#native.plainSize
  }
  /** Where the squashfs ends, by its own account, padded to 4096. */
  get squashfsSize(): Bytes {
    return this.#native.squashfsSize
  }
  /** At most `length` (16 MiB) of the plaintext, also behind the squashfs; shorter only at its end. */
  readPlain(position: Bytes, length: Bytes): Promise<Buffer> {
    return this.#call("/", this.#native.readPlain(position, length))
  }

  async extract(options: ExtractRequest, onProgress: (bytes: Bytes) => boolean): Promise<ExtractResult> {
    try {
      return await this.#native.extract({ ...options, path: nameBytes(options.path) }, onProgress)
    } catch (cause) {
      const { errno } = constants
      const ours: readonly number[] = [errno.EBADMSG, errno.EOVERFLOW, errno.ENOTSUP]
      // Whether ENOENT is about the image or about the target, its syscall tells.
      const inside =
        syscallOf(cause).startsWith("squashfs") || isForged(cause) || syscallOf(cause) === "verity_read"
      if (ours.includes(errnoOf(cause)) || inside) throw treeError(this.#image, options.path, cause)
      if (errnoOf(cause) === 0) throw cause
      const { target } = options
      throw new BuildError("ERR_EXTRACT", `cannot extract into ${target}: ${(cause as Error).message}`, {
        path: target,
        cause,
      })
    }
  }

  close(): void {
    this.#native.close()
  }
  [Symbol.dispose](): void {
    this.close()
  }
}
