// What the caller puts over an image: directories, squashfs and ext images, encrypted ones of `overlay create --encrypt`.
import { fstatSync, type Stats } from "node:fs"
import { open, stat, type FileHandle } from "node:fs/promises"
import path from "node:path"
import type { LuksPolicy } from "../device/luks-header.ts"
import { EnvironmentError, RunError } from "../errors.ts"
import type { ConcreteEngine, StarterLayer, StarterSource } from "../runtime/starter-protocol.ts"
import { PartitionType, type SifPartition } from "../sif/format.ts"
import { openSif, type SifImage } from "../sif/open.ts"
import type { CredentialOptions } from "./credentials.ts"
import { partitionKind } from "./partition.ts"
import { unlockPartition, wipeUnlocked, type Unlocked } from "./unlock.ts"

/** `PATH` or `PATH:ro`. */
export interface OverlayRequest {
  readonly path: string
  readonly readOnly: boolean
}

/** How {@link openOverlays} opens. */
export interface OverlayOptions {
  readonly credentials: CredentialOptions
  readonly policy: LuksPolicy
  /** What is written over it must be encrypted, too. */
  readonly encryptedImage: boolean
  /** … unless the caller has said that it may be plain. */
  readonly allowPlain: boolean
  readonly signal?: AbortSignal | undefined
}

/** Parses what `--overlay` takes. */
export function parseOverlay(text: string): OverlayRequest {
  const [, file = "", option] = /^(.*?)(?::(ro|rw))?$/s.exec(text) ?? []
  if (file === "") throw new RunError("ERR_RUN_OVERLAY", `overlay ${JSON.stringify(text)}: no path`)
  return { path: file, readOnly: option === "ro" }
}

type Found =
  | { readonly kind: "directory"; readonly path: string; readonly writable: boolean }
  | {
      readonly kind: "squashfs" | "ext" | "encrypted"
      readonly path: string
      readonly writable: boolean
      readonly source: StarterSource
      /** Of root, and writable by nobody else. */
      readonly ownedByRoot: boolean
    }

const SQUASHFS_MAGIC = Buffer.from("hsqs", "latin1")
const LUKS_MAGIC = Buffer.from("LUKS\xba\xbe", "latin1")
const EXT_MAGIC_OFFSET = 1024 + 56 // fs/ext4/ext4.h: s_magic of the superblock
const EXT_MAGIC = 0xef53
const SIF_MAGIC_OFFSET = 32 // SIF: behind the launch script
const HEAD_SIZE = 2048

/** What is open on the way; closed in reverse. */
class Resources implements AsyncDisposable {
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

/** An overlay that is written is locked and held open by the starter: until then by this. */
export class OpenedOverlays implements AsyncDisposable {
  readonly #found: readonly Found[]
  readonly #resources: Resources

  /** @internal Use {@link openOverlays}. */
  constructor(found: readonly Found[], resources: Resources) {
    this.#found = found
    this.#resources = resources
  }

  /** Is something kept of what is written into the root? */
  get writable(): boolean {
    return this.#found.some(({ writable }) => writable)
  }

  /** The folders among them: none of what is in them may hold the session. */
  get directories(): string[] {
    return this.#found.flatMap((found) => (found.kind === "directory" ? [found.path] : []))
  }

  /**
   * As an engine takes them, lowest first.
   *
   * @throws EnvironmentError, RunError `ERR_RUN_OVERLAY`: this engine cannot have it.
   */
  layers(engine: ConcreteEngine): StarterLayer[] {
    return this.#found.map((found): StarterLayer => {
      if (found.kind === "directory") return found
      const { kind, path: file, writable, source, ownedByRoot } = found
      if (kind === "squashfs") return { kind, engine, writable, source }
      if (kind === "encrypted" && engine !== "kernel")
        throw new EnvironmentError(
          "ERR_ENV_NO_PRIVILEGE",
          `${file}: an encrypted overlay is written by the kernel's dm-crypt, which needs root; ` +
            "an ordinary user's changes can be encrypted nowhere but in memory (--writable-tmpfs)",
          { path: file },
        )
      // The driver of a kernel is no match for a hostile file system.
      if (kind === "ext" && engine === "kernel" && !ownedByRoot)
        throw new RunError(
          "ERR_RUN_OVERLAY",
          `${file}: the kernel engine mounts an ext image only if it belongs to root and nobody else can write it; ` +
            "the userspace engine takes it",
          { path: file },
        )
      return { kind: "ext", engine, writable, source }
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#resources[Symbol.asyncDispose]()
  }
}

function plainError(file: string): RunError {
  return new RunError(
    "ERR_RUN_PLAIN_OVERLAY",
    `${file}: what the payload writes would be kept there in the clear, and the image is encrypted`,
    { path: file },
  )
}

function isSameFile(a: Stats, b: Stats): boolean {
  return a.dev === b.dev && a.ino === b.ino
}

async function headOf(file: FileHandle): Promise<Buffer> {
  const head = Buffer.alloc(HEAD_SIZE)
  const { bytesRead } = await file.read(head, 0, head.length, 0)
  return head.subarray(0, bytesRead)
}

function overlayPartition(sif: SifImage): SifPartition {
  const found = sif.objects.find(
    (object): object is SifPartition =>
      object.partition?.type === PartitionType.overlay && partitionKind(object as SifPartition) === "luks",
  )
  if (found === undefined)
    throw new RunError("ERR_RUN_OVERLAY", `${sif.path}: there is no encrypted overlay in this image`, {
      path: sif.path,
    })
  return found
}

async function openEncrypted(
  request: OverlayRequest,
  file: FileHandle,
  options: OverlayOptions,
  resources: Resources,
): Promise<{ readonly source: StarterSource }> {
  const sif = resources.use(await openSif(request.path))
  // What was read is what is written.
  if (!isSameFile(fstatSync(sif.fd), await file.stat()))
    throw new RunError("ERR_RUN_OVERLAY", `overlay ${request.path}: it was replaced meanwhile`, {
      path: request.path,
    })
  const partition = overlayPartition(sif)
  const { credentials, policy, signal } = options
  const unlocked: Unlocked = await unlockPartition(sif, partition, credentials, policy, signal)
  resources.defer(() => {
    wipeUnlocked(unlocked)
  })
  const { offset, size } = partition
  return { source: { image: request.path, fd: file.fd, offset, size, unlocked } }
}

async function find(request: OverlayRequest, options: OverlayOptions, resources: Resources): Promise<Found> {
  const file = path.resolve(request.path)
  const refuse = (why: string): never => {
    throw new RunError("ERR_RUN_OVERLAY", `overlay ${request.path}: ${why}`, { path: request.path })
  }
  let writable = !request.readOnly
  const info = await stat(file).catch((cause: unknown) => {
    throw new RunError("ERR_RUN_OVERLAY", `overlay ${request.path}: there is no such file or folder`, {
      path: request.path,
      cause,
    })
  })
  const mustBeEncrypted = options.encryptedImage && !options.allowPlain
  if (info.isDirectory()) {
    if (writable && mustBeEncrypted) throw plainError(request.path)
    return { kind: "directory", path: file, writable }
  }
  if (!info.isFile()) refuse("it is neither a folder nor a file")
  const opened = await open(file, writable ? "r+" : "r").catch(async (cause: unknown) => {
    // A squashfs is read-only whatever was asked for.
    const { code } = cause as NodeJS.ErrnoException
    if (writable && (code === "EACCES" || code === "EROFS" || code === "EPERM")) return await open(file, "r")
    throw cause
  })
  resources.use(opened)
  const head = await headOf(opened)
  const { uid, mode, size } = await opened.stat()
  const common = { path: file, ownedByRoot: uid === 0 && (mode & 0o022) === 0 }
  const whole: StarterSource = { image: request.path, fd: opened.fd, offset: 0, size, unlocked: undefined }
  if (head.subarray(0, 4).equals(SQUASHFS_MAGIC)) {
    writable = false
    return { ...common, kind: "squashfs", writable, source: whole }
  }
  if (head.length > EXT_MAGIC_OFFSET + 2 && head.readUInt16LE(EXT_MAGIC_OFFSET) === EXT_MAGIC) {
    if (writable && mustBeEncrypted) throw plainError(request.path)
    return { ...common, kind: "ext", writable, source: whole }
  }
  if (head.toString("latin1", SIF_MAGIC_OFFSET, SIF_MAGIC_OFFSET + 9) === "SIF_MAGIC") {
    const { source } = await openEncrypted(request, opened, options, resources)
    return { ...common, kind: "encrypted", writable, source }
  }
  if (head.subarray(0, LUKS_MAGIC.length).equals(LUKS_MAGIC))
    refuse("it is a bare LUKS device; `sifcrypt overlay create --encrypt` makes an encrypted overlay")
  return refuse("it is no directory, squashfs, ext3 or ext4 file system, nor an encrypted overlay")
}

/**
 * Opens what is to lie over an image, in the order it was named: the last one on top.
 *
 * @throws RunError `ERR_RUN_OVERLAY`, `ERR_RUN_PLAIN_OVERLAY`; what {@link unlockPartition} throws.
 */
export async function openOverlays(
  texts: readonly string[],
  options: OverlayOptions,
): Promise<OpenedOverlays> {
  const resources = new Resources()
  try {
    const found: Found[] = []
    for (const text of texts) found.push(await find(parseOverlay(text), options, resources))
    const writable = found.filter((one) => one.writable)
    if (writable.length > 1)
      throw new RunError(
        "ERR_RUN_OVERLAY",
        `only one overlay can be written, not ${writable.map((one) => one.path).join(" and ")}`,
      )
    return new OpenedOverlays(found, resources)
  } catch (error) {
    await resources[Symbol.asyncDispose]()
    throw error
  }
}
