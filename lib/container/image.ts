// An opened image: what is inside can be listed, read, extracted, mounted and run.
import { readFileSync } from "node:fs"
import { mkdir, realpath, stat } from "node:fs/promises"
import { userInfo } from "node:os"
import path from "node:path"
import { Readable } from "node:stream"
import type { LuksHeader, LuksPolicy } from "../device/luks-header.ts"
import { Tree, type ExtractResult } from "../device/tree.ts"
import { DeviceError, SifError, TreeError } from "../errors.ts"
import type { Secret } from "../key/secret.ts"
import type { NativeRange, NativeStat, TreeEntryType } from "../native/binding.ts"
import { starterPath } from "../native/load.ts"
import { parseBinds } from "../runtime/binds.ts"
import { makeBundle, type Action } from "../runtime/bundle.ts"
import { composeEnvironment } from "../runtime/environment.ts"
import type { Identity } from "../runtime/passwd.ts"
import { findProgram } from "../runtime/program.ts"
import {
  letGo,
  startStarter,
  type ConcreteEngine,
  type Starter,
  type StarterSource,
} from "../runtime/starter.ts"
import type { SifPartition } from "../sif/format.ts"
import { openSif, type SifImage } from "../sif/open.ts"
import type { Bytes } from "../units.ts"
import type { CredentialOptions } from "./credentials.ts"
import { chooseEngine, type Engine } from "./engine.ts"
import { unmount, type MountInfo } from "./mounts.ts"
import { partitionKind, type PartitionKind } from "./partition.ts"
import { unlockPartition } from "./unlock.ts"

/** How {@link open} opens. */
export interface OpenOptions {
  readonly credentials?: CredentialOptions
  /**
   * A cipher besides `aes-xts-plain64` that the kernel engine may use, in dm-crypt's notation (`serpent-xts-plain64`).
   * Nothing authenticates a LUKS2 header: allow only what you know the image was made with.
   */
  readonly allowCipher?: string
  /** Replace limits on what a header may make a key derivation cost. */
  readonly kdfLimits?: NonNullable<LuksPolicy["limits"]>
  readonly signal?: AbortSignal
}

/** One file, folder, link … inside an image. */
export interface TreeEntry {
  /** Last part of the path; bytes that are no UTF-8 appear as U+FFFD. */
  readonly name: string
  /** From the root of the image: `/etc/passwd`. */
  readonly path: string
  readonly type: TreeEntryType
  /** Permission bits with setuid, setgid and sticky: 0 to 0o7777. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly nlink: number
  /** Seconds since 1970. */
  readonly mtime: number
  readonly size: Bytes
  /** Of a device node. */
  readonly rdev: number
  /** Of a symbolic link. */
  readonly target?: string
}

export interface ListOptions {
  /** Everything below, too. */
  readonly recursive?: boolean
  readonly signal?: AbortSignal
}

export interface ReadOptions {
  readonly signal?: AbortSignal
}

export interface ExtractOptions {
  /** Paths inside; default: everything. */
  readonly paths?: readonly string[]
  readonly signal?: AbortSignal
  /** Bytes written so far. */
  readonly onProgress?: (bytes: Bytes) => void
}

/** How {@link Image.mount} mounts. */
export interface MountOptions {
  /** Default `auto`. */
  readonly engine?: Engine
  /** Stays when this process ends; default false. */
  readonly detached?: boolean
  /** Of decoded blocks that the userspace engine keeps, bytes; default 64 MiB. */
  readonly cacheSize?: Bytes
}

/** How {@link Image.exec}, {@link Image.run} and {@link Image.shell} run. */
export interface ExecOptions {
  /** Default `auto`. */
  readonly engine?: Engine
  /** `SRC[:DST[:ro|rw]]`. */
  readonly binds?: readonly string[]
  /** Working directory inside; default: the caller's if it is seen inside, else home, else `/`. */
  readonly cwd?: string
  /** `NAME=VALUE`, stronger than what the image sets. */
  readonly env?: readonly string[]
  /** Of the host's environment only TERM and the proxies; default false. */
  readonly cleanEnv?: boolean
  /** Default `pipe`. */
  readonly stdio?: "inherit" | "pipe" | "ignore"
  /** Ends the payload and takes everything back. */
  readonly signal?: AbortSignal
  readonly cacheSize?: Bytes
  readonly onNotice?: (text: string) => void
}

/** How a payload ended. */
export interface RunResult {
  /** Its exit status; 128 plus the signal's number when a signal ended it. */
  readonly exitCode: number
}

/** A payload that runs. Disposing it ends it. */
export interface Running extends AsyncDisposable {
  readonly engine: ConcreteEngine
  /** The starter's process, which passes signals on. */
  readonly pid: number
  readonly stdin: NodeJS.WritableStream | null
  readonly stdout: NodeJS.ReadableStream | null
  readonly stderr: NodeJS.ReadableStream | null
  readonly exited: Promise<RunResult>
  kill(signal: NodeJS.Signals): void
}

/** A mounted image. Disposing it unmounts, also a detached one. */
export interface Mount extends AsyncDisposable {
  readonly info: MountInfo
  unmount(): Promise<void>
}

const READ_PIECE: Bytes = 1 << 20
/** A tree that is deeper has a loop in it. */
const MAX_DEPTH = 4096
const DEFAULT_CACHE: Bytes = 64 << 20

function joinInside(folder: string, name: string): string {
  return path.posix.join("/", folder, name)
}

export class Image implements AsyncDisposable {
  /** As it was opened. */
  readonly path: string
  readonly kind: PartitionKind
  readonly #sif: SifImage
  readonly #fd: number
  readonly #partition: SifPartition
  readonly #header: LuksHeader | undefined
  readonly #volumeKey: Secret | undefined
  #tree: Promise<Tree> | undefined
  #closed = false

  /** Use {@link open}. */
  constructor(
    sif: SifImage,
    fd: number,
    partition: SifPartition,
    unlocked: { header: LuksHeader; volumeKey: Secret } | undefined,
  ) {
    this.path = sif.path
    this.kind = partitionKind(partition)
    this.#sif = sif
    this.#fd = fd
    this.#partition = partition
    this.#header = unlocked?.header
    this.#volumeKey = unlocked?.volumeKey
  }

  #range(): NativeRange {
    const header = this.#header
    const { offset, size } = this.#partition
    if (header === undefined || this.#volumeKey === undefined)
      return { fd: this.#fd, offset, size, cipher: undefined }
    const { segment } = header
    // Said here, where the cipher's name is known.
    chooseEngine("userspace", this.kind, segment.cipher)
    return {
      fd: this.#fd,
      offset: offset + segment.offset,
      size: segment.size,
      cipher: { volumeKey: this.#volumeKey.bytes, sectorSize: segment.sectorSize, ivTweak: segment.ivTweak },
    }
  }

  /** The tree inside, opened at first use. */
  #openTree(): Promise<Tree> {
    if (this.#closed) throw new Error("the image is closed")
    return (this.#tree ??= Tree.open(this.#range(), this.path))
  }

  async #entry(tree: Tree, name: string, inside: string, info: NativeStat): Promise<TreeEntry> {
    const { type, mode, uid, gid, nlink, mtime, size, rdev } = info
    const entry = { name, path: inside, type, mode, uid, gid, nlink, mtime, size, rdev }
    return type === "symlink" ? { ...entry, target: (await tree.readlink(inside)).toString("utf8") } : entry
  }

  /**
   * What is at `inside`, links in its last part not followed.
   *
   * @throws TreeError `ERR_TREE_NOT_FOUND`, `ERR_TREE_TYPE`, `ERR_TREE_FORMAT`.
   */
  async stat(inside: string): Promise<TreeEntry> {
    const tree = await this.#openTree()
    return await this.#entry(
      tree,
      path.posix.basename(inside) || "/",
      joinInside("/", inside),
      await tree.stat(inside, false),
    )
  }

  /**
   * A folder's entries, by name; of anything else, itself.
   *
   * @throws TreeError `ERR_TREE_NOT_FOUND`, `ERR_TREE_TYPE`, `ERR_TREE_FORMAT`.
   */
  async list(inside: string = "/", options: ListOptions = {}): Promise<TreeEntry[]> {
    const { recursive = false, signal } = options
    const tree = await this.#openTree()
    const top = await tree.stat(inside, true)
    if (top.type !== "directory") return [await this.stat(inside)]
    const entries: TreeEntry[] = []
    const visited = new Set<number>([top.inode])
    const pending = [{ folder: inside, depth: 0 }]
    for (let next = pending.pop(); next !== undefined; next = pending.pop()) {
      signal?.throwIfAborted()
      const { folder, depth } = next
      const below: typeof pending = []
      for (const { name, stat: info } of await tree.list(folder)) {
        const shown = name.toString("utf8")
        const place = joinInside(folder, shown)
        entries.push(await this.#entry(tree, shown, place, info))
        if (!recursive || info.type !== "directory") continue
        if (visited.has(info.inode) || depth >= MAX_DEPTH)
          throw new TreeError("ERR_TREE_FORMAT", `${this.path}: the folder ${place} contains itself`, {
            path: this.path,
          })
        visited.add(info.inode)
        below.push({ folder: place, depth: depth + 1 })
      }
      pending.push(...below.reverse())
    }
    return entries
  }

  /**
   * A whole file.
   *
   * @throws TreeError.
   */
  async readFile(inside: string, options: ReadOptions = {}): Promise<Buffer> {
    const pieces: Buffer[] = []
    for await (const piece of this.#pieces(inside, options.signal)) pieces.push(piece)
    return Buffer.concat(pieces)
  }

  /** A file's bytes as a stream. */
  createReadStream(inside: string, options: ReadOptions = {}): Readable {
    return Readable.from(this.#pieces(inside, options.signal), { objectMode: false })
  }

  async *#pieces(inside: string, signal: AbortSignal | undefined): AsyncGenerator<Buffer, void, undefined> {
    const tree = await this.#openTree()
    const { size, type } = await tree.stat(inside, true)
    if (type !== "file")
      throw new TreeError("ERR_TREE_TYPE", `${this.path}: ${inside}: not a file but a ${type}`, {
        path: this.path,
      })
    let next = size > 0 ? tree.read(inside, 0, READ_PIECE) : undefined
    for (let at = 0; next !== undefined;) {
      signal?.throwIfAborted()
      const piece: Buffer = await next
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
   * @throws TreeError; a system error of the target; the signal's reason.
   */
  async extract(target: string, options: ExtractOptions = {}): Promise<ExtractResult> {
    const { paths = ["/"], signal, onProgress } = options
    signal?.throwIfAborted()
    const tree = await this.#openTree()
    await mkdir(target, { recursive: true })
    let entries = 0
    let bytes = 0
    for (const inside of paths) {
      const before = bytes
      try {
        const result = await tree.extract(
          { path: inside, target: path.resolve(target), preserveOwner: process.geteuid?.() === 0 },
          (done) => {
            onProgress?.(before + done)
            return signal?.aborted !== true
          },
        )
        entries += result.entries
        bytes += result.bytes
      } catch (error) {
        signal?.throwIfAborted()
        throw error
      }
    }
    return { entries, bytes }
  }

  #source(): StarterSource {
    if (this.#closed) throw new Error("the image is closed")
    return {
      image: this.path,
      fd: this.#fd,
      offset: this.#partition.offset,
      size: this.#partition.size,
      luks:
        this.#header === undefined || this.#volumeKey === undefined
          ? undefined
          : { header: this.#header, volumeKey: this.#volumeKey.bytes },
    }
  }

  /**
   * Mounts the image read-only, nosuid, nodev on a folder.
   *
   * @throws DeviceError, EnvironmentError, TreeError.
   */
  async mount(target: string, options: MountOptions = {}): Promise<Mount> {
    const engine = chooseEngine(options.engine ?? "auto", this.kind, this.#header?.segment.cipher)
    const folder = await realpath(target)
    if (!(await stat(folder)).isDirectory())
      throw new DeviceError("ERR_MOUNT", `${target} is no folder`, { path: target })
    if (engine === "userspace" && process.geteuid?.() !== 0)
      findProgram("fusermount3", "an ordinary user's mount is made by it")
    const detached = options.detached === true
    const starter = startStarter({
      command: "mount",
      engine,
      source: this.#source(),
      args: [
        `--target=${folder}`,
        `--source-name=${path.resolve(this.path)}`,
        this.#cacheArgument(options.cacheSize),
      ],
      attached: !detached,
      stdio: ["ignore", "ignore", detached ? "ignore" : "inherit"],
    })
    const pid = await starter.ready
    if (detached) letGo(starter)
    else unreference(starter)
    const info: MountInfo = {
      image: path.resolve(this.path),
      target: folder,
      engine,
      pid: engine === "kernel" && detached ? undefined : pid,
    }
    let gone: Promise<void> | undefined
    const take = async (): Promise<void> => {
      await unmount(folder)
      starter.release()
      if (!detached) await starter.ended
    }
    const unmountOnce = (): Promise<void> => (gone ??= take())
    return { info, unmount: unmountOnce, [Symbol.asyncDispose]: unmountOnce }
  }

  #cacheArgument(size: Bytes = DEFAULT_CACHE): string {
    return `--cache-mib=${Math.max(1, Math.round(size / (1 << 20)))}`
  }

  /** Runs a command inside. */
  exec(argv: readonly string[], options: ExecOptions = {}): Promise<Running> {
    if (argv.length === 0) throw new TypeError("no command")
    return this.#start("exec", argv, options)
  }

  /** Runs the image's run script. */
  run(argv: readonly string[] = [], options: ExecOptions = {}): Promise<Running> {
    return this.#start("run", argv, options)
  }

  /** Runs bash, or sh, inside. */
  shell(options: ExecOptions = {}): Promise<Running> {
    return this.#start("shell", [], options)
  }

  async #start(action: Action, argv: readonly string[], options: ExecOptions): Promise<Running> {
    const { signal, stdio = "pipe", onNotice = () => undefined } = options
    signal?.throwIfAborted()
    const engine = chooseEngine(options.engine ?? "auto", this.kind, this.#header?.segment.cipher)
    const crun = findProgram("crun", "it runs the container")
    const tree = await this.#openTree()
    const hostCwd = await realpath(process.cwd())
    const bundle = await makeBundle({
      tree,
      image: this.path,
      action,
      argv,
      identity: callerIdentity(),
      hostCwd,
      cwd: options.cwd,
      binds: parseBinds(options.binds ?? [], hostCwd),
      environment: composeEnvironment(process.env, options.env ?? [], options.cleanEnv === true),
      terminal: stdio === "inherit" && process.stdin.isTTY && process.stdout.isTTY && process.stderr.isTTY,
      umask: currentUmask(),
      starter: starterPath(),
      onNotice,
    })
    const uid = process.geteuid?.() ?? 0
    const starter = startStarter({
      command: "run",
      engine,
      source: this.#source(),
      args: [
        `--session=${bundle.session}`,
        `--crun=${crun}`,
        `--id=sifcrypt-${process.pid}-${Date.now().toString(36)}`,
        this.#cacheArgument(options.cacheSize),
        // In a user namespace with one id everything else would be nobody's.
        ...(uid === 0 ? [] : [`--owner=${uid}:${process.getegid?.() ?? 0}`]),
      ],
      bundle: bundle.bytes,
      attached: true,
      stdio: [stdio, stdio, stdio],
    })
    const stop = (): void => {
      starter.release()
    }
    signal?.addEventListener("abort", stop, { once: true })
    const exited = starter.ended
      .then((exitCode) => {
        if (signal?.aborted === true) signal.throwIfAborted()
        return { exitCode }
      })
      .finally(() => {
        signal?.removeEventListener("abort", stop)
      })
    exited.catch(() => undefined)
    try {
      await starter.ready
    } catch (error) {
      await exited.catch(() => undefined)
      signal?.throwIfAborted()
      throw error
    }
    const { child } = starter
    return {
      engine,
      pid: child.pid ?? 0,
      stdin: child.stdin,
      stdout: child.stdout,
      stderr: child.stderr,
      exited,
      kill: (name) => {
        child.kill(name)
      },
      async [Symbol.asyncDispose](): Promise<void> {
        starter.release()
        await exited.catch(() => undefined)
      },
    }
  }

  /** Closes files and forgets the key; mounts and payloads go on. Idempotent. */
  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    const tree = await this.#tree?.catch(() => undefined)
    tree?.close()
    this.#volumeKey?.wipe()
    await this.#sif[Symbol.asyncDispose]()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}

/** An attached mount must not keep the caller's event loop alive. */
function unreference(starter: Starter): void {
  starter.child.unref()
  for (const stream of starter.child.stdio) (stream as { unref?: () => void } | null)?.unref?.()
}

/** Read from /proc: process.umask() changes it for a moment, for all threads. */
function currentUmask(): number {
  const octal = /^Umask:\s*([0-7]+)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1]
  return octal === undefined ? 0o022 : parseInt(octal, 8)
}

function callerIdentity(): Identity {
  const uid = process.geteuid?.() ?? 0
  const gid = process.getegid?.() ?? 0
  try {
    const { username, homedir, shell } = userInfo()
    return { uid, gid, name: username, group: username, home: homedir, shell: shell ?? "/bin/sh" }
  } catch {
    // A uid without a passwd entry, as batch systems and containers have them.
    const home = process.env["HOME"]
    return {
      uid,
      gid,
      name: `user${uid}`,
      group: `group${gid}`,
      home: home !== undefined && path.isAbsolute(home) ? home : "/",
      shell: "/bin/sh",
    }
  }
}

/**
 * Opens an image: checks its table, and recovers the volume key when it is encrypted.
 *
 * @throws SifError, KeyError, LuksError, EnvironmentError; TreeError for a kind of root that cannot be opened.
 */
export async function open(file: string, options: OpenOptions = {}): Promise<Image> {
  const { credentials = {}, allowCipher, kdfLimits, signal } = options
  signal?.throwIfAborted()
  const sif = await openSif(file)
  try {
    const { fd } = sif
    const partition = sif.primary()
    const kind = partitionKind(partition)
    switch (kind) {
      case "squashfs":
        return new Image(sif, fd, partition, undefined)
      case "luks": {
        const policy: LuksPolicy = { allowCipher, limits: kdfLimits }
        const unlocked = await unlockPartition(sif, fd, partition, credentials, policy)
        return new Image(sif, fd, partition, unlocked)
      }
      case "gocryptfs":
        throw new TreeError(
          "ERR_TREE_UNSUPPORTED",
          `${file}: images encrypted with gocryptfs cannot be opened yet`,
          {
            path: file,
          },
        )
      case "other":
        throw new SifError(
          "ERR_SIF_NO_OBJECT",
          `${file}: the primary partition holds neither squashfs nor LUKS2 (file system type ${partition.partition.fileSystem})`,
          { path: file },
        )
    }
  } catch (error) {
    await sif[Symbol.asyncDispose]()
    throw error
  }
}
