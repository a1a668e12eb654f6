// Blobs that anybody may read, kept as they came and named by their digests. What takes a credential to get is never among them. Images
// that were built of them are in the same folder (image-cache.ts).
import * as is from "../arguments.ts"
import { constants } from "node:fs"
import { mkdir, open, rename, stat, unlink, utimes, type FileHandle } from "node:fs/promises"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { madeOf } from "../disposal.ts"
import { OciError } from "../errors.ts"
import { loadAddon } from "../native/load.ts"
import type { Bytes } from "../units.ts"
import { contentFits, parseDigest, type Digest } from "./digest.ts"
import { ImageCache, namesIn, type CachedImage } from "./image-cache.ts"

/** A blob in the cache, or an image. */
export interface CachedBlob {
  /** `image`: a SIF, built of what has this digest. */
  readonly kind: "blob" | "image"
  /** `sha256:…` */
  readonly digest: string
  readonly size: Bytes
  /** Seconds since 1970. */
  readonly lastUsed: number
  /** Not whole yet: somebody is fetching or building it, or was interrupted. */
  readonly isPartial: boolean
}

const POLL_MS = 100
const PARTIAL = ".partial"
/** Of what takes a credential to get. */
const PRIVATE = ".private"

/** Where the cache is, by the environment. */
export function cacheFolder(environment: Readonly<Record<string, string | undefined>> = process.env): string {
  const own = environment["SIFCRYPT_CACHEDIR"]
  if (own !== undefined && own !== "") return own
  for (const name of ["APPTAINER_CACHEDIR", "SINGULARITY_CACHEDIR"]) {
    const folder = environment[name]
    if (folder !== undefined && folder !== "") return path.join(folder, "sifcrypt")
  }
  const home = environment["HOME"] ?? "/"
  return path.join(environment["XDG_CACHE_HOME"] ?? path.join(home, ".cache"), "sifcrypt", "cache")
}

/** A folder of blobs. */
export class Cache {
  readonly folder: string

  constructor(folder: string) {
    this.folder = folder
  }

  /** Where a blob is when it is there. */
  pathOf({ algorithm, hex }: Digest): string {
    return path.join(this.folder, "blobs", algorithm, hex)
  }

  /** undefined: it is not there. What is there and is something else is removed. */
  async find(digest: Digest, size: Bytes): Promise<FileHandle | undefined> {
    const name = this.pathOf(digest)
    let file: FileHandle
    try {
      file = await open(name, "r")
    } catch {
      return undefined
    }
    if (!(await contentFits(file, digest, size))) {
      await file.close()
      await unlink(name).catch(() => undefined)
      return undefined
    }
    const now = new Date()
    await utimes(name, now, now).catch(() => undefined)
    return file
  }

  /**
   * Makes a blob: one process at a time; the others wait and find it. `fill` gets a file of what an earlier try left.
   * The blob has its name when it is complete and checked.
   */
  async make(
    digest: Digest,
    size: Bytes,
    fill: (file: FileHandle) => Promise<void>,
    signal?: AbortSignal,
  ): Promise<FileHandle> {
    const name = this.pathOf(digest)
    await mkdir(path.dirname(name), { recursive: true, mode: 0o700 })
    for (;;) {
      signal?.throwIfAborted()
      const found = await this.find(digest, size)
      if (found !== undefined) return found
      const file = await openPartial(`${name}${PARTIAL}`)
      if (file === undefined) {
        await sleep(POLL_MS)
        continue
      }
      try {
        await fill(file)
        await rename(`${name}${PARTIAL}`, name)
        return file
      } catch (error) {
        await file.close().catch(() => undefined)
        throw error
      }
    }
  }

  /**
   * Uses a file of the caller's alone, one process at a time, with what an earlier use has left that failed or was ended. It goes
   * when it was used.
   *
   * @returns false: there is no place for one that is nobody else's.
   */
  async usePrivate(
    digest: Digest,
    use: (file: FileHandle) => Promise<void>,
    signal?: AbortSignal,
  ): Promise<boolean> {
    const name = `${this.pathOf(digest)}${PRIVATE}${PARTIAL}`
    try {
      await mkdir(path.dirname(name), { recursive: true, mode: 0o700 })
    } catch {
      return false
    }
    for (;;) {
      signal?.throwIfAborted()
      const file = await openPartial(name).catch(() => "none" as const)
      if (file === "none") return false
      if (file === undefined) {
        await sleep(POLL_MS)
        continue
      }
      try {
        const { uid, mode, nlink } = await file.stat()
        if (uid !== process.geteuid?.() || (mode & 0o077) !== 0 || nlink !== 1) return false
        await use(file)
        await unlink(name)
        return true
      } finally {
        await file.close()
      }
    }
  }
}

/** A file that is being filled, for whoever opens it first; undefined: somebody else has it, or had it. */
async function openPartial(name: string): Promise<FileHandle | undefined> {
  const file = await open(name, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o600)
  return await madeOf(file, async () => {
    const isHeld = await loadAddon().lockFile(file.fd)
    // Whoever had the lock may have given the file its name.
    const still = isHeld ? await stat(name).catch(() => undefined) : undefined
    return still?.ino === (await file.stat()).ino ? file : undefined
  })
}

/** With its file; an image also as its cache has it. */
type CachedFile = CachedBlob & { readonly file: string; readonly image?: CachedImage }

/**
 * What is in the cache.
 *
 * @param folder - Default: by the environment.
 */
export async function listCache(folder: string = cacheFolder()): Promise<CachedBlob[]> {
  is.path(folder, "folder")
  return (await cachedFiles(folder)).map(shown)
}

function shown({ kind, digest, size, lastUsed, isPartial }: CachedFile): CachedBlob {
  return { kind, digest, size, lastUsed, isPartial }
}

async function cachedFiles(folder: string): Promise<CachedFile[]> {
  const blobs: CachedFile[] = []
  for (const algorithm of ["sha256", "sha512"]) {
    const place = path.join(folder, "blobs", algorithm)
    const names = await namesIn(place)
    for (const name of names.sort()) {
      const isPartial = name.endsWith(PARTIAL)
      const hex = isPartial ? name.slice(0, -PARTIAL.length).replace(PRIVATE, "") : name
      try {
        const { text } = parseDigest(`${algorithm}:${hex}`, place)
        const file = path.join(place, name)
        const info = await stat(file)
        const lastUsed = Math.floor(info.mtimeMs / 1000)
        blobs.push({ kind: "blob", digest: text, size: info.size, lastUsed, isPartial, file })
      } catch (error) {
        if (!(error instanceof OciError) && (error as NodeJS.ErrnoException).code !== "ENOENT") throw error
      }
    }
  }
  const images = (await new ImageCache(folder).list()).map((image): CachedFile => {
    const { file, digest, size, lastUsed, isPartial } = image
    return { kind: "image", digest, size, lastUsed: Math.floor(lastUsed / 1000), isPartial, file, image }
  })
  return [...blobs, ...images]
}

/** What {@link cleanCache} removes. */
export interface CleanCacheOptions {
  /** Default: by the environment. */
  readonly folder?: string | undefined
  /** Only what was not used for so long. */
  readonly olderThanDays?: number | undefined
  /** Remove nothing, only tell. */
  readonly dryRun?: boolean | undefined
  /** Default: both. */
  readonly kinds?: readonly CachedBlob["kind"][] | undefined
}

const checkClean = is.shape<CleanCacheOptions>({
  folder: is.path,
  olderThanDays: is.number(0),
  dryRun: is.flag,
  kinds: is.list(is.oneOf("blob", "image")),
})

/** A file that somebody is filling stays. Was it removed? */
async function removePartial(name: string): Promise<boolean> {
  const file = await open(name, constants.O_RDWR | constants.O_NOFOLLOW)
  try {
    if (!(await loadAddon().lockFile(file.fd))) return false
    await unlink(name)
    return true
  } finally {
    await file.close()
  }
}

/** Empties the cache. Returns what was removed; what is being read meanwhile stays readable, and what
 * is being fetched stays. */
export async function cleanCache(options: CleanCacheOptions = {}): Promise<CachedBlob[]> {
  const { folder = cacheFolder(), olderThanDays, dryRun = false, kinds } = checkClean(options, "options")
  const before = olderThanDays === undefined ? Infinity : Date.now() / 1000 - olderThanDays * 86_400
  const old = (await cachedFiles(folder)).filter(
    ({ kind, lastUsed }) => lastUsed < before && kinds?.includes(kind) !== false,
  )
  if (dryRun) return old.map(shown)
  const removed: CachedBlob[] = []
  const images = new ImageCache(folder)
  for (const blob of old) {
    try {
      if (blob.image !== undefined) {
        if (!(await images.remove(blob.image))) continue
      } else if (!blob.isPartial) await unlink(blob.file)
      else if (!(await removePartial(blob.file))) continue
      removed.push(shown(blob))
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error
    }
  }
  if (kinds?.includes("image") !== false) await images.removeLocks()
  return removed
}
