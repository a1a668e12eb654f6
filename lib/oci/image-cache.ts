// Images that were built of what a name stands for, as SIF files named by the digest of that. Plain ones are of what everybody
// gets; of what took a credential, or was encrypted, there are encrypted ones only.
import { constants } from "node:fs"
import {
  link,
  lstat,
  mkdir,
  open,
  readdir,
  realpath,
  stat,
  unlink,
  utimes,
  type FileHandle,
} from "node:fs/promises"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { loadAddon } from "../native/load.ts"
import { isHeld } from "../native/private-folder.ts"
import type { Bytes } from "../units.ts"
import type { Digest } from "./digest.ts"

const POLL_MS = 100
const LOCK = ".lock"
const suffixes = { false: "", true: ".encrypted", layers: ".layers" } as const
/** Counted up when something else is built of the same image. */
const FORMAT = "images-1"
/** Of all together: those that were not used for longest go. */
export const MAX_CACHED_IMAGES: Bytes = 64 * 2 ** 30

const algorithms = ["sha256", "sha512"]

/** Which of the images that are made of one digest. */
export interface ImageVariant {
  /** `layers`: for whoever can decrypt what it was built of. */
  readonly encrypted: boolean | "layers"
  /** The digest is that of an index, and this the architecture that was chosen. */
  readonly architecture?: string
}

/** An image in the cache, or what a build that was killed has left of one. */
export interface CachedImage {
  readonly file: string
  readonly digest: string
  readonly size: Bytes
  /** Milliseconds since 1970. */
  readonly lastUsed: number
  readonly inode: number
  readonly isPartial: boolean
  /** Without what only says that it is not whole. */
  readonly name: string
}

/** Nothing checks an image that is found here but whose it is: nobody else may put one here. */
async function isOurs(folder: string): Promise<boolean> {
  const info = await lstat(folder)
  return info.isDirectory() && info.uid === process.geteuid?.() && (info.mode & 0o022) === 0
}

export class ImageCache {
  readonly folder: string

  /** @param folder - That of the cache. */
  constructor(folder: string) {
    this.folder = path.join(folder, FORMAT)
  }

  /** The same for images to be found and made; undefined: others may write where it would be. */
  static async open(folder: string): Promise<ImageCache | undefined> {
    await mkdir(folder, { recursive: true, mode: 0o700 })
    if (!(await isHeld(folder))) return undefined
    // By the name that no link is in: links on the way could be changed.
    const base = await realpath(folder)
    const cache = new ImageCache(base)
    for (const place of [base, cache.folder, ...algorithms.map((name) => path.join(cache.folder, name))]) {
      // Not in a folder that is somebody else's, who could not write there then.
      if (place !== base) await mkdir(place, { recursive: true, mode: 0o700 })
      if (!(await isOurs(place))) return undefined
    }
    return cache
  }

  #path({ algorithm, hex }: Digest, { encrypted, architecture }: ImageVariant): string {
    const name = architecture === undefined ? hex : `${hex}-${architecture}`
    return path.join(this.folder, algorithm, name + suffixes[String(encrypted) as keyof typeof suffixes])
  }

  /** undefined: it is not there. */
  async find(digest: Digest, variant: ImageVariant): Promise<string | undefined> {
    const name = this.#path(digest, variant)
    const info = await lstat(name).catch(() => undefined)
    if (info?.isFile() !== true) return undefined
    const now = new Date()
    await utimes(name, now, now).catch(() => undefined)
    return name
  }

  /**
   * Has an image made: by one process at a time; the others wait, and find it.
   *
   * @param build - Makes the file, whole or not at all; one that is there is to be replaced.
   * @param anew - One that is there will not do.
   */
  async make(
    digest: Digest,
    variant: ImageVariant,
    build: (target: string) => Promise<void>,
    { anew = false, signal }: { readonly anew?: boolean; readonly signal?: AbortSignal | undefined } = {},
  ): Promise<string> {
    const name = this.#path(digest, variant)
    const lock = await this.#lock(name + LOCK, signal)
    try {
      const found = anew ? undefined : await this.find(digest, variant)
      if (found !== undefined) return found
      await build(name)
    } finally {
      await unlink(name + LOCK).catch(() => undefined)
      await lock.close()
    }
    // The image is there, whatever keeps the cache from being looked through: the next one tries again.
    await this.#shrink(name).catch(() => undefined)
    return name
  }

  async #lock(name: string, signal: AbortSignal | undefined): Promise<FileHandle> {
    for (;;) {
      signal?.throwIfAborted()
      const lock = await this.#tryLock(name)
      if (lock !== undefined) return lock
      await sleep(POLL_MS)
    }
  }

  /** undefined: somebody else has it. */
  async #tryLock(name: string): Promise<FileHandle | undefined> {
    const file = await open(name, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o600)
    // Whoever had it may have removed it meanwhile.
    const isHeld =
      (await loadAddon().lockFile(file.fd)) &&
      (await stat(name).catch(() => undefined))?.ino === (await file.stat()).ino
    if (isHeld) return file
    await file.close()
    return undefined
  }

  /** Has an image found by the digest of the index that it was chosen from, too. */
  async alias(digest: Digest, index: Digest, variant: Required<ImageVariant>): Promise<void> {
    const name = this.#path(index, variant)
    await unlink(name).catch(() => undefined)
    // Another process may do the same.
    await link(this.#path(digest, { encrypted: variant.encrypted }), name).catch(() => undefined)
  }

  async list(): Promise<CachedImage[]> {
    const found: CachedImage[] = []
    for (const algorithm of algorithms) {
      const folder = path.join(this.folder, algorithm)
      for (const entry of (await namesIn(folder)).sort()) {
        // As outputs are named where the file system has none without a name, or by what they are made of.
        const [, partial, whole] = /^(?:\.(.*)\.[0-9a-f]{24}|([^.].*))$/.exec(entry) ?? []
        const name = partial ?? whole ?? ""
        const hex = /^([0-9a-f]{64,128})(?:-[a-z0-9]+)?(?:\.encrypted|\.layers)?$/.exec(name)?.[1]
        const file = path.join(folder, entry)
        const info = hex === undefined ? undefined : await lstat(file).catch(() => undefined)
        if (hex === undefined || info?.isFile() !== true) continue
        const { size, mtimeMs: lastUsed, ino: inode } = info
        const isPartial = partial !== undefined
        const place = path.join(folder, name)
        found.push({ file, name: place, digest: `${algorithm}:${hex}`, size, lastUsed, inode, isPartial })
      }
    }
    return found
  }

  /** Removes one; not what somebody is just building. Was it removed? */
  async remove({ file, name, isPartial }: CachedImage): Promise<boolean> {
    const lock = isPartial ? await this.#tryLock(name + LOCK) : undefined
    if (isPartial && lock === undefined) return false
    try {
      await unlink(file)
      return true
    } finally {
      if (lock !== undefined) await unlink(name + LOCK).catch(() => undefined)
      await lock?.close()
    }
  }

  /** Removes the locks of builds that were killed. */
  async removeLocks(): Promise<void> {
    for (const algorithm of algorithms) {
      const folder = path.join(this.folder, algorithm)
      for (const entry of await namesIn(folder)) {
        if (!entry.endsWith(LOCK)) continue
        const name = path.join(folder, entry)
        const lock = await this.#tryLock(name).catch(() => undefined)
        if (lock === undefined) continue
        await unlink(name).catch(() => undefined)
        await lock.close()
      }
    }
  }

  async #shrink(newest: string): Promise<void> {
    const images = (await this.list()).sort((a, b) => b.lastUsed - a.lastUsed)
    const counted = new Set<number>()
    let left = MAX_CACHED_IMAGES
    for (const image of images) {
      if (!counted.has(image.inode)) left -= image.size
      counted.add(image.inode)
      if (left < 0 && image.file !== newest) await this.remove(image).catch(() => undefined)
    }
  }
}

/** What a folder of a cache holds; nothing, if it was not made yet. */
export async function namesIn(folder: string): Promise<string[]> {
  try {
    return await readdir(folder)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return []
    throw error
  }
}

/**
 * The cache of images as somebody uses it who can do without.
 *
 * @returns `keeps`: is something kept of what is fetched? `cache`: and of what is built?
 */
export async function openImageCache(
  folder: string,
  onNotice?: (text: string) => void,
): Promise<{ readonly keeps: boolean; readonly cache: ImageCache | undefined }> {
  try {
    const cache = await ImageCache.open(folder)
    if (cache === undefined)
      onNotice?.(`${folder} is not yours alone to write: images that are built are not kept there`)
    return { keeps: true, cache }
  } catch (error) {
    onNotice?.(`nothing is kept: ${(error as Error).message}`)
    return { keeps: false, cache: undefined }
  }
}
