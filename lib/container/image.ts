// An opened image: what is inside can be listed, read, extracted, mounted and run.
import * as is from "../arguments.ts"
import { mkdir } from "node:fs/promises"
import path from "node:path"
import { Readable } from "node:stream"
import { kdfLimits, type LuksPolicy } from "../device/luks-header.ts"
import { prepareLuks } from "../device/luks.ts"
import type { ExtractResult, ReadableTree } from "../device/tree.ts"
import { madeOf } from "../disposal.ts"
import { SifError, TreeError } from "../errors.ts"
import type { NativeStat, TreeEntryType } from "../native/binding.ts"
import type { Action } from "../runtime/bundle.ts"
import type { SifObject, SifPartition } from "../sif/format.ts"
import { verifyOptions, type VerifyOptions } from "../signing/verify.ts"
import { SifImage } from "../sif/open.ts"
import type { Bytes, Milliseconds, OnProgress } from "../units.ts"
import { credentialList, type Credentials, type CredentialSource } from "../encryption/credentials.ts"
import { chooseEngine, isReadable, type Startable } from "../runtime/engine.ts"
import { ContentCount } from "./content-count.ts"
import { examineBare, requireAllowed } from "./execution-control.ts"
import {
  checkBareOrigin,
  openImagePath,
  openRootTree,
  rootOf,
  starterSource,
  type BareRoot,
  type ImageKind,
  type ImageRoot,
} from "./image-root.ts"
import { imageService } from "./image-service.ts"
import { instanceOptions, startInstance, type Instance, type InstanceOptions } from "./instance.ts"
import { mountImage, mountOptions, type Mount, type MountOptions } from "./mount.ts"
import { checkOrigin, isVerified, vouch } from "./origin.ts"
import { encryptionOf, overlaysOf, partitionKind } from "../encryption/partition.ts"
import { execOptions, type ExecOptions } from "../runtime/options.ts"
import { heldKeys } from "../runtime/sharing.ts"
import { runImage, type Running } from "./run.ts"
import { isService } from "./service.ts"
import type { UnsignedPolicy } from "./signature.ts"
import type { Vouched } from "../file/vouched.ts"
import { nameText } from "../printable.ts"
import type { Unlocked } from "../encryption/encryption-format.ts"
import { unlockPartition } from "../encryption/unlock.ts"

/** How an image is opened. */
export interface OpenOptions {
  /** For an encrypted image; a plain one opens whatever is given. */
  readonly unlock?: readonly CredentialSource[] | undefined
  /**
   * A cipher besides `aes-xts-plain64` that the kernel engine may use, in dm-crypt's notation (`serpent-xts-plain64`).
   * Nothing authenticates a LUKS2 header: allow only what you know the image was made with.
   */
  readonly allowCipher?: string | undefined
  /** Replace limits on what a header may make a key derivation cost; also of images that are opened for a payload. */
  readonly kdfLimits?: NonNullable<LuksPolicy["limits"]> | undefined
  /**
   * Hears how many milliseconds deriving the key may take on this machine for each secret that is tried, before that is done
   * and if it takes seconds: so measured, by a short derivation of the same kind. `signal` can stop it there, and not later.
   */
  readonly onDerivation?: ((estimate: Milliseconds) => void) | undefined
  /**
   * What to do about an encrypted image that carries no signature: `warn` tells `onNotice`, `error` refuses it, both
   * before any key is used. Default `allow`. No signature is verified here, so one that is there proves nothing.
   */
  readonly unsigned?: UnsignedPolicy | undefined
  /**
   * Verify the signatures first, with these keys: before any key of the image is used, and on the descriptor that is read
   * from afterwards. What is not verified is refused. Of a root file system with a signed hash tree (`sign --tree`) each block is
   * verified when it is read, and not before; reading one that was changed fails.
   */
  readonly verify?: VerifyOptions
  /**
   * Refuse what is not encrypted, whatever names it: a plain root file system or overlay of a SIF, a folder, a squashfs, an OCI image
   * of which any layer is plain.
   */
  readonly requireEncrypted?: boolean | undefined
  /**
   * `run`, the default: the system's execution control list is asked first, and refuses what may not run. `read`: only for
   * listing, reading and extracting; the image is neither mounted nor run.
   */
  readonly purpose?: "run" | "read" | undefined
  /** Hears what the user should know, in a sentence. */
  readonly onNotice?: ((text: string) => void) | undefined
  /** Looked at before the start; a key derivation that runs cannot be stopped. */
  readonly signal?: AbortSignal | undefined
}

export const unsignedPolicy: is.Check<UnsignedPolicy> = is.oneOf("allow", "warn", "error")

export const openRows: is.Rows<OpenOptions> = {
  unlock: credentialList,
  allowCipher: is.text,
  kdfLimits,
  onDerivation: is.callback,
  unsigned: unsignedPolicy,
  verify: is.notUndefined(verifyOptions),
  requireEncrypted: is.flag,
  purpose: is.oneOf("run", "read"),
  onNotice: is.callback,
  signal: is.abortSignal,
}

/** One file, folder, link … inside an image. */
export interface TreeEntry {
  /**
   * Last part of the path. A byte that is no UTF-8 appears as `\xHH`, and so does a backslash before what looks like that: each
   * name has a text of its own, which every function that takes a path inside an image takes back.
   */
  readonly name: string
  /** From the root of the image: `/etc/passwd`. */
  readonly path: string
  readonly type: TreeEntryType
  /** Permission bits with setuid, setgid and sticky: 0 to 0o7777. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  /** Names of the same inode; of a folder, as stat(2) counts them. */
  readonly nlink: number
  /** Seconds since 1970. */
  readonly mtime: number
  /** Of a file's content, a link's target, a folder's listing. */
  readonly size: Bytes
  /** Of a device node, else 0. */
  readonly rdev: number
  /** Of a symbolic link. */
  readonly target?: string
}

/** How {@link Image.walk} walks. */
export interface WalkOptions {
  /** Everything below, too; default false. */
  readonly recursive?: boolean | undefined
  /** Stops it between two folders. */
  readonly signal?: AbortSignal | undefined
}

/** How {@link Image.list} lists. */
export interface ListOptions extends WalkOptions {
  /** More are an error: an image can be small and list as more than memory holds. Default {@link MAX_ENTRIES}. */
  readonly maxEntries?: number | undefined
}

/** How {@link Image.readFile} and {@link Image.createReadStream} read. */
export interface ReadOptions {
  /** Stops it between two pieces. */
  readonly signal?: AbortSignal | undefined
}

/** How {@link Image.readFile} reads. */
export interface ReadFileOptions extends ReadOptions {
  /** Default {@link MAX_FILE}. */
  readonly maxSize?: Bytes | undefined
}

/** How {@link Image.extract} extracts. */
export interface ExtractOptions {
  /** Paths inside; default: everything. */
  readonly paths?: readonly string[] | undefined
  /** Stops it; what was extracted until then stays. */
  readonly signal?: AbortSignal | undefined
  /** Bytes written so far, of how many. */
  readonly onProgress?: OnProgress | undefined
}

const checkList = is.shape<ListOptions>({ recursive: is.flag, maxEntries: is.count, signal: is.abortSignal })
const checkRead = is.shape<ReadOptions>({ signal: is.abortSignal })
const checkReadFile = is.shape<ReadFileOptions>({ signal: is.abortSignal, maxSize: is.count })
const checkExtract = is.shape<ExtractOptions>({
  paths: is.list(is.text),
  signal: is.abortSignal,
  onProgress: is.callback,
})
const words: is.Check<string[]> = is.list(is.text)

/** What a listing has at most unless more is asked for: a gigabyte or two in memory. */
export const MAX_ENTRIES: number = 1 << 22
/** Characters of paths in a listing: as much again. */
const MAX_PATHS: Bytes = 1 << 29
/** What {@link Image.readFile} reads at most unless more is asked for. */
export const MAX_FILE: Bytes = 1 << 28
const READ_PIECE: Bytes = 1 << 20

function entryOf(name: string, inside: string, info: NativeStat): TreeEntry {
  const { type, mode, uid, gid, nlink, mtime, size, rdev, target } = info
  const entry = { name, path: inside, type, mode, uid, gid, nlink, mtime, size, rdev }
  return target === undefined ? entry : { ...entry, target: nameText(target) }
}

function dispose(started: AsyncDisposable): PromiseLike<void> {
  return started[Symbol.asyncDispose]()
}

function joinInside(folder: string, name: string): string {
  return path.posix.join("/", folder, name)
}

type ImageParts = [
  root: ImageRoot,
  unlocked: Unlocked | undefined,
  vouched: Vouched | "read" | undefined,
  overlays: readonly SifPartition[],
  options: OpenOptions,
]

/**
 * An opened image. It holds the file open and, for an encrypted one, its key in memory until it is closed; mounts
 * and payloads that were started have their own and go on.
 */
export class Image implements AsyncDisposable {
  /** As it was opened. */
  readonly path: string
  /** Of the root file system. */
  readonly kind: ImageKind
  readonly #root: ImageRoot
  readonly #unlocked: Unlocked | undefined
  /** `read`: it is not to be run; undefined: nothing is demanded of it. */
  readonly #vouched: Vouched | "read" | undefined
  readonly #overlays: readonly SifPartition[]
  readonly #policy: Startable["policy"]
  #tree: Promise<ReadableTree> | undefined
  #closing: Promise<void> | undefined
  readonly #starting = new Set<Promise<unknown>>()

  private constructor(...[root, unlocked, vouched, overlays, { kdfLimits, onDerivation }]: ImageParts) {
    this.path = root.path
    this.kind = root.kind
    this.#root = root
    this.#unlocked = unlocked
    this.#vouched = vouched
    this.#overlays = overlays
    this.#policy = { limits: kdfLimits, onDerivation }
  }

  /** @internal Use {@link open}. */
  static of(...parts: ImageParts): Image {
    return new Image(...parts)
  }

  /** @internal Has something started of an image that no method of its own starts. */
  static use<T>(
    image: Image,
    start: (startable: Startable) => Promise<T>,
    undo: (started: T) => PromiseLike<void>,
  ): Promise<T> {
    return image.#vouchedFor(() => start(image.#startable()), undo)
  }

  #needsOpen(): void {
    if (this.#closing !== undefined) throw SifError.at(this.path, "ERR_SIF_CLOSED", "the image is closed")
  }

  /** What fails because the image is closed meanwhile says so. */
  async #whileReading<T>(reading: Promise<T>): Promise<T> {
    try {
      return await reading
    } catch (error) {
      this.#needsOpen()
      throw error
    }
  }

  /** The tree inside, opened at first use. */
  #openTree(): Promise<ReadableTree> {
    this.#needsOpen()
    // Said here, where the cipher's name is known.
    chooseEngine("userspace", this.#unlocked)
    return (this.#tree ??= openRootTree(this.#root, this.#unlocked))
  }

  /**
   * What is at `inside`, links in its last part not followed.
   *
   * @throws TreeError `ERR_TREE_NOT_FOUND`, `ERR_TREE_TYPE`, `ERR_TREE_FORMAT`.
   */
  async stat(inside: string): Promise<TreeEntry> {
    is.text(inside, "inside")
    const tree = await this.#openTree()
    return entryOf(
      path.posix.basename(inside) || "/",
      joinInside("/", inside),
      await this.#whileReading(tree.stat(inside, false)),
    )
  }

  /**
   * A folder's entries, by name; of anything else, itself.
   *
   * @throws TreeError `ERR_TREE_NOT_FOUND`, `ERR_TREE_TYPE`, `ERR_TREE_FORMAT`.
   */
  async list(inside: string = "/", options: ListOptions = {}): Promise<TreeEntry[]> {
    const { maxEntries = MAX_ENTRIES } = checkList(options, "options")
    const entries: TreeEntry[] = []
    let characters = 0
    for await (const entry of this.walk(inside, options)) {
      characters += entry.path.length
      if (entries.length >= maxEntries || characters > MAX_PATHS)
        throw TreeError.at(
          this.path,
          "ERR_TREE_FORMAT",
          `more than ${entries.length} entries, which is too much to list at once`,
        )
      entries.push(entry)
    }
    return entries
  }

  /**
   * The same one after the other, however many there are: a folder's entries by name, then, with `recursive`, what is below each.
   *
   * @throws As {@link Image.list}, at the entry that it is about; what {@link Image.extract} refuses is refused here.
   */
  async *walk(inside: string = "/", options: WalkOptions = {}): AsyncGenerator<TreeEntry, void, undefined> {
    is.text(inside, "inside")
    const { recursive = false, signal } = checkList(options, "options")
    const tree = await this.#openTree()
    if ((await tree.stat(inside, true)).type !== "directory") {
      yield await this.stat(inside)
      return
    }
    for await (const { path: below, entries } of tree.walk(inside)) {
      signal?.throwIfAborted()
      const folder = joinInside(inside, nameText(below))
      for (const { name, stat: info } of entries) {
        const shown = nameText(name)
        yield entryOf(shown, joinInside(folder, shown), info)
      }
      if (!recursive) return
    }
  }

  /**
   * A whole file, in memory; of what may be larger {@link Image.createReadStream} gives a piece at a time.
   *
   * @throws SifError `ERR_SIF_TOO_LARGE` above `maxSize`: an image can be small and its files as large as they like; TreeError `ERR_TREE_NOT_FOUND`, `ERR_TREE_TYPE`, `ERR_TREE_FORMAT`; the signal's reason.
   */
  async readFile(inside: string, options: ReadFileOptions = {}): Promise<Buffer> {
    is.text(inside, "inside")
    const { maxSize = MAX_FILE, signal } = checkReadFile(options, "options")
    const { size } = await (await this.#openTree()).stat(inside, true)
    if (size > maxSize)
      throw SifError.at(
        this.path,
        "ERR_SIF_TOO_LARGE",
        `${inside} has ${size} bytes, more than the ${maxSize} that are read at once`,
      )
    const pieces: Buffer[] = []
    for await (const piece of this.#pieces(inside, signal)) pieces.push(piece)
    return Buffer.concat(pieces)
  }

  /** A file's bytes as a stream, which fails as {@link Image.readFile} does. */
  createReadStream(inside: string, options: ReadOptions = {}): Readable {
    const { signal } = checkRead(options, "options")
    return Readable.from(this.#pieces(is.text(inside, "inside"), signal), { objectMode: false })
  }

  async *#pieces(inside: string, signal: AbortSignal | undefined): AsyncGenerator<Buffer, void, undefined> {
    const tree = await this.#openTree()
    const { size, type } = await this.#whileReading(tree.stat(inside, true))
    if (type !== "file") throw TreeError.at(this.path, "ERR_TREE_TYPE", `${inside}: not a file but a ${type}`)
    let next = size > 0 ? tree.read(inside, 0, READ_PIECE) : undefined
    for (let at = 0; next !== undefined;) {
      signal?.throwIfAborted()
      const piece: Buffer = await this.#whileReading(next)
      at += piece.length
      // The following piece is decoded while this one is used.
      next = at < size && piece.length > 0 ? tree.read(inside, at, READ_PIECE) : undefined
      next?.catch(() => undefined)
      yield piece
    }
  }

  /**
   * Copies out of the image. What is extracted is plain.
   *
   * @param target - A folder, made if it is missing.
   * @throws TreeError; BuildError `ERR_EXTRACT`; a system error when `target` cannot be made; the signal's reason.
   */
  async extract(target: string, options: ExtractOptions = {}): Promise<ExtractResult> {
    is.path(target, "target")
    const { paths = ["/"], signal, onProgress } = checkExtract(options, "options")
    signal?.throwIfAborted()
    const tree = await this.#openTree()
    const made = await mkdir(target, { recursive: true })
    await using content = new ContentCount(tree, onProgress === undefined ? [] : paths)
    let progressError: { readonly error: unknown } | undefined
    let entries = 0
    let bytes = 0
    for (const inside of paths) {
      const before = bytes
      try {
        const result = await tree.extract(
          {
            path: inside,
            target: path.resolve(target),
            preserveOwner: process.geteuid?.() === 0,
            // What comes from several places is none of them, and a folder that was there may be there to keep others out.
            fill: paths.length === 1 && made !== undefined,
          },
          (done) => {
            try {
              onProgress?.(before + done, content.total && Math.max(content.total, before + done))
            } catch (error) {
              progressError = { error }
              return false
            }
            return signal?.aborted !== true
          },
        )
        entries += result.entries
        bytes += result.bytes
      } catch (error) {
        signal?.throwIfAborted()
        if (progressError !== undefined) throw progressError.error
        this.#needsOpen()
        throw error
      }
    }
    onProgress?.(bytes, bytes)
    return { entries, bytes }
  }

  /** What the starter gets of this image. */
  #startable(): Startable {
    this.#needsOpen()
    return {
      source: starterSource(this.#root, this.#unlocked),
      overlays: this.#overlays,
      vouched: this.#vouched !== undefined,
      architecture: this.#root.architecture,
      policy: this.#policy ?? {},
    }
  }

  /**
   * Mounts the image read-only, nosuid, nodev on a folder.
   *
   * @throws DeviceError, EnvironmentError, TreeError.
   */
  async mount(target: string, options: MountOptions = {}): Promise<Mount> {
    const folder = is.path(target, "target")
    const checked = mountOptions(options, "options")
    return await this.#vouchedFor(() => mountImage(this.#startable(), folder, checked), dispose)
  }

  async #start(action: Action, given: readonly string[], asked: ExecOptions): Promise<Running> {
    const argv = words(given, "argv")
    const options = execOptions(asked, "options")
    if (action === "exec" && argv.length === 0) throw is.invalidValue("argv is empty: no command")
    const startable = this.#startable()
    // A cipher that only the kernel knows: what the image has inside is not known before it runs.
    const tree = isReadable(startable) ? await this.#openTree() : undefined
    // Who has to look at the file again stays.
    const staying = this.#vouched === undefined ? options : { ...options, replaceProcess: undefined }
    return await this.#vouchedFor(() => runImage(startable, tree, action, argv, staying), dispose)
  }

  /**
   * Runs a command inside.
   *
   * @throws RunError, EnvironmentError, DeviceError, TreeError; the signal's reason.
   */
  exec(argv: readonly string[], options: ExecOptions = {}): Promise<Running> {
    return this.#start("exec", argv, options)
  }

  /** Runs the image's run script; throws as {@link Image.exec}. */
  run(argv: readonly string[] = [], options: ExecOptions = {}): Promise<Running> {
    return this.#start("run", argv, options)
  }

  /** Runs bash, or sh, inside; throws as {@link Image.exec}. */
  shell(options: ExecOptions = {}): Promise<Running> {
    return this.#start("shell", [], options)
  }

  /** Runs the image's test script; throws as {@link Image.exec}. */
  test(argv: readonly string[] = [], options: ExecOptions = {}): Promise<Running> {
    return this.#start("test", argv, options)
  }

  /**
   * Starts the image as an instance, which goes on without this program. What its start script writes is in files beside the
   * instance's own (see {@link Instance.logOut}).
   *
   * @param name - Letters, digits, dots, dashes and underscores, at most 64.
   * @throws RunError `ERR_INSTANCE_EXISTS`, `ERR_INSTANCE_NAME`, `ERR_INSTANCE_FOLDER`; else as {@link Image.exec}.
   */
  async startInstance(
    name: string,
    argv: readonly string[] = [],
    options: InstanceOptions = {},
  ): Promise<Instance> {
    return await this.#startInstance(name, "start", argv, options)
  }

  /** The same with the image's run script in place of its start script. */
  async runInstance(
    name: string,
    argv: readonly string[] = [],
    options: InstanceOptions = {},
  ): Promise<Instance> {
    return await this.#startInstance(name, "run", argv, options)
  }

  /** The same with a command of the image's in place of its start script. */
  async execInstance(
    name: string,
    argv: readonly string[],
    options: InstanceOptions = {},
  ): Promise<Instance> {
    return await this.#startInstance(name, "exec", argv, options)
  }

  async #startInstance(
    name: string,
    script: "start" | "run" | "exec",
    given: readonly string[],
    asked: InstanceOptions,
  ): Promise<Instance> {
    is.text(name, "name")
    const argv = words(given, "argv")
    if (script === "exec" && argv.length === 0) throw is.invalidValue("argv is empty: no command")
    const wanted = instanceOptions(asked, "options")
    const startable = this.#startable()
    const tree = isReadable(startable) ? await this.#openTree() : undefined
    const { described } = this.#root
    const ofImage =
      described === undefined || !isService(wanted)
        ? {}
        : await imageService(described, this.#unlocked !== undefined, tree, wanted.onNotice)
    const options = {
      ...wanted,
      health: wanted.health ?? ofImage.health,
      stopSignal: wanted.stopSignal ?? ofImage.stopSignal,
    }
    return await this.#vouchedFor(
      () => startInstance(startable, tree, name, script, argv, options),
      (instance) => instance.stop({ signal: "SIGKILL" }),
    )
  }

  /** Closes files and forgets the key; mounts and payloads go on. Idempotent. */
  close(): Promise<void> {
    return (this.#closing ??= this.#close())
  }

  async #close(): Promise<void> {
    // What is being started still needs the file and the key.
    await Promise.allSettled(this.#starting)
    const tree = await this.#tree?.catch(() => undefined)
    tree?.close()
    this.#unlocked?.dataKey.wipe()
    await this.#root[Symbol.asyncDispose]()
  }

  /** Keeps the image open until `start` has got what it needs. */
  async #whileOpen<T>(start: Promise<T>): Promise<T> {
    this.#starting.add(start)
    try {
      return await start
    } finally {
      this.#starting.delete(start)
    }
  }

  /** What was verified is what starts, or it is taken back. */
  #vouchedFor<T>(start: () => Promise<T>, undo: (started: T) => PromiseLike<void>): Promise<T> {
    const vouched = this.#vouched
    if (vouched === "read") return Promise.reject(is.invalidValue("the image was opened for reading only"))
    return this.#whileOpen(vouched === undefined ? start() : vouched.while(start, undo))
  }

  /** The same as {@link Image.close}. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}

/** What has neither a signature nor a key: all that can be asked is whether it may run without. */
async function openBare(root: BareRoot, options: OpenOptions): Promise<Image> {
  return await madeOf(root, async () => {
    checkBareOrigin(root, options)
    if (options.purpose === "read") return Image.of(root, undefined, "read", [], options)
    requireAllowed(await examineBare(root))
    return Image.of(root, undefined, undefined, [], options)
  })
}

/**
 * Opens what a path leads to: a SIF, whose table is checked and whose key is recovered when it is encrypted, a squashfs file,
 * also one behind a launch line, or a folder.
 *
 * @param credentials - Of `unlock`; closed by the caller.
 * @param shown - What to call it.
 * @throws As `open` does (lib/make/open-image.ts).
 */
export async function openPath(
  file: string,
  options: OpenOptions,
  credentials: Credentials,
  shown: string = file,
): Promise<Image> {
  const { unlock, allowCipher, kdfLimits, onDerivation, signal } = options
  signal?.throwIfAborted()
  // For an encrypted image, then: the library is loaded while its table and header are read, unless it may not be needed.
  const findHeldKey = heldKeys()
  if (unlock !== undefined && findHeldKey === undefined) prepareLuks()
  const sif = await openImagePath(file)
  if (!(sif instanceof SifImage)) return await openBare(sif, options)
  return await madeOf(sif, async () => {
    const { partition, vouched } =
      options.purpose === "read"
        ? { partition: await checkOrigin(sif, sif.primary(), options), vouched: "read" as const }
        : await vouch(sif, sif.primary(), options)
    const { verify } = options
    const counts = (object: SifObject): boolean => verify === undefined || isVerified(object, verify)
    const overlays = overlaysOf(sif.objects, partition).filter(counts)
    if (partitionKind(partition) === "squashfs")
      return Image.of(rootOf(sif, partition, shown, counts), undefined, vouched, overlays, options)
    if (encryptionOf(partition) === undefined)
      throw SifError.at(
        file,
        "ERR_SIF_NO_OBJECT",
        `the primary partition holds neither squashfs nor LUKS2 nor gocryptfs (file system type ${partition.partition.fileSystem})`,
      )
    const policy: LuksPolicy = { allowCipher, limits: kdfLimits, onDerivation, findHeldKey }
    const unlocked = await unlockPartition(sif, partition, credentials, policy, signal)
    return Image.of(rootOf(sif, partition, shown, counts), unlocked, vouched, overlays, options)
  })
}
