// What an image is built from: a folder, a squashfs file, or the root file system of another image.
import { open, stat, type FileHandle } from "node:fs/promises"
import type { Credentials } from "../encryption/credentials.ts"
import type { OpenOptions } from "../container/image.ts"
import { squashfsOffset } from "../container/image-root.ts"
import { layerKeyring } from "../encryption/layer-keyring.ts"
import { vouch, type OriginOptions } from "../container/origin.ts"
import { partitionKind, refusePlain } from "../encryption/partition.ts"
import { plaintextOf, readFooter, readSealed } from "../encryption/sealed.ts"
import { plainRange, type Opening } from "../encryption/encryption-format.ts"
import { openPartition } from "../encryption/unlock.ts"
import { Tree } from "../device/tree.ts"
import { changedBlock } from "../device/verity.ts"
import { madeOf } from "../disposal.ts"
import { BuildError } from "../errors.ts"
import type { Vouched } from "../file/vouched.ts"
import type { NativeBuild } from "../native/binding.ts"
import type { SifPartition } from "../sif/format.ts"
import { openSif, type SifImage } from "../sif/open.ts"
import { readHead } from "../sif/source.ts"
import type { VerifyOptions } from "../signing/verify.ts"
import type { Bytes } from "../units.ts"
import { isOrasName, parseReference } from "../oci/reference.ts"
import type { LayerOptions } from "./layer-options.ts"
import type { AddedEntry, MetadataObject } from "./metadata-files.ts"
import { openOciSource } from "./oci-source.ts"
import { RemoteSif } from "./remote-sif.ts"

/** A source that was opened; disposing it closes files and forgets keys. */
export interface BuildSource extends AsyncDisposable {
  /** As it was named. */
  readonly path: string
  readonly tree: NativeBuild["source"]
  /** Where it is an image. */
  readonly image?: SourceImage
  /** Written into the tree besides what it has; not where the tree is a squashfs, which is copied as it is. */
  readonly added?: readonly AddedEntry[]
  /** SIF objects about the tree that the output gets: inside the encryption, or before the partition. */
  readonly objects?: readonly MetadataObject[]
  /** Go's name; default: this machine's. */
  readonly architecture?: string
  /** Owners are kept unless something else is asked for, whoever builds. */
  readonly ownersAreReal?: boolean
  /** Writes the tree where another process has it; default: the addon does, in this one. */
  readonly write?: (
    build: Omit<NativeBuild, "source">,
    onProgress: (bytes: Bytes, total: Bytes | undefined) => boolean,
  ) => Promise<TreeWritten>
  /** What a failure of the native side means here; undefined: nothing special. */
  explain?(cause: unknown): Error | undefined
}

/** What was written of a tree. */
export interface TreeWritten {
  readonly size: Bytes
  readonly inputBytes: Bytes
  readonly entries: number
  /** Extended attributes of layers that a squashfs cannot hold. */
  readonly skippedXattrs?: number
}

/** An image that another one is made of. */
export interface SourceImage {
  readonly sif: SifImage
  readonly primary: SifPartition
  /** Of its root file system, as it is or was before it was encrypted. */
  readonly length: Bytes
  /** How it was opened, where it is encrypted. */
  readonly opening: Opening | undefined
  /** What was kept inside the encryption. */
  readonly sealed: SifImage | undefined
  /** Where that begins in the plaintext of the root file system's partition. */
  readonly sealedAt: Bytes
  /** With which it was opened. */
  readonly verify: VerifyOptions | undefined
  /** Asked when all of it was read, or it is mounted; undefined: nothing is demanded. */
  readonly vouched: Vouched | undefined
}

async function openSquashfs(path: string, file: FileHandle, offset: Bytes): Promise<BuildSource> {
  const size = (await file.stat()).size - offset
  return {
    path,
    tree: { squashfs: { fd: file.fd, offset, size, cipher: undefined } },
    [Symbol.asyncDispose]: () => file.close(),
  }
}

/** How long the partition was before it was encrypted, and what lies behind it. */
async function plainParts(
  sif: SifImage,
  primary: SifPartition,
  opening: Opening,
): Promise<Pick<SourceImage, "length" | "sealed" | "sealedAt">> {
  using tree = await Tree.open(plainRange(sif, primary, opening.unlocked), sif.path)
  const plaintext = plaintextOf(tree)
  const footer = await readFooter(plaintext, sif.path)
  return {
    length: footer?.length ?? tree.plainSize,
    sealed: await readSealed(plaintext, footer, sif.path),
    sealedAt: footer?.sealed?.offset ?? 0,
  }
}

function forget(opening: Opening | undefined): void {
  opening?.secret.wipe()
  opening?.unlocked.dataKey.wipe()
}

/** How far an image is trusted. */
export type SourceOptions = OriginOptions &
  Pick<OpenOptions, "kdfLimits" | "onDerivation"> & {
    /** It is not copied but mounted: whoever decides what may run is asked. */
    readonly isMounted?: boolean
  }

/**
 * Opens an image to make another one of it.
 *
 * @param credentials - undefined: it has to be plain.
 * @throws BuildError `ERR_BUILD_SOURCE`; SifError, KeyError, LuksError, TreeError.
 */
export async function openImageSource(
  path: string,
  credentials: Credentials | undefined,
  options: SourceOptions = {},
): Promise<BuildSource & { readonly image: SourceImage }> {
  return await imageSource(await openSif(path), path, credentials, options)
}

async function imageSource(
  sif: SifImage,
  path: string,
  credentials: Credentials | undefined,
  options: SourceOptions,
): Promise<BuildSource & { readonly image: SourceImage }> {
  let opening: Opening | undefined
  try {
    const runs = options.isMounted === true
    const { partition: primary, vouched } = await vouch(sif, sif.primary(), options, runs)
    const kind = partitionKind(primary)
    if (kind === "other")
      throw BuildError.at(
        path,
        "ERR_BUILD_SOURCE",
        "its root file system is of a kind that cannot be read here",
      )
    if (kind !== "squashfs") {
      if (credentials === undefined)
        throw new BuildError("ERR_BUILD_SOURCE", `${path} is encrypted already`, { path })
      const { kdfLimits: limits, onDerivation, signal } = options
      opening = await openPartition(sif, primary, credentials, { limits, onDerivation }, signal)
    }
    const parts =
      opening === undefined
        ? { length: primary.size, sealed: undefined, sealedAt: 0 }
        : await plainParts(sif, primary, opening)
    return {
      path,
      tree: { squashfs: plainRange(sif, primary, opening?.unlocked), length: parts.length },
      image: { sif, primary, opening, ...parts, verify: options.verify, vouched },
      explain: (cause) => changedBlock(path, cause),
      async [Symbol.asyncDispose](): Promise<void> {
        forget(opening)
        await sif[Symbol.asyncDispose]()
      },
    }
  } catch (error) {
    forget(opening)
    await sif[Symbol.asyncDispose]()
    throw error
  }
}

/** How a source is found, and how far it is trusted. */
export interface FindOptions
  extends LayerOptions, Pick<SourceOptions, "verify" | "requireEncrypted" | "kdfLimits" | "onDerivation"> {
  /** The credentials are this source's, and not only what there is: then an OCI image has to be encrypted. */
  readonly isNamed?: boolean | undefined
}

/** Of something plain that is made of what only a key opens, whoever makes it is told. */
export function tellOfPlain(
  { path, tree }: BuildSource,
  output: string,
  onNotice: ((text: string) => void) | undefined,
): void {
  const isEncrypted =
    "squashfs" in tree
      ? tree.squashfs.cipher !== undefined
      : "layers" in tree && tree.layers.some(({ blob }) => blob.counter !== undefined)
  if (isEncrypted)
    onNotice?.(
      `${path} is encrypted, and what ${output} has of it lies there in clear: an image that is built for a key or a passphrase ` +
        "(--pem-path, --passphrase) keeps it encrypted",
    )
}

/** A SIF at a registry. What was fetched of it is open, and nothing else is left of it, unless it is kept. */
async function openRemoteSource(
  name: string,
  credentials: Credentials,
  options: FindOptions,
): Promise<BuildSource> {
  await using remote = await RemoteSif.find(name, options)
  return await imageSource(await remote.open(name), name, credentials, options)
}

/**
 * Opens a source and finds out what it is.
 *
 * @throws OciError of an OCI image; BuildError `ERR_BUILD_SOURCE`; SifError, KeyError, LuksError, TreeError of an image;
 * SignatureError with `verify`.
 */
export async function openSource(
  path: string,
  credentials: Credentials,
  options: FindOptions = {},
): Promise<BuildSource> {
  const { verify, requireEncrypted, kdfLimits, onDerivation, signal } = options
  /** It has neither a signature nor a key. */
  const checkBare = (what: string): void => {
    if (requireEncrypted === true) refusePlain(path, what)
    unsigned(what)
  }
  const unsigned = (what: string): void => {
    if (verify !== undefined)
      throw new BuildError(
        "ERR_BUILD_SOURCE",
        `${path} is ${what}, which nobody signs: it cannot be verified`,
        {
          path,
        },
      )
  }
  // A path that looks like a name has ./ before it: nobody who may write into a folder decides what a name means there.
  if (isOrasName(path)) return await openRemoteSource(path, credentials, options)
  const reference = parseReference(path)
  if (reference !== undefined) {
    unsigned("an OCI image")
    const layerKeys = layerKeyring(credentials, { isNamed: options.isNamed === true, signal })
    return await openOciSource(reference, options, layerKeys)
  }
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
  if (info.isDirectory()) {
    checkBare("a folder")
    return {
      path,
      tree: { directory: path, added: [] },
      async [Symbol.asyncDispose](): Promise<void> {
        // A folder is opened by the native side.
      },
    }
  }
  if (!info.isFile())
    throw new BuildError("ERR_BUILD_SOURCE", `the source ${path} is neither a folder nor a file`, { path })
  const file = await open(path, "r")
  const squashfs = await madeOf(file, async () => {
    const offset = squashfsOffset(await readHead(file))
    if (offset === undefined) return undefined
    checkBare("a squashfs")
    return await openSquashfs(path, file, offset)
  })
  const asked = { verify, requireEncrypted, kdfLimits, onDerivation, signal }
  return squashfs ?? (await openImageSource(path, credentials, asked))
}
