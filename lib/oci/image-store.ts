// The images that a user keeps: a layout, which whoever changes or reads it holds meanwhile. What no image needs any more goes when
// nobody holds it: after an image was removed, or when the next one leaves, so that of a process that was killed nothing stays.
import { constants, existsSync } from "node:fs"
import { mkdir, open, readdir, rm, stat } from "node:fs/promises"
import path from "node:path"
import { madeOf } from "../disposal.ts"
import { BuildError, OciError } from "../errors.ts"
import { lockOpenFile } from "../native/lock.ts"
import type { Bytes } from "../units.ts"
import { MAX_NESTING, readDocument } from "./image.ts"
import { LayoutSink, type RemovedImage } from "./layout-sink.ts"
import { findImage, openImages, openLayout, type FoundImage, type OpenImages } from "./layout.ts"
import { isImageType, parseDocument, type Descriptor } from "./manifest.ts"
import type { LocalReference, Selection } from "./reference.ts"
import type { BlobStore } from "./store.ts"
import { TEMPORARY } from "./temporary-file.ts"

/** Who is here has it locked. A layout takes no notice of it, and it is never replaced. */
const HOLDERS = `${TEMPORARY}holders`

/** Blobs by their digests, and whatever else was written and got no other name. */
const FOLDERS = ["blobs/sha256", "blobs/sha512"]

async function lockHolders(
  folder: string,
  exclusive: boolean,
  patienceMs: number,
  signal?: AbortSignal,
): Promise<AsyncDisposable | undefined> {
  const flags = constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW
  const file = await open(path.join(folder, HOLDERS), flags, 0o600)
  return await madeOf(file, async () => {
    const lock = await lockOpenFile(file.fd, exclusive, patienceMs, signal)
    return (
      lock && {
        async [Symbol.asyncDispose](): Promise<void> {
          await file.close()
          await lock[Symbol.asyncDispose]()
        },
      }
    )
  })
}

/** Has anything ever been kept there? */
export function isStore(folder: string): boolean {
  return existsSync(path.join(folder, "index.json"))
}

/** Opens the store to add images, or makes it; it is nobody else's to read. */
export async function openStoreSink(folder: string, signal?: AbortSignal): Promise<LayoutSink> {
  let held: AsyncDisposable | undefined
  try {
    await mkdir(folder, { recursive: true, mode: 0o700 })
    const { uid, mode } = await stat(folder)
    if (uid !== process.geteuid?.()) throw new Error("it belongs to somebody else")
    // It may be a folder that is there for something else: nobody's mode is changed.
    if ((mode & 0o077) !== 0) throw new Error("others may enter it; chmod 700 leaves it to you")
    held = await lockHolders(folder, false, Infinity, signal)
  } catch (cause) {
    signal?.throwIfAborted()
    const why = (cause as Error).message
    throw new BuildError("ERR_BUILD_OUTPUT", `cannot write ${folder}: ${why}`, { path: folder, cause })
  }
  const leave = {
    async [Symbol.asyncDispose](): Promise<void> {
      await held?.[Symbol.asyncDispose]()
      await collect(folder)
    },
  }
  return await madeOf(leave, () => LayoutSink.open(folder, signal, leave))
}

/** Where nothing can be written nobody removes anything. */
async function holdToRead(folder: string, signal?: AbortSignal): Promise<AsyncDisposable | undefined> {
  const held = await lockHolders(folder, false, Infinity, signal).catch(() => undefined)
  signal?.throwIfAborted()
  return held
}

/**
 * Finds an image in the store; it stays there while it is open.
 *
 * @throws OciError `ERR_OCI_NOT_FOUND`, as {@link findImage}.
 */
export async function findStored(
  reference: LocalReference,
  limit: Bytes,
  signal?: AbortSignal,
): Promise<FoundImage> {
  const folder = reference.path
  if (!isStore(folder)) throw OciError.at(folder, "ERR_OCI_NOT_FOUND", "no images are kept there")
  return await findImage(reference, limit, await holdToRead(folder, signal))
}

/** Opens all images of the store; they stay there while they are open. */
export async function openStored(folder: string, signal?: AbortSignal): Promise<OpenImages> {
  if (!isStore(folder)) return { images: [], [Symbol.asyncDispose]: () => Promise.resolve() }
  return await openImages({ transport: "store", path: folder }, 0, await holdToRead(folder, signal))
}

/**
 * Takes images out of the store, and what no other one needs.
 *
 * @throws OciError `ERR_OCI_NOT_FOUND`; BuildError `ERR_BUILD_OUTPUT`.
 */
export async function removeStored(
  folder: string,
  selection: Selection,
  signal?: AbortSignal,
): Promise<RemovedImage[]> {
  const wanted = selection.digest?.text ?? selection.name ?? ""
  const missing = (): OciError => OciError.at(folder, "ERR_OCI_NOT_FOUND", `${wanted} is not there`)
  if (!isStore(folder)) throw missing()
  await using sink = await openStoreSink(folder, signal)
  const removed = await sink.remove(({ name, digest }) =>
    selection.digest === undefined ? name === selection.name : digest === selection.digest.text,
  )
  if (removed.length === 0) throw missing()
  return removed
}

/** All digests that images lead to. */
async function reachable(store: BlobStore, entries: readonly Descriptor[]): Promise<Set<string>> {
  const found = new Set<string>()
  // What one image calls a layer may be another one's manifest: to be kept is not to have been read.
  const visited = new Set<string>()
  const visit = async (descriptor: Descriptor, depth: number): Promise<void> => {
    const { digest, mediaType } = descriptor
    found.add(digest.text)
    const key = `${mediaType} ${digest.text}`
    if (!isImageType(mediaType) || visited.has(key) || depth > MAX_NESTING + 1) return
    visited.add(key)
    const what = `${store.name}: ${digest.text}`
    const document = parseDocument(await readDocument(store, descriptor, what), mediaType, what)
    if (document.kind === "index") for (const one of document.manifests) await visit(one, depth + 1)
    else for (const { digest: blob } of [document.config, ...document.layers]) found.add(blob.text)
  }
  for (const entry of entries) await visit(entry, 0)
  return found
}

/** Removes what no image leads to, unless somebody is here. */
async function collect(folder: string): Promise<void> {
  const alone = await lockHolders(folder, true, 0).catch(() => undefined)
  if (alone === undefined) return
  try {
    await using layout = await openLayout(folder)
    const kept = await reachable(layout.store, layout.manifests)
    for (const place of FOLDERS) {
      const algorithm = path.basename(place)
      for (const name of await readdir(path.join(folder, place)).catch(() => []))
        if (!kept.has(`${algorithm}:${name}`)) await rm(path.join(folder, place, name), { force: true })
    }
    for (const name of await readdir(folder))
      if (name.startsWith(TEMPORARY) && name !== HOLDERS) await rm(path.join(folder, name), { force: true })
  } catch (error) {
    // What is damaged leads nobody knows where: everything stays until it is removed.
    if (!(error instanceof OciError) && (error as NodeJS.ErrnoException).syscall === undefined) throw error
  } finally {
    await alone[Symbol.asyncDispose]()
  }
}
