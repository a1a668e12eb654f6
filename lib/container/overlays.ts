// What the caller puts over an image: directories, squashfs and ext images, encrypted ones of `overlay create --encrypt`.
import { open, stat, type FileHandle } from "node:fs/promises"
import path from "node:path"
import { madeOf } from "../disposal.ts"
import { RunError } from "../errors.ts"
import type { OwnEngine } from "../runtime/engine.ts"
import type { ConcreteEngine, StarterLayer, StarterSource } from "../runtime/starter-protocol.ts"
import { PartitionType, type SifPartition } from "../sif/format.ts"
import { openSif, type SifImage } from "../sif/open.ts"
import { encryptionOf, formats, isPartition, onlyPartition } from "../encryption/partition.ts"
import {
  formatOf,
  isOwnedByRoot,
  isSameFile,
  layerOf,
  lockSource,
  openFile,
  Resources,
  unlockedSource,
  type SourceImage,
  type SourceOptions,
} from "./source-images.ts"

/** `PATH` or `PATH:ro`. */
export interface OverlayRequest {
  readonly path: string
  readonly readOnly: boolean
}

/** How {@link openOverlays} opens. */
export interface OverlayOptions extends SourceOptions {
  /** What is written over it must be encrypted, too. */
  readonly encryptedImage: boolean
  /** … unless the caller has said that it may be plain. */
  readonly allowPlain: boolean
  /** The image's own, which lies below the others. */
  readonly own?: OwnOverlay | undefined
}

/** A partition of the image that is run. */
export interface OwnOverlay {
  readonly image: StarterSource
  readonly partition: SifPartition
  readonly writable: boolean
}

/** Parses what `--overlay` takes. */
export function parseOverlay(text: string): OverlayRequest {
  const [, file = "", option] = /^(.*?)(?::(ro|rw))?$/s.exec(text) ?? []
  if (file === "") throw new RunError("ERR_RUN_OVERLAY", `overlay ${JSON.stringify(text)}: no path`)
  return { path: file, readOnly: option === "ro" }
}

type Found = { readonly kind: "directory"; readonly path: string; readonly writable: boolean } | SourceImage

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
  layers(engine: ConcreteEngine, beside: OwnEngine): StarterLayer[] {
    return this.#found.map((found): StarterLayer =>
      found.kind === "directory" ? found : layerOf(found, engine, beside),
    )
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#resources[Symbol.asyncDispose]()
  }
}

function plainError(file: string): RunError {
  return RunError.at(
    file,
    "ERR_RUN_PLAIN_OVERLAY",
    "what the payload writes would be kept there in the clear, and the image is encrypted",
  )
}

function overlayPartition(sif: SifImage): SifPartition {
  const encrypted = sif.objects
    .filter(isPartition)
    .filter((one) => one.partition.type === PartitionType.overlay && encryptionOf(one) === formats.luks)
  const found = onlyPartition(sif.path, "encrypted overlays", encrypted)
  if (found === undefined)
    throw RunError.at(sif.path, "ERR_RUN_OVERLAY", "there is no encrypted overlay in this image")
  return found
}

async function openEncrypted(
  request: OverlayRequest,
  file: FileHandle,
  options: OverlayOptions,
  resources: Resources,
): Promise<StarterSource> {
  const sif = resources.use(await openSif(request.path))
  // What was read is what is written.
  if (!(await isSameFile(sif, file)))
    throw new RunError("ERR_RUN_OVERLAY", `overlay ${request.path}: it was replaced meanwhile`, {
      path: request.path,
    })
  return await unlockedSource(sif, overlayPartition(sif), file.fd, options, resources)
}

async function find(request: OverlayRequest, options: OverlayOptions, resources: Resources): Promise<Found> {
  const file = path.resolve(request.path)
  const refuse = (why: string): never => {
    throw new RunError("ERR_RUN_OVERLAY", `overlay ${request.path}: ${why}`, { path: request.path })
  }
  const writable = !request.readOnly
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
  const opened = resources.use(await openFile(file, writable))
  const { format, offset } = await formatOf(opened)
  const size = (await opened.stat()).size - offset
  const common = { path: file, isTrusted: await isOwnedByRoot(opened) }
  const whole: StarterSource = { image: request.path, fd: opened.fd, offset, size, unlocked: undefined }
  switch (format) {
    case "squashfs":
      // Read-only whatever was asked for.
      return { ...common, kind: "squashfs", writable: false, source: whole }
    case "ext":
      if (writable && mustBeEncrypted) throw plainError(request.path)
      return { ...common, kind: "ext", writable, source: whole }
    case "sif": {
      const source = await openEncrypted(request, opened, options, resources)
      return { ...common, kind: "encrypted", writable, source }
    }
    case "luks":
      return refuse(
        "it is a bare LUKS device; `sifcrypt overlay create --encrypt` makes an encrypted overlay",
      )
    case undefined:
      return refuse("it is no directory, squashfs, ext3 or ext4 file system, nor an encrypted overlay")
  }
}

async function openOwn(own: OwnOverlay, resources: Resources): Promise<SourceImage> {
  const { image, partition, writable } = own
  const { offset, size } = partition
  const file = resources.use(
    await open(image.image, writable ? "r+" : "r").catch((cause: unknown) => {
      throw RunError.at(image.image, "ERR_RUN_OVERLAY", "it cannot be opened for writing", { cause })
    }),
  )
  if (!(await isSameFile(image, file)))
    throw RunError.at(image.image, "ERR_RUN_OVERLAY", "it was replaced meanwhile")
  const source = { image: image.image, fd: file.fd, offset, size, unlocked: undefined }
  return { kind: "ext", path: image.image, writable, source, isTrusted: false }
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
  return await madeOf(resources, async () => {
    const found: Found[] = options.own === undefined ? [] : [await openOwn(options.own, resources)]
    for (const text of texts) found.push(await find(parseOverlay(text), options, resources))
    const writable = found.filter((one) => one.writable)
    if (writable.length > 1)
      throw new RunError(
        "ERR_RUN_OVERLAY",
        `only one overlay can be written, not ${writable.map((one) => one.path).join(" and ")}`,
      )
    const locked: Found[] = []
    for (const one of found)
      locked.push(
        one.kind === "directory"
          ? one
          : await lockSource(one, "ERR_RUN_OVERLAY_BUSY", "ERR_RUN_OVERLAY", options, resources),
      )
    return new OpenedOverlays(locked, resources)
  })
}
