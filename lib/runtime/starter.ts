// Starts sifcrypt-starter and listens to it. Keys reach it through pipes; what it reports are lines of JSON.
import { spawn, type ChildProcess } from "node:child_process"
import { once } from "node:events"
import { constants } from "node:os"
import type { Duplex, Writable } from "node:stream"
import { limitError } from "../device/limits.ts"
import { EnvironmentError } from "../errors.ts"
import { allocateSecret } from "../key/secret.ts"
import { starterPath } from "../native/load.ts"
import { scrubbedEnvironment, Told, type Launch, type PipedDescriptors } from "./starter-protocol.ts"

/** How a starter, and with it its payload, ended. */
export interface Ended {
  readonly code: number
  /** What ended the payload. */
  readonly signal: number | undefined
}

/** A started starter. */
export interface Starter {
  readonly child: ChildProcess
  /** Resolves when it has mounted, or started the payload; rejects with what kept it from that. */
  readonly ready: Promise<number>
  /** Resolves when it has ended; rejects with what kept the payload from running. */
  readonly ended: Promise<Ended>
  /** Closes the descriptor it watches: it undoes everything and ends. */
  release(): void
  /** One that is attached at first goes on when this process is gone. */
  stay(): Promise<void>
}

/** What {@link startStarter} needs. */
export interface SpawnOptions {
  readonly launch: Launch<PipedDescriptors>
  /** Goes through a pipe as `--bundle-fd`; the starter prepares what it can until it comes. */
  readonly bundle?: Promise<Buffer> | undefined
  /** Ends with this process; stays when this process is gone; or ends with it until it is told to {@link Starter.stay}. */
  readonly attached: boolean | "at first"
  /** Standard input, output and error; a number is a descriptor. */
  readonly stdio: readonly ("inherit" | "pipe" | "ignore" | number)[]
  /** Descriptors that keep their numbers, in ascending order from 3 on; without `stdio` of more than three. */
  readonly preserved?: readonly number[] | undefined
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

export function startStarter(options: SpawnOptions): Starter {
  const { launch, attached } = options
  const stdio: ("inherit" | "pipe" | "ignore" | number)[] = [...options.stdio]
  // Each under its own number; the starter closes what is between them.
  for (const fd of options.preserved ?? []) {
    while (stdio.length < fd) stdio.push("ignore")
    stdio.push(fd)
  }
  const add = (what: "pipe" | number): number => stdio.push(what) - 1
  const secrets = new Map<number, Uint8Array>()
  const contents = new Map<number, Uint8Array>()
  const args = launch.compose({
    share: add,
    secret: (bytes) => {
      const fd = add("pipe")
      secrets.set(fd, bytes)
      return fd
    },
    bytes: (_, bytes) => {
      const fd = add("pipe")
      contents.set(fd, bytes)
      return fd
    },
    pipe: () => add("pipe"),
  })
  const status = add("pipe")
  const watch = attached === false ? undefined : add("pipe")
  const bundle = options.bundle === undefined ? undefined : add("pipe")
  // Behind the command: whatever else there is may end in the words of a program.
  args.splice(1, 0, `--status-fd=${status}`)
  if (watch !== undefined) args.splice(1, 0, `--watch-fd=${watch}`)
  if (bundle !== undefined) args.splice(1, 0, `--bundle-fd=${bundle}`)

  const child = spawn(starterPath(), args, {
    argv0: "sifcrypt-starter",
    stdio,
    env: scrubbedEnvironment,
    detached: attached !== true,
  })
  const spawned = once(child, "spawn")
  // Told where it is awaited below; it may reject before.
  spawned.catch(() => undefined)
  // Node's types do not know that there are none when the process has no descriptors left.
  if ((child.stdio as unknown) === undefined) {
    const what = `cannot start ${child.spawnfile}`
    throw limitError(what, { code: "EMFILE" }) ?? new EnvironmentError("ERR_ENV_NO_ADDON", what)
  }
  for (const [fd, bytes] of secrets) sendSecret(child, fd, bytes)
  for (const [fd, bytes] of contents) send(child, fd, bytes)
  // What it is told fails where it has ended; its status says why.
  if (watch !== undefined) (child.stdio[watch] as Duplex).on("error", () => undefined)
  const release = (): void => {
    if (watch !== undefined) (child.stdio[watch] as Duplex).destroy()
  }
  const stay = async (): Promise<void> => {
    if (watch === undefined) return
    const pipe = child.stdio[watch] as Duplex
    await new Promise<void>((resolve, reject) => {
      pipe.write("stay", (error) => {
        if (error) reject(error)
        else resolve()
      })
    })
  }
  if (bundle !== undefined)
    options.bundle?.then((bytes) => {
      send(child, bundle, bytes)
    }, release)

  const told = new Told(launch)
  const ready = deferred<number>()
  const statusPipe = child.stdio[status] as Duplex
  // Whom nothing is heard of any more has no use.
  statusPipe.on("error", () => child.kill("SIGKILL"))
  statusPipe.setEncoding("utf8").on("data", (text: string) => {
    told.add(text)
    if (told.failure !== undefined) ready.reject(told.failure)
    else if (told.ready !== undefined) ready.resolve(told.ready)
  })
  // That of the pipes comes first: the last line has been read when this is seen.
  const exited = once(child, "close") as Promise<[number | null, NodeJS.Signals | null]>
  // A child that cannot be started rejects this one as well; the first one tells.
  exited.catch(() => undefined)
  const ended = (async (): Promise<Ended> => {
    try {
      await spawned
    } catch (cause) {
      const what = `cannot start ${child.spawnfile}`
      const limit = limitError(what, cause, { cause })
      throw limit ?? new EnvironmentError("ERR_ENV_NO_ADDON", what, { cause })
    }
    const [code, signal] = await exited
    const why = signal === null ? `status ${code ?? 0}` : signal
    ready.reject(told.failure ?? told.endedEarly(why))
    if (told.failure !== undefined) throw told.failure
    if (signal !== null) return { code: 128 + constants.signals[signal], signal: constants.signals[signal] }
    return { code: code ?? 0, signal: told.signal }
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
    stay,
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
