// Images out of which something is bound: `image-src=` and `id=` of a bind.
import { realpath, stat } from "node:fs/promises"
import { madeOf } from "../disposal.ts"
import { RunError } from "../errors.ts"
import type { Bind, BoundImage, Place } from "../runtime/binds.ts"
import type { OwnEngine } from "../runtime/engine.ts"
import type { ConcreteEngine, StarterLayer } from "../runtime/starter-protocol.ts"
import { FileSystem, PartitionType, type SifPartition } from "../sif/format.ts"
import { openSif, type SifImage } from "../sif/open.ts"
import { encryptionOf, isPartition, onlyPartition } from "../encryption/partition.ts"
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

type ImageBind = Bind & { readonly image: BoundImage }

function refuse(file: string, why: string): never {
  throw new RunError("ERR_RUN_BIND", `bind ${file}: ${why}`, { path: file })
}

/**
 * The partition that is named; else the one for data; else the root. Beside an encrypted root a plain one is nobody's: whoever can
 * write the file could have put it there, and would say what the payload sees of the image.
 */
function choosePartition(
  sif: SifImage,
  id: number | undefined,
  onNotice: SourceOptions["onNotice"],
): SifPartition {
  const partitions = sif.objects.filter(isPartition)
  const root = partitions.find(({ partition }) => partition.type === PartitionType.primarySystem)
  const isLocked = root !== undefined && encryptionOf(root) !== undefined
  const isNobodys = (partition: SifPartition): boolean => isLocked && encryptionOf(partition) === undefined
  const strange = (partition: SifPartition): string =>
    `partition ${partition.id} is not encrypted as the image is, and anybody could have put it there`
  if (id !== undefined) {
    const named = partitions.find((partition) => partition.id === id)
    if (named === undefined) return refuse(sif.path, `there is no partition ${id} in this image`)
    return isNobodys(named) ? refuse(sif.path, strange(named)) : named
  }
  const data = partitions.filter(({ partition }) => partition.type === PartitionType.data)
  for (const partition of data.filter(isNobodys))
    onNotice?.(`bind ${sif.path}: ${strange(partition)}: it is left out`)
  const own = data.filter((partition) => !isNobodys(partition))
  return onlyPartition(sif.path, "for data", own) ?? sif.primary()
}

async function openOne(
  file: string,
  id: number | undefined,
  writable: boolean,
  options: SourceOptions,
  resources: Resources,
): Promise<SourceImage> {
  if (!(await stat(file)).isFile()) refuse(file, "image-src and id are for images, and this is none")
  const opened = resources.use(await openFile(file, writable))
  const common = { path: file, isTrusted: await isOwnedByRoot(opened) }
  const { format, offset } = await formatOf(opened)
  if (id !== undefined && format !== "sif") refuse(file, "id is for SIF images, and this is none")
  const size = (await opened.stat()).size - offset
  const whole = { image: file, fd: opened.fd, offset, size, unlocked: undefined }
  switch (format) {
    case "squashfs":
      return { ...common, kind: "squashfs", writable: false, source: whole }
    case "ext":
      return { ...common, kind: "ext", writable, source: whole }
    case "sif": {
      const sif = resources.use(await openSif(file))
      if (!(await isSameFile(sif, opened))) refuse(file, "it was replaced meanwhile")
      const partition = choosePartition(sif, id, options.onNotice)
      const { offset } = partition
      const part = { ...whole, offset, size: partition.size }
      if (partition.partition.fileSystem === FileSystem.ext3)
        return { ...common, kind: "ext", writable, source: part, isTrusted: false }
      if (partition.partition.fileSystem === FileSystem.squashfs)
        return { ...common, kind: "squashfs", writable: false, source: part }
      if (encryptionOf(partition) === undefined)
        return refuse(file, `partition ${partition.id} holds no squashfs and no ext3 file system`)
      // An encrypted overlay is an ext file system, and another one's to write.
      if (partition.partition.type === PartitionType.overlay)
        refuse(file, `partition ${partition.id} is an overlay`)
      const source = await unlockedSource(sif, partition, opened.fd, options, resources)
      return { ...common, kind: "squashfs", writable: false, source }
    }
    case "luks":
    case undefined:
      return refuse(file, "it is no SIF, squashfs, ext3 or ext4 image")
  }
}

/** Images that are open until the starter has them. */
export class OpenedBindImages implements AsyncDisposable {
  readonly #images: readonly SourceImage[]
  readonly #numbers: ReadonlyMap<Bind, number>
  readonly #resources: Resources

  /** @internal Use {@link openBindImages}. */
  constructor(images: readonly SourceImage[], numbers: ReadonlyMap<Bind, number>, resources: Resources) {
    this.#images = images
    this.#numbers = numbers
    this.#resources = resources
  }

  /** Which of {@link OpenedBindImages.layers} a bind is out of. */
  numberOf(bind: Bind): number | undefined {
    return this.#numbers.get(bind)
  }

  /**
   * As an engine takes them.
   *
   * @throws EnvironmentError, RunError: this engine cannot have one of them.
   */
  layers(engine: ConcreteEngine, beside: OwnEngine): StarterLayer[] {
    return this.#images.map((image) => layerOf(image, engine, beside))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#resources[Symbol.asyncDispose]()
  }
}

/**
 * Opens the images of all binds that are out of one, each once.
 *
 * @throws RunError `ERR_RUN_BIND`; SifError; what unlocking throws.
 */
export async function openBindImages(
  places: readonly Place[],
  options: SourceOptions,
): Promise<OpenedBindImages> {
  const binds = places.filter(
    (place): place is ImageBind => place.source !== undefined && place.image !== undefined,
  )
  const resources = new Resources()
  return await madeOf(resources, async () => {
    const groups = new Map<string, ImageBind[]>()
    for (const bind of binds) {
      const key = `${bind.image.id ?? ""}:${await realpath(bind.source)}`
      groups.set(key, [...(groups.get(key) ?? []), bind])
    }
    const images: SourceImage[] = []
    const numbers = new Map<Bind, number>()
    for (const group of groups.values()) {
      const [{ source, image } = refuse("", "nothing")] = group
      const writable = group.some(({ readOnly }) => !readOnly)
      for (const bind of group) numbers.set(bind, images.length)
      const opened = await openOne(source, image.id, writable, options, resources)
      images.push(await lockSource(opened, "ERR_RUN_BIND", "ERR_RUN_BIND", options, resources))
    }
    return new OpenedBindImages(images, numbers, resources)
  })
}
