// Images beside the one that is run, as the starter takes them: squashfs, ext, or what is in a SIF.
import { fstatSync } from "node:fs"
import { open, type FileHandle } from "node:fs/promises"
import { lockOpenFile } from "../native/lock.ts"
import type { LuksPolicy } from "../device/luks-header.ts"
import { EnvironmentError, RunError } from "../errors.ts"
import type { ConcreteEngine, StarterLayer, StarterSource } from "../runtime/starter-protocol.ts"
import type { SifPartition } from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import type { Credentials } from "../encryption/credentials.ts"
import { chooseEngine, fillsSectors, type OwnEngine } from "../runtime/engine.ts"
import type { Bytes } from "../units.ts"
import { unlockPartition } from "../encryption/unlock.ts"
import { squashfsOffset } from "./image-root.ts"

/** How such images are opened. */
export interface SourceOptions {
  readonly credentials: Credentials
  readonly policy: LuksPolicy
  readonly signal?: AbortSignal | undefined
  /** Told of what is left out. */
  readonly onNotice?: ((text: string) => void) | undefined
}

/** A file system in a file. */
export interface SourceImage {
  /** `encrypted`: an ext file system inside LUKS2. */
  readonly kind: "squashfs" | "ext" | "encrypted"
  readonly path: string
  readonly writable: boolean
  readonly source: StarterSource
  /** Whoever runs this could have made it: a file of root's that nobody else can write, and no part of an image. */
  readonly isTrusted: boolean
  /** Of one that is locked: {@link lockSource}. */
  readonly lockFd?: number | undefined
}

const LUKS_MAGIC = Buffer.from("LUKS\xba\xbe", "latin1")
const EXT_MAGIC_OFFSET = 1024 + 56 // fs/ext4/ext4.h: s_magic of the superblock
const EXT_MAGIC = 0xef53
const SIF_MAGIC_OFFSET = 32 // SIF: behind the launch script
const HEAD_SIZE = 2048

/** What a file holds, by its first bytes, and from where on. */
export async function formatOf(
  file: FileHandle,
): Promise<{ readonly format: "squashfs" | "ext" | "sif" | "luks" | undefined; readonly offset: Bytes }> {
  const buffer = Buffer.alloc(HEAD_SIZE)
  const { bytesRead } = await file.read(buffer, 0, buffer.length, 0)
  const head = buffer.subarray(0, bytesRead)
  const offset = squashfsOffset(head)
  if (offset !== undefined) return { format: "squashfs", offset }
  const isExt = head.length > EXT_MAGIC_OFFSET + 2 && head.readUInt16LE(EXT_MAGIC_OFFSET) === EXT_MAGIC
  if (isExt) return { format: "ext", offset: 0 }
  const isSif = head.toString("latin1", SIF_MAGIC_OFFSET, SIF_MAGIC_OFFSET + 9) === "SIF_MAGIC"
  if (isSif) return { format: "sif", offset: 0 }
  const isLuks = head.subarray(0, LUKS_MAGIC.length).equals(LUKS_MAGIC)
  return { format: isLuks ? "luks" : undefined, offset: 0 }
}

/** Opens a file for writing, or for reading where that is all there is. */
export async function openFile(file: string, writable: boolean): Promise<FileHandle> {
  return await open(file, writable ? "r+" : "r").catch(async (cause: unknown) => {
    const { code } = cause as NodeJS.ErrnoException
    if (writable && (code === "EACCES" || code === "EROFS" || code === "EPERM")) return await open(file, "r")
    throw cause
  })
}

/** The container before may still be letting go of it. */
const PATIENCE_MS = 2000

/**
 * Locks the file of an ext file system until all who hold it have closed it: one that is written is used by one container.
 *
 * @throws RunError `busy`; `refused`: it cannot be written.
 */
export async function lockSource(
  found: SourceImage,
  busy: RunError["code"],
  refused: RunError["code"],
  { signal }: SourceOptions,
  resources: Resources,
): Promise<SourceImage> {
  const { kind, path, writable, source } = found
  if (kind === "squashfs") return found
  const lock = await lockOpenFile(source.fd, writable, PATIENCE_MS, signal).catch((cause: unknown) => {
    if ((cause as NodeJS.ErrnoException).code !== "EBADF") throw cause
    throw RunError.at(path, refused, "it cannot be opened for writing", { cause })
  })
  if (lock === undefined) throw RunError.at(path, busy, "another container uses it")
  return { ...found, lockFd: resources.use(lock).fd }
}

/** Is the open file the very one that the other opening of its path gave? */
export async function isSameFile(sif: { readonly fd: number }, file: FileHandle): Promise<boolean> {
  const { dev, ino } = fstatSync(sif.fd)
  const other = await file.stat()
  return dev === other.dev && ino === other.ino
}

export async function isOwnedByRoot(file: FileHandle): Promise<boolean> {
  const { uid, mode } = await file.stat()
  return uid === 0 && (mode & 0o022) === 0
}

/** What is open on the way; closed in reverse. */
export class Resources implements AsyncDisposable {
  readonly #undo: (() => Promise<void>)[] = []
  use<T extends AsyncDisposable>(resource: T): T {
    this.#undo.push(async () => {
      await resource[Symbol.asyncDispose]()
    })
    return resource
  }
  defer(undo: () => void): void {
    this.#undo.push(() => {
      undo()
      return Promise.resolve()
    })
  }
  async [Symbol.asyncDispose](): Promise<void> {
    for (let undo = this.#undo.pop(); undo !== undefined; undo = this.#undo.pop()) await undo()
  }
}

/** Unlocks a partition for as long as `resources` are held. */
export async function unlockedSource(
  sif: SifImage,
  partition: SifPartition,
  fd: number,
  options: SourceOptions,
  resources: Resources,
): Promise<StarterSource> {
  const { credentials, policy, signal } = options
  const unlocked = await unlockPartition(sif, partition, credentials, policy, signal)
  resources.defer(() => {
    unlocked.dataKey.wipe()
  })
  const { offset, size } = partition
  return { image: sif.path, fd, offset, size, unlocked }
}

/**
 * As an engine takes it.
 *
 * @param beside - What takes it where that is not the kernel.
 * @throws EnvironmentError, RunError `ERR_RUN_OVERLAY`: this engine cannot have it.
 */
export function layerOf(found: SourceImage, engine: ConcreteEngine, beside: OwnEngine): StarterLayer {
  const { kind, path: file, writable, source, isTrusted, lockFd } = found
  if (kind === "squashfs") {
    const { unlocked } = source
    const byKernel =
      engine === "kernel" &&
      fillsSectors(source) &&
      (unlocked === undefined || unlocked.dmCrypt !== undefined)
    return {
      kind,
      engine: byKernel ? engine : chooseEngine(beside, unlocked, file),
      writable,
      source,
    }
  }
  if (kind === "encrypted" && engine !== "kernel")
    throw new EnvironmentError(
      "ERR_ENV_NO_PRIVILEGE",
      `${file}: an encrypted overlay is written by the kernel's dm-crypt, which needs root; ` +
        "an ordinary user's changes can be encrypted nowhere but in memory (--writable-tmpfs)",
      { path: file },
    )
  // The driver of a kernel is no match for a hostile file system.
  if (kind === "ext" && engine === "kernel" && !isTrusted)
    throw new RunError(
      "ERR_RUN_OVERLAY",
      `${file}: the kernel engine mounts an ext file system only if it is a file of its own, which belongs to root and nobody ` +
        "else can write; the userspace engine takes it",
      { path: file },
    )
  return { kind: "ext", engine: engine === "kernel" ? engine : "userspace", writable, source, lockFd }
}
