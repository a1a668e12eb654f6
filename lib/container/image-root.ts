// What an IMAGE argument is, decided here and nowhere else: a SIF, a squashfs file, one behind a launch line (`.simg`), or a
// folder (a sandbox). What is behind a name such as docker:// is a SIF by then (lib/make/named-image.ts).
import { constants } from "node:fs"
import { open, realpath, stat } from "node:fs/promises"
import * as is from "../arguments.ts"
import { FolderTree } from "../device/folder-tree.ts"
import { Tree, type ReadableTree } from "../device/tree.ts"
import { SignatureError } from "../errors.ts"
import { partitionKind, refusePlain, type PartitionKind } from "../encryption/partition.ts"
import { plainRange, type Unlocked } from "../encryption/encryption-format.ts"
import type { StarterSource } from "../runtime/starter-protocol.ts"
import type { SifObject, SifPartition, Verity } from "../sif/format.ts"
import { architectureName } from "../sif/names.ts"
import { openFile, openReader, type SifImage } from "../sif/open.ts"
import type { Bytes } from "../units.ts"
import type { Described } from "./image-service.ts"
import type { OriginOptions } from "./origin.ts"

/** What the root file system of an image is: that of a partition of a SIF or a squashfs file, or a folder. */
export type ImageKind = PartitionKind | "sandbox"

/** Where the root file system of an opened image is. */
export interface ImageRoot extends AsyncDisposable {
  /** As it was named. */
  readonly path: string
  readonly kind: ImageKind
  /** Valid until it is disposed. */
  readonly fd: number
  /** Where in the file it is; of a folder nothing. */
  readonly offset: Bytes
  readonly size: Bytes
  readonly verity?: Verity | undefined
  /** As Go names it; undefined: nobody says. */
  readonly architecture?: string | undefined
  /** Where the folder is, links resolved. */
  readonly folder?: string | undefined
  /** Of a SIF: what may say how it is to be run. */
  readonly described?: Described | undefined
}

/** A root file system that is no SIF's: nobody signs it, nothing is encrypted. */
export type BareRoot = ImageRoot & { readonly kind: "squashfs" | "sandbox"; readonly what: string }

// open(2); Node has no name for it
const O_PATH = 0o10000000
const SQUASHFS_MAGIC = Buffer.from("hsqs", "latin1")
const SIF_MAGIC = "SIF_MAGIC"
/** SIF: behind the launch script. */
const SIF_MAGIC_OFFSET: Bytes = 32
const MAX_LAUNCH_LINE: Bytes = 256

/** Where in a file a squashfs starts: at once, or behind the line that launches it; undefined: it is none. */
export function squashfsOffset(head: Buffer): Bytes | undefined {
  const isAt = (offset: Bytes): boolean =>
    head.subarray(offset, offset + SQUASHFS_MAGIC.length).equals(SQUASHFS_MAGIC)
  if (isAt(0)) return 0
  if (head.toString("latin1", SIF_MAGIC_OFFSET, SIF_MAGIC_OFFSET + SIF_MAGIC.length) === SIF_MAGIC)
    return undefined
  const end = head.subarray(0, MAX_LAUNCH_LINE).indexOf("\n") + 1
  const isLaunched = /^#!.* run-singularity\n$/.test(head.toString("latin1", 0, end))
  return isLaunched && isAt(end) ? end : undefined
}

async function openFolder(path: string): Promise<BareRoot> {
  const folder = await realpath(path)
  const handle = await open(folder, O_PATH | constants.O_DIRECTORY | constants.O_NOFOLLOW)
  return {
    path,
    kind: "sandbox",
    what: "a folder",
    fd: handle.fd,
    offset: 0,
    size: 0,
    folder,
    [Symbol.asyncDispose]: () => handle.close(),
  }
}

/**
 * Opens what a path names: a folder, a file that holds a squashfs, or a SIF.
 *
 * @throws SifError, as whatever is neither a folder nor holds a squashfs has to be a SIF; a system error.
 */
export async function openImagePath(path: string): Promise<BareRoot | SifImage> {
  is.path(path, "image")
  const info = await stat(path).catch(() => undefined)
  if (info?.isDirectory() === true) return await openFolder(path)
  const file = await openFile(path, path, info)
  const offset = squashfsOffset(file.head)
  if (offset === undefined) return await openReader(file, path)
  return {
    path,
    kind: "squashfs",
    what: "a squashfs file",
    fd: file.fd,
    offset,
    size: file.size - offset,
    [Symbol.asyncDispose]: () => file[Symbol.asyncDispose](),
  }
}

/** @throws SifError `ERR_SIF_PLAIN`, SignatureError `ERR_SIGNATURE_MISSING` where encryption or a signature is demanded. */
export function checkBareOrigin(
  { path, what }: BareRoot,
  { verify, requireEncrypted = false }: OriginOptions,
): void {
  if (requireEncrypted) refusePlain(path, what)
  if (verify !== undefined)
    throw new SignatureError(
      "ERR_SIGNATURE_MISSING",
      `${path} is ${what}, which nobody signs: it cannot be verified`,
      { path },
    )
}

/**
 * That of a partition. Disposing it closes the SIF.
 *
 * @param path - What to call it.
 */
export function rootOf(
  sif: SifImage,
  partition: SifPartition,
  path: string,
  counts: (object: SifObject) => boolean,
): ImageRoot {
  const { offset, size, verity } = partition
  return {
    path,
    kind: partitionKind(partition),
    get fd(): number {
      return sif.fd
    },
    offset,
    size,
    verity,
    architecture: architectureName(partition.partition.arch),
    described: { sif, root: partition, counts },
    [Symbol.asyncDispose]: () => sif[Symbol.asyncDispose](),
  }
}

/** What is inside, for reading. */
export async function openRootTree(root: ImageRoot, unlocked: Unlocked | undefined): Promise<ReadableTree> {
  return root.folder === undefined
    ? await Tree.open(plainRange(root, root, unlocked), root.path)
    : new FolderTree(root.fd, root.path)
}

/** As the starter takes it. */
export function starterSource(root: ImageRoot, unlocked: Unlocked | undefined): StarterSource {
  const { path, fd, offset, size, verity, folder } = root
  return { image: path, fd, offset, size, verity, unlocked, folder }
}
