// Objects of images that are made, added and changed by hand: what `sifcrypt sif` offers.
import * as is from "../arguments.ts"
import { open } from "node:fs/promises"
import { SifError } from "../errors.ts"
import {
  DataType,
  partitionExtra,
  PartitionType,
  sbomExtra,
  signatureExtra,
  type PartitionFacts,
  type SifPartition,
} from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import { PARTITION_ALIGNMENT, SifLayout, writeFully, type NewObject } from "../sif/write.ts"
import {
  changeObject,
  changeSif,
  objectChangeRows,
  objectRows,
  checkPrimary,
  checkSignatures,
  type ObjectChangeOptions,
} from "./image-change.ts"
import { Output } from "./output.ts"

const PIECE = 1 << 20

/** What belongs into an object that a file becomes. What it is of a kind stands in place of `extra`. */
export interface NewFileObject extends NewObject {
  readonly partition?: PartitionFacts | undefined
  /** The hash's number, and the signer's fingerprint. */
  readonly signature?: { readonly hash: number; readonly entity: Buffer } | undefined
  /** The format's number. */
  readonly sbomFormat?: number | undefined
}

/** How {@link addFile} adds. */
export interface AddFileOptions extends ObjectChangeOptions {
  /** Its data lies at a multiple of this; default 4096 for a partition. */
  readonly alignment?: number | undefined
}

const checkFileObject = is.shape<NewFileObject>({
  ...objectRows,
  partition: is.shape<PartitionFacts>({
    fileSystem: is.required(is.count),
    type: is.required(is.count),
    arch: is.required(is.text),
  }),
  signature: is.shape<NonNullable<NewFileObject["signature"]>>({
    hash: is.required(is.count),
    entity: is.required(is.buffer),
  }),
  sbomFormat: is.count,
})
const checkAddFile = is.shape<AddFileOptions>({ ...objectChangeRows, alignment: is.count })

/** With the extra area of its kind. */
export function withExtra({ partition, signature, sbomFormat, ...object }: NewFileObject): NewObject {
  if (partition !== undefined) return { ...object, extra: partitionExtra(partition) }
  if (signature !== undefined) return { ...object, extra: signatureExtra(signature.hash, signature.entity) }
  return sbomFormat === undefined ? object : { ...object, extra: sbomExtra(sbomFormat) }
}

/**
 * Makes an image without any object.
 *
 * @throws BuildError `ERR_BUILD_EXISTS`, `ERR_BUILD_OUTPUT`.
 */
export async function createSif(path: string): Promise<void> {
  is.path(path, "path")
  await using output = await Output.create(path, false)
  await output.write(new SifLayout(Math.floor(Date.now() / 1000)).serialize("00"), 0)
  await output.publish(false)
}

/**
 * Appends a file as an object to a finished image, in place: a reader sees the image before or after.
 *
 * @returns The new object's ID.
 * @throws As {@link addObject}; system errors of the file.
 */
export async function addFile(
  path: string,
  given: NewFileObject,
  source: string,
  asked: AddFileOptions = {},
): Promise<number> {
  is.path(path, "path")
  is.path(source, "source")
  const options = checkAddFile(asked, "options")
  return await appendFile(path, withExtra(checkFileObject(given, "object")), source, options)
}

/**
 * The same of what is checked already.
 *
 * @param check - Looks at the image when nobody else changes it.
 */
export async function appendFile(
  path: string,
  object: NewObject,
  source: string,
  options: AddFileOptions,
  check: (image: SifImage) => void = () => undefined,
): Promise<number> {
  const { alignment } = options
  const from = await open(source, "r")
  try {
    const info = await from.stat()
    if (!info.isFile()) throw SifError.at(source, "ERR_SIF_NO_OBJECT", "not a regular file")
    const { size } = info
    return await changeSif(
      path,
      async (change, file) => {
        check(change.image)
        checkPrimary(change.image, object)
        checkSignatures(change.image, [{ group: object.group ?? 0 }], options)
        const data = {
          size,
          alignment: Math.max(1, alignment ?? (object.type === DataType.partition ? PARTITION_ALIGNMENT : 1)),
          write: async (position: number): Promise<Buffer> => {
            const buffer = Buffer.alloc(PIECE)
            for (let done = 0; done < size;) {
              options.signal?.throwIfAborted()
              const { bytesRead } = await from.read(buffer, 0, Math.min(PIECE, size - done), done)
              if (bytesRead === 0) throw SifError.at(source, "ERR_SIF_TRUNCATED", "it became shorter")
              await writeFully(file, buffer.subarray(0, bytesRead), position + done)
              done += bytesRead
            }
            return object.extra ?? Buffer.alloc(0)
          },
        }
        const [slot = 0] = await change.append([{ ...object, data }])
        await change.switchOn([slot])
        return slot + 1
      },
      options,
    )
  } finally {
    await from.close()
  }
}

/**
 * Makes a system partition the primary one, in place; what was that before becomes a system partition.
 *
 * @throws SifError `ERR_SIF_NO_OBJECT`: there is none, or it is no system partition; `ERR_SIF_SIGNED`, `ERR_SIF_BUSY`, or what
 * {@link openSif} finds.
 */
export async function setPrimary(path: string, id: number, asked: ObjectChangeOptions = {}): Promise<void> {
  await changeObject(path, id, asked, async (change, object, options) => {
    const { partition } = object
    if (partition?.type === PartitionType.primarySystem) return
    if (partition?.type !== PartitionType.system)
      throw SifError.at(path, "ERR_SIF_NO_OBJECT", `object ${id} is no system partition`)
    const former = change.image.objects.filter((one) => one.partition?.type === PartitionType.primarySystem)
    checkSignatures(change.image, [object, ...former], options)
    await change.setPrimary(object as SifPartition)
  })
}
