// What an image is built from: a folder, a squashfs file, or the root file system of another image.
import { open, stat, type FileHandle } from "node:fs/promises"
import type { CredentialOptions } from "../container/credentials.ts"
import { partitionKind } from "../container/partition.ts"
import { plainRange, unlockPartition, wipeUnlocked } from "../container/unlock.ts"
import { BuildError } from "../errors.ts"
import type { NativeRange } from "../native/binding.ts"
import { DataType, type SifObject } from "../sif/format.ts"
import { openSif } from "../sif/open.ts"

/** A source that was opened; disposing it closes files and forgets keys. */
export interface BuildSource extends AsyncDisposable {
  readonly tree: { readonly directory: string } | { readonly squashfs: NativeRange }
  /** Two digits, where the source says. */
  readonly architecture: string | undefined
  /** Objects beside the partition that say something about it. */
  readonly metadata: readonly SifObject[]
  /** The data of one of them. */
  read(object: SifObject): Promise<Buffer>
}

/** Definition files, labels and so on are small; larger objects are not metadata. */
const MAX_METADATA_SIZE = 16 << 20
const metadataTypes: readonly number[] = [
  DataType.definition,
  DataType.environment,
  DataType.labels,
  DataType.json,
  DataType.sbom,
]

const noMetadata = {
  metadata: [],
  read: (): Promise<Buffer> => Promise.reject(new Error("there is no metadata")),
} as const

const SQUASHFS_MAGIC = Buffer.from("hsqs", "latin1")

async function startsWith(file: FileHandle, magic: Buffer): Promise<boolean> {
  const start = Buffer.alloc(magic.length)
  await file.read(start, 0, start.length, 0)
  return start.equals(magic)
}

async function openSquashfs(path: string, file: FileHandle): Promise<BuildSource> {
  return {
    tree: { squashfs: { fd: file.fd, offset: 0, size: (await file.stat()).size, cipher: undefined } },
    architecture: undefined,
    ...noMetadata,
    [Symbol.asyncDispose]: () => file.close(),
  }
}

async function openImage(path: string, credentials: CredentialOptions): Promise<BuildSource> {
  const image = await openSif(path)
  try {
    const primary = image.primary()
    const kind = partitionKind(primary)
    if (kind === "other")
      throw new BuildError(
        "ERR_BUILD_SOURCE",
        `${path}: its root file system is of a kind that cannot be read here`,
        { path },
      )
    const unlocked = kind !== "squashfs" ? await unlockPartition(image, primary, credentials, {}) : undefined
    return {
      architecture: primary.partition.arch,
      metadata: image.objects.filter(({ type }) => metadataTypes.includes(type)),
      read: (object) => image.data(object, MAX_METADATA_SIZE),
      tree: { squashfs: plainRange(image, primary, unlocked) },
      async [Symbol.asyncDispose](): Promise<void> {
        wipeUnlocked(unlocked)
        await image[Symbol.asyncDispose]()
      },
    }
  } catch (error) {
    await image[Symbol.asyncDispose]()
    throw error
  }
}

/**
 * Opens a source and finds out what it is.
 *
 * @throws BuildError `ERR_BUILD_SOURCE`; SifError, KeyError, LuksError, GocryptfsError of an image.
 */
export async function openSource(path: string, credentials: CredentialOptions): Promise<BuildSource> {
  let info
  try {
    info = await stat(path)
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException
    throw new BuildError(
      "ERR_BUILD_SOURCE",
      `cannot read the source ${path}: ${code === "ENOENT" ? "there is no such file" : message}`,
      { path, cause },
    )
  }
  if (info.isDirectory())
    return {
      tree: { directory: path },
      architecture: undefined,
      ...noMetadata,
      async [Symbol.asyncDispose](): Promise<void> {
        // A folder is opened by the native side.
      },
    }
  if (!info.isFile())
    throw new BuildError("ERR_BUILD_SOURCE", `the source ${path} is neither a folder nor a file`, { path })
  const file = await open(path, "r")
  try {
    if (await startsWith(file, SQUASHFS_MAGIC)) return await openSquashfs(path, file)
  } catch (error) {
    await file.close()
    throw error
  }
  await file.close()
  return await openImage(path, credentials)
}
