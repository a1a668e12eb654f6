// Starts sifcrypt-starter and listens to it. Keys reach it through pipes; what it reports are lines of JSON.
import { spawn, type ChildProcess } from "node:child_process"
import { once } from "node:events"
import { constants } from "node:os"
import type { Duplex, Writable } from "node:stream"
import { dataKey, type Unlocked } from "../container/unlock.ts"
import { DeviceError, EnvironmentError, LuksError, RunError, TreeError } from "../errors.ts"
import type { ContainerError } from "../errors.ts"
import { allocateSecret } from "../key/secret.ts"
import { starterPath } from "../native/load.ts"
import type { Bytes } from "../units.ts"

/** Who decrypts and reads the image: the kernel's dm-crypt, or our own process. */
export type ConcreteEngine = "kernel" | "userspace"

/** The part of an image that becomes a mount. */
export interface StarterSource {
  /** What to call it in messages. */
  readonly image: string
  readonly fd: number
  readonly offset: Bytes
  readonly size: Bytes
  /** For an encrypted partition. */
  readonly unlocked: Unlocked | undefined
}

/** A failure as the starter tells it. */
interface Failure {
  readonly step: string
  readonly errnoNumber: number
  readonly message: string
}

/** What it says on its status descriptor. */
type StatusLine =
  | { readonly event: "ready"; readonly pid: number }
  | ({ readonly event: "error" } & Failure)
  | { readonly event: "exit"; readonly code: number; readonly crun?: string }

/** For programs that we start: no secret, no loader variable of ours or the caller's. */
export const scrubbedEnvironment: NodeJS.ProcessEnv = { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" }

const { errno } = constants
const ELIBACC = 79 // node:os does not list it

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
    case "fuse":
      // Missing or refused is /dev/fuse itself; anything else is what fusermount3 has against this mount.
      if (errnoNumber === errno.EACCES) return new EnvironmentError("ERR_ENV_NO_PRIVILEGE", text, where)
      if (errnoNumber === errno.ENOENT || errnoNumber === errno.ENODEV || errnoNumber === errno.ENXIO)
        return new EnvironmentError("ERR_ENV_NO_KERNEL_SUPPORT", text, where)
      return new DeviceError("ERR_MOUNT", text, where)
    case "userns":
    case "overlay":
      return new EnvironmentError("ERR_ENV_NO_KERNEL_SUPPORT", text, where)
    case "crun":
      return errnoNumber === errno.ENOENT
        ? new EnvironmentError("ERR_ENV_NO_PROGRAM", text, where)
        : new RunError("ERR_RUN", text, where)
    case "mount":
      if (errnoNumber === errno.EPERM) return new EnvironmentError("ERR_ENV_NO_PRIVILEGE", text, where)
      if (engine === "kernel" && errnoNumber === errno.ENODEV)
        return new EnvironmentError("ERR_ENV_NO_KERNEL_SUPPORT", text, where)
      return new DeviceError("ERR_MOUNT", text, where)
    default:
      // The server of the image: what it has against bytes is the squashfs's fault.
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

/** A started starter. */
export interface Starter {
  readonly child: ChildProcess
  /** Resolves when it has mounted, or started the payload; rejects with what kept it from that. */
  readonly ready: Promise<number>
  /** Resolves when it has ended; rejects with what kept the payload from running. */
  readonly ended: Promise<number>
  /** Closes the descriptor it watches: it undoes everything and ends. */
  release(): void
}

/** What {@link startStarter} needs. */
export interface StarterOptions {
  readonly command: "mount" | "run"
  readonly engine: ConcreteEngine
  readonly source: StarterSource
  /** Further `--name=value` arguments. */
  readonly args: readonly string[]
  /** Goes through a pipe as `--bundle-fd`; the starter prepares what it can until it comes. */
  readonly bundle?: Promise<Buffer>
  /** Ends with this process, or stays when this process is gone. */
  readonly attached: boolean
  /** Standard input, output and error. */
  readonly stdio: readonly ("inherit" | "pipe" | "ignore")[]
}

function send(child: ChildProcess, fd: number, bytes: Uint8Array, done: () => void = () => undefined): void {
  const pipe = child.stdio[fd] as Writable
  // A starter that fails early closes its end; its status says why.
  pipe.on("error", done)
  pipe.end(bytes, done)
}

/** The pipe may take it later than the caller keeps it: a copy, wiped when it has gone. */
function sendSecret(child: ChildProcess, fd: number, secret: Uint8Array): void {
  const copy = allocateSecret(secret.length)
  copy.set(secret)
  send(child, fd, copy, () => copy.fill(0))
}

interface Deferred<T> {
  readonly promise: Promise<T>
  readonly resolve: (value: T) => void
  readonly reject: (reason: unknown) => void
}

function deferred<T>(): Deferred<T> {
  let settle: Omit<Deferred<T>, "promise"> | undefined
  const promise = new Promise<T>((resolve, reject) => {
    settle = { resolve, reject }
  })
  if (settle === undefined) throw new Error("a promise runs its executor at once")
  return { promise, ...settle }
}

export function startStarter(options: StarterOptions): Starter {
  const { command, engine, source, attached } = options
  const args = [command, `--engine=${engine}`]
  const stdio: ("inherit" | "pipe" | "ignore" | number)[] = [...options.stdio]
  const add = (name: string, what: "pipe" | number): number => {
    stdio.push(what)
    args.push(`--${name}=${stdio.length - 1}`)
    return stdio.length - 1
  }
  add("image-fd", source.fd)
  args.push(`--offset=${source.offset}`, `--size=${source.size}`)
  const status = add("status-fd", "pipe")
  const watch = attached ? add("watch-fd", "pipe") : undefined
  const bundle = options.bundle === undefined ? undefined : add("bundle-fd", "pipe")
  const { unlocked } = source
  const key = unlocked === undefined ? undefined : add("key-fd", "pipe")
  let metadata: number | undefined
  if (unlocked?.kind === "gocryptfs") args.push(`--gocryptfs-file=${unlocked.file}`)
  else if (unlocked !== undefined) {
    const { segment, areaSize } = unlocked.header
    args.push(
      `--segment-offset=${segment.offset}`,
      `--segment-size=${segment.size}`,
      `--sector-size=${segment.sectorSize}`,
      `--iv-tweak=${segment.ivTweak}`,
    )
    if (engine === "kernel") {
      metadata = add("metadata-fd", "pipe")
      args.push(`--area-size=${areaSize}`)
    }
  }
  args.push(...options.args)

  const child = spawn(starterPath(), args, {
    argv0: "sifcrypt-starter",
    stdio,
    env: scrubbedEnvironment,
    detached: !attached,
  })
  const spawned = once(child, "spawn")
  // Told where it is awaited below; it may reject before.
  spawned.catch(() => undefined)
  // Node's types do not know that there are none when the process has no descriptors left.
  if ((child.stdio as unknown) === undefined)
    throw new EnvironmentError("ERR_ENV_NO_ADDON", `cannot start ${child.spawnfile}: out of file descriptors`)
  if (unlocked !== undefined && key !== undefined) sendSecret(child, key, dataKey(unlocked).bytes)
  if (unlocked?.kind === "luks" && metadata !== undefined) send(child, metadata, unlocked.header.metadata)
  const release = (): void => {
    if (watch !== undefined) (child.stdio[watch] as Duplex).destroy()
  }
  if (bundle !== undefined)
    options.bundle?.then((bytes) => {
      send(child, bundle, bytes)
    }, release)

  let failure: ContainerError | undefined
  const ready = deferred<number>()
  const onLine = (text: string): void => {
    let line: StatusLine
    try {
      line = JSON.parse(text) as StatusLine
    } catch (cause) {
      failure ??= new RunError("ERR_RUN", `sifcrypt-starter said what is no JSON: ${text}`, { cause })
      return
    }
    if (line.event === "ready") ready.resolve(line.pid)
    else if (line.event === "error") {
      failure ??= failureError(line, engine, source.image)
      ready.reject(failure)
    } else if (line.crun !== undefined) failure ??= new RunError("ERR_RUN", `${source.image}: ${line.crun}`)
  }
  let unread = ""
  const statusPipe = child.stdio[status] as Duplex
  statusPipe.setEncoding("utf8").on("data", (text: string) => {
    const lines = (unread + text).split("\n")
    unread = lines.pop() ?? ""
    lines.forEach(onLine)
  })
  // That of the pipes comes first: the last line has been read when this is seen.
  const exited = once(child, "close") as Promise<[number | null, NodeJS.Signals | null]>
  // A child that cannot be started rejects this one as well; the first one tells.
  exited.catch(() => undefined)
  const ended = (async (): Promise<number> => {
    try {
      await spawned
    } catch (cause) {
      throw new EnvironmentError("ERR_ENV_NO_ADDON", `cannot start ${child.spawnfile}`, { cause })
    }
    const [code, signal] = await exited
    const why = signal === null ? `status ${code ?? 0}` : signal
    ready.reject(failure ?? new RunError("ERR_RUN", `${source.image}: sifcrypt-starter ended early (${why})`))
    if (failure !== undefined) throw failure
    if (signal !== null) return 128 + constants.signals[signal]
    return code ?? 0
  })()
  ended.catch((error: unknown) => {
    ready.reject(error)
  })
  // Whoever waits for one of the two need not wait for the other.
  ready.promise.catch(() => undefined)
  ended.catch(() => undefined)
  return {
    child,
    ready: ready.promise,
    ended,
    release,
  }
}

/** Lets this process end while the starter goes on. */
export function letGo(starter: Starter): void {
  for (const stream of starter.child.stdio) (stream as Duplex | null)?.destroy()
  starter.child.unref()
}

interface Referenceable {
  readonly ref?: () => void
  readonly unref?: () => void
}

/** An attached one must not keep the caller's event loop alive. */
export function unreference(starter: Starter): void {
  starter.child.unref()
  for (const stream of starter.child.stdio) (stream as Referenceable | null)?.unref?.()
}

/** Until its end is awaited: nothing else may be left to keep the event loop alive. */
export function reference(starter: Starter): void {
  starter.child.ref()
  for (const stream of starter.child.stdio) (stream as Referenceable | null)?.ref?.()
}

const DEFAULT_CACHE: Bytes = 64 << 20

/** The block cache, in the starter's words. */
export function cacheArgument(size: Bytes = DEFAULT_CACHE): string {
  return `--cache-mib=${Math.max(1, Math.round(size / (1 << 20)))}`
}
