// What sifcrypt-starter is told, and what it tells: arguments, descriptors, lines of JSON.
import { constants } from "node:os"
import { getSystemErrorName } from "node:util"
import { messageName } from "../caller-environment.ts"
import { limitError } from "../device/limits.ts"
import { freeMemory } from "../device/memory.ts"
import { plainRange, type Unlocked } from "../encryption/encryption-format.ts"
import { DeviceError, EnvironmentError, LuksError, RunError, SignatureError, TreeError } from "../errors.ts"
import type { ContainerError } from "../errors.ts"
import type { Verity } from "../sif/format.ts"
import type { Bytes } from "../units.ts"

/**
 * Who decrypts and reads the image: the kernel's dm-crypt, or our own process, which serves it by FUSE or, where there is no
 * FUSE, unpacks it into memory.
 */
export type ConcreteEngine = "kernel" | "userspace" | "memory"

/** The part of an image that becomes a mount. */
export interface StarterSource {
  /** What to call it in messages. */
  readonly image: string
  readonly fd: number
  readonly offset: Bytes
  readonly size: Bytes
  /** With this every block is verified when it is read. */
  readonly verity?: Verity | undefined
  /** For an encrypted partition. */
  readonly unlocked: Unlocked | undefined
  /** `fd` is that of a folder, which is here, links resolved: there is nothing to serve, it is bound. */
  readonly folder?: string | undefined
}

/** What lies over the image: a folder, or a file system in a file. Lowest first. */
export type StarterLayer =
  | { readonly kind: "directory"; readonly path: string; readonly writable: boolean }
  | {
      readonly kind: "squashfs" | "ext"
      readonly engine: ConcreteEngine
      readonly writable: boolean
      readonly source: StarterSource
      /** A lock that is held open as long as it is mounted. */
      readonly lockFd?: number | undefined
      /** Every file's owner, instead of what the image says. */
      readonly owner?: { readonly uid: number; readonly gid: number } | undefined
    }

/** An image as files to be seen, of which the root file system is one: header and table, and where the rest of it lies. */
export interface StarterView {
  readonly head: Uint8Array
  readonly size: Bytes
  readonly rootSize: Bytes
  /** In ascending order. Of the image's file, or of its root file system, deciphered. */
  readonly pieces: readonly {
    readonly from: "image" | "root"
    readonly at: Bytes
    readonly offset: Bytes
    readonly size: Bytes
  }[]
}

/** A failure as the starter tells it. */
export interface Failure {
  readonly step: string
  readonly errnoNumber: number
  readonly message: string
}

/** What it says on its status descriptor. */
type StatusLine =
  | { readonly event: "ready"; readonly pid: number }
  | ({ readonly event: "error" } & Failure)
  | { readonly event: "exit"; readonly code: number; readonly signal?: number; readonly crun?: string }
  // Of who attends it (native/starter/attend_command.cc).
  | { readonly event: "lost"; readonly code?: number; readonly signal?: number }

/** No secret, no loader variable of ours or the caller's. */
export const scrubbedEnvironment: NodeJS.ProcessEnv = { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" }

const { errno } = constants
const ELIBACC = 79 // node:os does not list it

/** What the starter could not do for want of descriptors. */
function failureLimit({ errnoNumber, message }: Failure, image: string): EnvironmentError | undefined {
  if (errnoNumber !== errno.EMFILE && errnoNumber !== errno.ENFILE) return undefined
  const code = getSystemErrorName(-errnoNumber)
  return limitError(`${image}: ${message.replace(/: [^:]*$/, "")}`, { code }, { path: image })
}

/** In a container or on a node that does not know its users: fusermount3 asks for the name to count mounts by. */
function namelessError(image: string): EnvironmentError {
  const cause = Object.assign(new Error("getpwuid: no such entry"), { code: "ENOENT", syscall: "getpwuid" })
  const text = `${image}: fusermount3 mounts for users that have a name, and uid ${process.geteuid?.()} has no entry in passwd`
  return new EnvironmentError("ERR_ENV_NO_PRIVILEGE", text, { path: image, cause })
}

/** Our error for what the starter could not do. */
function failureError(failure: Failure, engine: ConcreteEngine, image: string): ContainerError {
  const { step, errnoNumber, message } = failure
  const text = `${image}: ${message}`
  const where = { path: image }
  if (errnoNumber === ELIBACC) return new EnvironmentError("ERR_ENV_NO_LIBRARY", text, where)
  switch (step) {
    case "loop_attach":
      if (errnoNumber === errno.EBUSY) return new DeviceError("ERR_LOOP_BUSY", text, where)
      if (errnoNumber === errno.ENOTSUP) return new EnvironmentError("ERR_ENV_NO_KERNEL_SUPPORT", text, where)
      if (errnoNumber === errno.EPERM || errnoNumber === errno.EACCES)
        return new EnvironmentError("ERR_ENV_NO_PRIVILEGE", text, where)
      return new DeviceError("ERR_LOOP_ATTACH", text, where)
    case "crypt_activate":
      if (errnoNumber === errno.EPERM) return new LuksError("ERR_LUKS_HEADER", text, where)
      if (errnoNumber === errno.EEXIST) return new DeviceError("ERR_DM_EXISTS", text, where)
      if (errnoNumber === errno.ENOTSUP || errnoNumber === errno.ENOENT || errnoNumber === errno.ENODEV)
        return new EnvironmentError("ERR_ENV_NO_KERNEL_SUPPORT", text, where)
      return new DeviceError("ERR_DM_ACTIVATE", text, where)
    case "verity_activate":
      if (errnoNumber === errno.ENOTSUP) return new EnvironmentError("ERR_ENV_NO_KERNEL_SUPPORT", text, where)
      return new DeviceError("ERR_DM_ACTIVATE", text, where)
    case "fuse":
      // Missing or refused is /dev/fuse itself; anything else is what fusermount3 has against this mount.
      if (errnoNumber === errno.EACCES) return new EnvironmentError("ERR_ENV_NO_PRIVILEGE", text, where)
      if (errnoNumber === errno.ENOENT || errnoNumber === errno.ENODEV || errnoNumber === errno.ENXIO)
        return new EnvironmentError("ERR_ENV_NO_KERNEL_SUPPORT", text, where)
      if (message.endsWith("could not determine username")) return namelessError(image)
      return new DeviceError("ERR_MOUNT", text, where)
    case "overlay":
      if (errnoNumber === errno.EBUSY) return new RunError("ERR_RUN_OVERLAY_BUSY", text, where)
      if (errnoNumber === errno.ENOENT) return new EnvironmentError("ERR_ENV_NO_PROGRAM", text, where)
      // A kernel without overlays says so itself; anything else is about what the caller named.
      return errnoNumber === errno.ENODEV || message.includes("for user namespaces")
        ? new EnvironmentError("ERR_ENV_NO_KERNEL_SUPPORT", text, where)
        : new RunError("ERR_RUN_OVERLAY", text, where)
    case "bind":
      return errnoNumber === errno.ENOENT && message.endsWith("is not installed")
        ? new EnvironmentError("ERR_ENV_NO_PROGRAM", text, where)
        : new RunError("ERR_RUN_BIND", text, where)
    case "userns":
      if (errnoNumber === errno.ENOENT) return new EnvironmentError("ERR_ENV_NO_PROGRAM", text, where)
      return new EnvironmentError("ERR_ENV_NO_KERNEL_SUPPORT", text, where)
    case "crun":
      return errnoNumber === errno.ENOENT
        ? new EnvironmentError("ERR_ENV_NO_PROGRAM", text, where)
        : new RunError("ERR_RUN", text, where)
    case "network":
      return new RunError("ERR_RUN_NETWORK", text, where)
    case "port":
      return new RunError("ERR_RUN_PORT", text, where)
    case "memory":
      return new EnvironmentError("ERR_ENV_NO_MEMORY", text, where)
    case "mount":
      if (errnoNumber === errno.EPERM) return new EnvironmentError("ERR_ENV_NO_PRIVILEGE", text, where)
      if (engine === "kernel" && errnoNumber === errno.ENODEV)
        return new EnvironmentError("ERR_ENV_NO_KERNEL_SUPPORT", text, where)
      return new DeviceError("ERR_MOUNT", text, where)
    default:
      // The server of the image: what it has against bytes is the squashfs's fault.
      if (errnoNumber === errno.EIO && message.startsWith("verity_read:"))
        return new SignatureError(
          "ERR_SIGNATURE_INVALID",
          `${image}: ${message.replace(/^verity_read: /, "")}`,
          where,
        )
      if (step === "server" && errnoNumber === errno.ENOTSUP)
        return new TreeError("ERR_TREE_UNSUPPORTED", text, where)
      if (
        step === "server" &&
        (errnoNumber === errno.EBADMSG ||
          errnoNumber === errno.EOVERFLOW ||
          // A block that is not authentic; any other EIO is the disk's.
          (errnoNumber === errno.EIO && message.startsWith("gocryptfs_read:")))
      )
        return new TreeError("ERR_TREE_FORMAT", text, where)
      return new RunError("ERR_RUN", text, where)
  }
}

/** How a starter is to run. */
export interface StarterOptions {
  readonly command: "mount" | "run" | "prepare"
  readonly engine: ConcreteEngine
  readonly source: StarterSource
  readonly view?: StarterView | undefined
  readonly layers?: readonly StarterLayer[] | undefined
  /** Images that the bundle's binds name by their place in here. */
  readonly bindImages?: readonly StarterLayer[] | undefined
  /** Further `--name=value` arguments. */
  readonly args: readonly string[]
  /** Descriptors of this process, by the word that tells their number. */
  readonly shared?: Readonly<Record<string, number>> | undefined
}

/** Gives the starter a descriptor, and says its number there. */
export interface Descriptors {
  /** One of ours. */
  share(fd: number): number
  /** What gives these bytes. They are the caller's, who wipes them. */
  secret(bytes: Uint8Array): number
  bytes(name: string, bytes: Uint8Array): number
}

/** The same for a child process of ours. */
export interface PipedDescriptors extends Descriptors {
  /** A new pipe; its other end is in the child's `stdio` below this number. */
  readonly pipe: () => number
}

/** A starter to be started, as an attempt of several perhaps. */
export interface Launch<Given = Descriptors> {
  readonly engine: ConcreteEngine
  /** What messages are about. */
  readonly image: string
  /** The command first. What is to be watched and reported on is put behind it. */
  compose: (descriptors: Given) => string[]
  /** Our error for a failure, where it is not about an image. */
  readonly explain?: (failure: Failure) => ContainerError
}

export function launchOf(options: StarterOptions): Launch {
  return {
    engine: options.engine,
    image: options.source.image,
    compose: (descriptors) => starterArguments(options, descriptors),
  }
}

/** `ivTweak` is `iv-tweak`. */
function wordOf([name, value]: readonly [string, string | number]): string {
  return `${name.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}=${value}`
}

/**
 * The words that say where an image is, and how it is encrypted: a {@link NativeRange}, its key through a pipe.
 *
 * @param memory - What it may take of that if it is unpacked.
 */
function imageWords(
  source: StarterSource,
  engine: ConcreteEngine,
  descriptors: Descriptors,
  memory: Bytes,
): string[] {
  if (source.folder !== undefined)
    return [
      ...[`engine=${engine}`, `image-fd=${descriptors.share(source.fd)}`, `folder=${source.folder}`],
      ...(engine === "memory" ? [`memory=${memory}`] : []),
    ]
  const { fd, offset, size, verity, segment, cipher } = plainRange(source, source, source.unlocked)
  const words = [`engine=${engine}`, `image-fd=${descriptors.share(fd)}`, `offset=${offset}`, `size=${size}`]
  if (verity !== undefined)
    words.push(
      `verity-offset=${verity.offset}`,
      `verity-size=${verity.size}`,
      `verity-root=${Buffer.from(verity.root).toString("hex")}`,
      `verity-salt=${Buffer.from(verity.salt).toString("hex")}`,
    )
  if (segment !== undefined) words.push(`segment-offset=${segment.offset}`, `segment-size=${segment.size}`)
  if (cipher !== undefined) {
    const { type, key, ...parameters } = cipher
    words.push(`cipher=${type}`, `key-fd=${descriptors.secret(key)}`)
    words.push(...Object.entries<string | number>(parameters).map(wordOf))
  }
  if (engine === "memory") words.push(`memory=${memory}`)
  const dmCrypt = engine === "kernel" ? source.unlocked?.dmCrypt : undefined
  if (dmCrypt !== undefined)
    words.push(
      `metadata-fd=${descriptors.bytes("metadata", dmCrypt.metadata)}`,
      `area-size=${dmCrypt.areaSize}`,
    )
  return words
}

function layerWords(layer: StarterLayer, descriptors: Descriptors, memory: Bytes): string[] {
  return [
    `kind=${layer.kind}`,
    ...(layer.writable ? ["writable=1"] : []),
    // It may hold anything, so it is last.
    ...(layer.kind === "directory"
      ? [`path=${layer.path}`]
      : [
          ...imageWords(layer.source, layer.engine, descriptors, memory),
          ...(layer.lockFd === undefined ? [] : [`lock-fd=${descriptors.share(layer.lockFd)}`]),
          ...(layer.owner === undefined ? [] : [`owner=${layer.owner.uid}:${layer.owner.gid}`]),
        ]),
  ]
}

function viewWords(view: StarterView | undefined, descriptors: Descriptors): string[] {
  if (view === undefined) return []
  const { head, size, rootSize, pieces } = view
  return [
    `view-head-fd=${descriptors.bytes("head", head)}`,
    `view-size=${size}`,
    `view-root-size=${rootSize}`,
    `view-piece=head,0,0,${head.length}`,
    ...pieces.map((piece) => `view-piece=${piece.from},${piece.at},${piece.offset},${piece.size}`),
  ]
}

const MEMORY_UNKNOWN: Bytes = 1 << 30

/** What each of some images may take when all are unpacked: of what is free, a quarter is left to the payload. */
function memoryFor(images: number): Bytes {
  const free = freeMemory()?.bytes ?? MEMORY_UNKNOWN
  return Math.max(1, Math.floor(((free / 4) * 3) / images))
}

/** What is unpacked into memory: the names of these images. */
export function unpackedImages({ engine, source, layers = [], bindImages = [] }: StarterOptions): string[] {
  const others = [...layers, ...bindImages].flatMap((one) =>
    one.kind !== "directory" && one.engine === "memory" ? [one.source.image] : [],
  )
  return engine === "memory" && source.folder === undefined ? [source.image, ...others] : others
}

/** The arguments for all but how it is watched and what it reports on. */
export function starterArguments(options: StarterOptions, descriptors: Descriptors): string[] {
  const { command, engine, source, layers = [], bindImages = [] } = options
  const unpacked = unpackedImages(options).length
  const memory = engine === "memory" || unpacked > 0 ? memoryFor(Math.max(1, unpacked)) : 0
  const wordsOf = (layer: StarterLayer): string => layerWords(layer, descriptors, memory).join(",")
  return [
    command,
    `--message-name=${messageName()}`,
    ...imageWords(source, engine, descriptors, memory).map((word) => `--${word}`),
    ...viewWords(options.view, descriptors).map((word) => `--${word}`),
    ...layers.map((layer) => `--layer=${wordsOf(layer)}`),
    ...bindImages.map((image) => `--bind-image=${wordsOf(image)}`),
    ...options.args,
    ...Object.entries(options.shared ?? {}).map(([word, fd]) => `--${word}=${descriptors.share(fd)}`),
  ]
}

/** What a starter has told so far. */
export class Told {
  readonly #image: string
  readonly #explain: (failure: Failure) => ContainerError
  #unread = ""
  failure: ContainerError | undefined
  /** What ended the payload. */
  signal: number | undefined
  /** The process id, once it has mounted or started the payload. */
  ready: number | undefined

  constructor({ engine, image, explain }: Pick<Launch, "engine" | "image" | "explain">) {
    this.#image = image
    this.#explain = explain ?? ((failure) => failureError(failure, engine, image))
  }

  add(text: string): void {
    const lines = (this.#unread + text).split("\n")
    this.#unread = lines.pop() ?? ""
    for (const line of lines) this.#line(line)
  }

  /** Why it is over though nothing was told. */
  endedEarly(why: string): ContainerError {
    return new RunError("ERR_RUN", `${this.#image}: sifcrypt-starter ended early (${why})`)
  }

  #line(text: string): void {
    let line: StatusLine
    try {
      line = JSON.parse(text) as StatusLine
    } catch (cause) {
      this.failure ??= new RunError("ERR_RUN", `sifcrypt-starter said what is no JSON: ${text}`, { cause })
      return
    }
    if (line.event === "ready") this.ready ??= line.pid
    else if (line.event === "error") this.failure ??= failureLimit(line, this.#image) ?? this.#explain(line)
    else if (line.event === "lost")
      this.failure ??= this.endedEarly(
        line.signal === undefined ? `status ${line.code ?? 0}` : `signal ${line.signal}`,
      )
    else {
      this.signal = line.signal
      if (line.crun !== undefined) this.failure ??= new RunError("ERR_RUN", `${this.#image}: ${line.crun}`)
    }
  }
}

const DEFAULT_CACHE: Bytes = 8 << 20

/** The block cache, in the starter's words. */
export function cacheArgument(size: Bytes = DEFAULT_CACHE): string {
  return `--cache-mib=${Math.max(1, Math.round(size / (1 << 20)))}`
}
